"""Which of five languages a moment of speech is in: log-mel frames of prompts that five speakers recorded.

`leanmark fetch spoken-prompts` brings the recordings here: what telephone exchanges say, 8 kHz, one voice a language.
So a network may go by the voice as well as by the language; prompts of the test split are said in no other.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import wave
from collections.abc import Iterator

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.registry import Workload, register_workload
from leanmark.stages import Split
from leanmark.workloads import data_sets

DATA_SET = "spoken-prompts"
RATE = 8000
FRAME, HOP = 256, 160  # samples: 32 ms, every 20 ms
BANDS, FRAMES = 40, 40  # of a picture: 0.8 s
LOWEST, HIGHEST = 100.0, 3800.0  # Hz
# The share of prompts, in hundredths, that a split ends at.
_ENDS = (("test", 25), ("validation", 35), ("calibration", 40), ("train", 100))
_STRIDE = 10  # frames between the pictures of a prompt that is trained with
_QUIET = 1e-4  # a picture whose mean power is below is silence


def _digest(sound: Array) -> bytes:
    return hashlib.sha256(sound.tobytes()).digest()


def splits() -> dict[str, Split]:
    """The four splits. Inputs: `sound`, float32 (N, 1, 40 bands, 40 frames), the log of each band's power, with mean 0
    and deviation 1 over the train split. Targets: int64 (N,), the language: en, es, fr, it, ru.

    Prompts are divided by their names, which are the same in every language. For training each gives a picture every
    0.2 s; elsewhere one, from the middle, so that test examples do not depend on each other. A recording that several
    languages share, as a beep, is left out, and one that a language has twice is taken once.

    Raises InvalidInput if the data are not here.
    """
    pictures: dict[str, list[Array]] = {name: [] for name, _ in _ENDS}
    targets: dict[str, list[int]] = {name: [] for name, _ in _ENDS}
    languages = enumerate(data_sets.DATA_SETS[DATA_SET].parts)
    prompts = [(target, *prompt) for target, language in languages for prompt in _prompts(language)]
    spoken_in: dict[bytes, set[int]] = {}
    for target, _, sound in prompts:
        spoken_in.setdefault(_digest(sound), set()).add(target)
    seen: set[bytes] = set()
    for target, prompt, sound in prompts:
        digest = _digest(sound)
        if digest in seen or len(spoken_in[digest]) > 1:
            continue
        seen.add(digest)
        split = _split_of(prompt)
        found = _pictures(log_mel(sound), every=split == "train")
        pictures[split] += found
        targets[split] += [target] * len(found)
    train = np.stack(pictures["train"])
    mean, deviation = train.mean(), train.std()
    return {
        name: Split(
            {"sound": ((np.stack(pictures[name]) - mean) / deviation)[:, None].astype(np.float32)},
            np.array(targets[name], dtype=np.int64),
        )
        for name in ("train", "calibration", "validation", "test")
    }


def _prompts(language: str) -> Iterator[tuple[str, Array]]:
    """The name of each prompt and its samples, from -1 to 1, in the order of the names."""
    found: dict[str, Array] = {}
    with tarfile.open(fileobj=io.BytesIO(data_sets.read(DATA_SET, language))) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() and member.name.endswith(".wav") else None
            if file is None:
                continue
            with wave.open(file) as recording:
                samples = recording.readframes(recording.getnframes())
            found[member.name.split("/", 6)[-1]] = np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768
    yield from sorted(found.items())


def _split_of(prompt: str) -> str:
    place = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 100
    return next(name for name, end in _ENDS if place < end)


def _pictures(bands: Array, *, every: bool) -> list[Array]:
    """Pictures of 40 frames that are not silence; with `every` false the middle one only."""
    last = bands.shape[1] - FRAMES
    if last < 0:
        return []
    starts = range(0, last + 1, _STRIDE) if every else [last // 2]
    found = [bands[:, start : start + FRAMES] for start in starts]
    return [picture for picture in found if float(np.exp(picture).mean()) > _QUIET]


def log_mel(sound: Array) -> Array:
    """The log of each band's power in each frame, shape (BANDS, frames).

    Bands are triangles, evenly spaced in mel. Source: Davis, Mermelstein 1980, Comparison of Parametric
    Representations for Monosyllabic Word Recognition.
    """
    count = 1 + (len(sound) - FRAME) // HOP
    if count < 1:
        return np.zeros((BANDS, 0), dtype=np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP][:count]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)) ** 2
    return np.log(_triangles() @ power.T + 1e-6)


def _triangles() -> Array:
    """The weight of each frequency in each band, shape (BANDS, FRAME / 2 + 1)."""
    mels = np.linspace(_mel(LOWEST), _mel(HIGHEST), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    frequencies = np.fft.rfftfreq(FRAME, 1 / RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.maximum(0.0, np.minimum(rising, falling))


def _mel(hertz: float) -> float:
    return 2595 * float(np.log10(1 + hertz / 700))


register_workload(
    Workload(
        name="frame-mlp",
        title="MLP on log-mel frames of spoken prompts",
        model="leanmark.networks.plain:build_frame_mlp",
        config={},
        data="leanmark.workloads.spoken:splits",
        metric="accuracy",
        train={"epochs": 12, "batch_size": 64, "learning_rate": 0.002, "label_smoothing": 0.1},
        needs=(DATA_SET,),
    )
)
