"""Sounds become pictures as they should, and prompts of the test split are said in no other."""

import io
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest

from leanmark.errors import InvalidInput
from leanmark.workloads import data_sets, spoken
from leanmark.workloads.data_sets import get_data_set
from leanmark.workloads.spoken import BANDS, FRAME, FRAMES, HOP, RATE, log_mel


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def test_a_tone_is_loudest_in_its_own_band():
    loudest = [int(log_mel(tone(hertz)).mean(axis=1).argmax()) for hertz in (150, 500, 1000, 2000, 3500)]
    assert loudest == sorted(set(loudest))
    triangles = spoken._triangles()
    frequencies = np.fft.rfftfreq(FRAME, 1 / RATE)
    for hertz, band in zip((150, 500, 1000, 2000, 3500), loudest, strict=True):
        assert abs(frequencies[triangles[band].argmax()] - hertz) <= max(60, 0.08 * hertz)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (FRAME - 1, 0), (FRAME, 1), (FRAME + HOP - 1, 1), (8000, 49)])
def test_there_are_as_many_frames_as_fit(samples: int, frames: int):
    found = log_mel(np.zeros(samples, dtype=np.float32))
    assert found.shape == (BANDS, frames)
    assert np.isfinite(found).all()


def test_twice_as_loud_is_the_same_distance_in_every_band():
    quiet, loud = log_mel(tone(700)), log_mel(2 * tone(700))
    band = quiet.mean(axis=1).argmax()
    assert (loud - quiet)[band] == pytest.approx(np.log(4), abs=1e-3)


def recording(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def language(seed: int, beep: bytes) -> bytes:
    random = np.random.default_rng(seed)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        prompts = {f"digits/{number}.wav": recording(random.uniform(-0.3, 0.3, 16_000)) for number in range(60)}
        prompts |= {
            "beep.wav": beep,
            "silence.wav": recording(np.zeros(16_000)),
            "short.wav": recording(tone(500, 0.1)),
        }
        for name, sound in prompts.items():
            info = tarfile.TarInfo(f"./usr/share/asterisk/sounds/xx_XX_f_Voice{seed}/{name}")
            info.size = len(sound)
            tar.addfile(info, io.BytesIO(sound))
    return content.getvalue()


def test_prompts_are_divided_by_name_and_nothing_is_there_twice(monkeypatch: pytest.MonkeyPatch):
    languages = dict(zip(data_sets.SPOKEN, (language(seed, recording(tone(900))) for seed in range(5)), strict=True))
    monkeypatch.setattr(data_sets, "read", lambda _, part: languages[part])
    found = spoken.splits()
    for name, split in found.items():
        assert split.inputs["sound"].shape[1:] == (1, BANDS, FRAMES)
        assert split.targets is not None
        counts = np.bincount(split.targets, minlength=5)
        assert (counts == counts[0]).all(), f"{name}: the beep, which all have, is of no language"
    assert found["train"].inputs["sound"].mean() == pytest.approx(0, abs=1e-4)
    assert found["train"].inputs["sound"].std() == pytest.approx(1, abs=1e-4)
    pictures = np.concatenate([split.inputs["sound"].reshape(len(split), -1) for split in found.values()])
    assert len(np.unique(pictures, axis=0)) == len(pictures)


def test_without_the_recordings_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path))
    with pytest.raises(InvalidInput, match="leanmark fetch spoken-prompts"):
        spoken.splits()


def test_the_real_ones_are_five_languages():
    if not get_data_set("spoken-prompts").is_here():
        pytest.skip("`leanmark fetch spoken-prompts` has not been run")
    found = spoken.splits()
    assert {name: len(split) for name, split in found.items()} == {
        "train": 16773,
        "calibration": 82,
        "validation": 221,
        "test": 481,
    }
