"""Messages arrive whole, or the channel says that the other side is gone."""

import signal
import struct
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanmark.channel import Channel, ChannelClosed, pair

values = st.dictionaries(
    st.text(max_size=6), st.integers(-(2**53), 2**53) | st.text(max_size=20) | st.none(), max_size=4
)
arrays = st.dictionaries(
    st.sampled_from(["first", "second"]),
    hnp.arrays(st.sampled_from([np.float32, np.uint32]), hnp.array_shapes(min_side=0)),
)


@given(values, arrays)
def test_what_is_sent_arrives(header: dict[str, Any], sent: dict[str, np.ndarray]):
    ours, theirs = pair()
    other = Channel(theirs)
    header.pop("_arrays", None)
    try:
        thread = threading.Thread(target=ours.send, args=(header, sent))
        thread.start()
        message = other.receive(timeout=10)
        thread.join()
    finally:
        ours.close()
        other.close()
    assert {key: value for key, value in message.items() if key not in sent} == {
        key: value for key, value in header.items() if key not in sent
    }
    for name, array in sent.items():
        assert message[name].dtype == array.dtype
        assert message[name].shape == array.shape
        assert message[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "garbage", [b"", b"\0\0", struct.pack(">I", 2**31), struct.pack(">I", 4) + b"oops", struct.pack(">I", 2) + b"{}"]
)
def test_garbage_closes_the_channel(garbage: bytes):
    ours, theirs = pair()
    theirs.sendall(garbage)
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.receive(timeout=10)
    ours.close()


def test_silence_runs_into_the_time_limit():
    ours, theirs = pair()
    with pytest.raises(TimeoutError):
        ours.receive(timeout=0.01)
    ours.close()
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.send({"op": "anything"})


def test_a_busy_process_ends_when_the_other_side_is_gone():
    code = (
        "import sys; from leanmark.channel import end_with_parent, inherited\n"
        "channel = inherited(int(sys.argv[1])); end_with_parent(channel); channel.send({'ready': True})\n"
        "while True: pass"
    )
    ours, theirs = pair()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True
    )
    theirs.close()
    assert ours.receive(timeout=60) == {"ready": True}
    ours.close()
    assert process.wait(timeout=60) == -signal.SIGKILL
