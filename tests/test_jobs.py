"""Jobs in forks of one interpreter: what happens where that interpreter comes to nothing."""

import os
import time
from pathlib import Path

import psutil
import pytest

from leanmark import processes
from leanmark.jobs import Done, Job, Preloaded, run_jobs
from leanmark.processes import Base, Code, Copy
from leanmark.results import Status

CHILD = """
import contextlib, os, sys, threading, time

from leanmark.channel import ChannelClosed, end_with_parent, inherited
from leanmark.copies import count_threads, make_copies


def serve(channel, message):
    if message["do"] == "die":
        os._exit(7)
    if message["do"] == "kill the base":
        os.kill(os.getppid(), 9)
    if message["do"] == "wait":
        time.sleep(60)
    channel.send({"pid": os.getpid(), "parent": os.getppid()})
    channel.receive()


channel = inherited(int(sys.argv[1]))
with contextlib.suppress(ChannelClosed):
    message = channel.receive()
    if message.get("op") == "base":
        if message["base"] == "hangs":
            time.sleep(60)
        if message["base"] == "has a thread":
            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        if message["base"] == "is whole" or (message["base"] == "has a thread" and count_threads() == 1):
            make_copies(channel, serve)
        os._exit(3)
    end_with_parent(channel)
    serve(channel, message)
"""


@pytest.fixture
def code(tmp_path: Path) -> Code:
    (tmp_path / "a_child.py").write_text(CHILD)
    return Code(sources=(tmp_path,))


def run(jobs: list[Job], preloaded: Preloaded) -> dict[str, Done]:
    return {event.job.name: event for event in run_jobs(jobs, 1, preloaded) if isinstance(event, Done)}


def jobs(code: Code, *names: str, timeout: float = 20) -> list[Job]:
    return [Job(name, "a_child", {"do": name}, timeout, code=code) for name in names]


def test_jobs_are_forks_of_one_interpreter_that_ends_with_the_block(code: Code):
    with Preloaded({"base": "is whole"}) as preloaded:
        done = run(jobs(code, "one", "two"), preloaded)
        parents = {done[name].answer["parent"] for name in ("one", "two")}
        (parent,) = parents
        assert parent != os.getpid()
    assert not psutil.pid_exists(parent)


@pytest.mark.parametrize("base", ["dies", "hangs", "has a thread"])
def test_where_there_can_be_no_forks_jobs_have_fresh_interpreters(code: Code, base: str):
    with Preloaded({"base": base}) as preloaded:
        done = run(jobs(code, "one", "two", timeout=5), preloaded)
    assert {item.answer["parent"] for item in done.values()} == {os.getpid()}


def test_a_fork_that_dies_takes_no_other_with_it(code: Code):
    with Preloaded({"base": "is whole"}) as preloaded:
        done = run(jobs(code, "die", "one"), preloaded)
        assert done["die"].death == processes.Death(Status.FAILED, "it ended with exit code 7")
        assert done["one"].answer["parent"] != os.getpid()


def test_jobs_go_on_where_their_interpreter_was_killed(code: Code):
    with Preloaded({"base": "is whole"}) as preloaded:
        done = run(jobs(code, "kill the base", "one", "two"), preloaded)
    assert {done[name].answer["parent"] for name in ("one", "two")} == {os.getpid()}


def test_a_fork_past_its_limit_is_ended(code: Code):
    with Preloaded({"base": "is whole"}) as preloaded:
        done = run(jobs(code, "one", "wait", timeout=3), preloaded)
        assert done["wait"].death is not None
        assert done["wait"].death.status is Status.TIMEOUT


def test_an_interrupt_in_the_middle_of_a_question_spoils_no_other_answer(code: Code, monkeypatch: pytest.MonkeyPatch):
    """A late answer would be taken for another question's."""
    base = Base("a_child", {"base": "is whole"}, code=code)
    base.wait(20)
    first = Copy(base)

    def interrupted(timeout: float | None = None) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(base.channel, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Copy(base)
    monkeypatch.undo()
    begun = time.monotonic()
    first.kill()
    base.kill()
    assert time.monotonic() - begun < 30
    assert not psutil.pid_exists(base.pid)
