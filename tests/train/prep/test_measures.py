"""Each measure against a video whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from refusal import refuses

from fpsgen.errors import ENVIRONMENT, USAGE
from fpsgen.train.prep.filters import Filters, judge_clip, judge_picture, read_filters
from fpsgen.train.prep.frames import Box, Picture
from fpsgen.train.prep.measures import Measures, as_bytes, distances, measure, perceptual_hash, small_size, without_bars

from .conftest import moving

PICTURE = Picture(640, 480, 25)
GOOD = Measures(Box(), 50.0, 1.0, "00" * 24)


def grey(frames: np.ndarray) -> np.ndarray:
    return frames.mean(axis=3).astype(np.uint8)


@pytest.mark.parametrize("speed", [0, 1, 3])
def test_motion_is_a_share_of_the_short_side(speed):
    pytest.importorskip("cv2")
    frames = moving(1, 9, 256, 128, speed)
    assert measure(frames, False, True).flow == pytest.approx(100 * speed / 128, rel=0.1, abs=0.02)
    assert measure(frames, False, False).flow is None


@pytest.mark.parametrize(("top", "bottom", "left", "right"), [(20, 20, 0, 0), (0, 0, 30, 10), (16, 8, 12, 4), (0,) * 4])
def test_bars_are_found_on_each_side(top, bottom, left, right):
    frames = np.random.default_rng(0).integers(0, 12, (5, 160, 240, 3)).astype(np.uint8)  # noise in the black
    inner = frames[:, top : 160 - bottom, left : 240 - right]
    inner[:] = moving(2, 5, 240, 160)[:, : inner.shape[1], : inner.shape[2]]
    box = without_bars(frames)
    near = {"abs": 1.5 / 160}
    assert box.top == pytest.approx(top / 160, **near) and box.left == pytest.approx(left / 240, **near)
    assert box.height == pytest.approx(1 - (top + bottom) / 160, abs=3 / 160)
    assert box.width == pytest.approx(1 - (left + right) / 240, abs=3 / 240)
    assert (box == Box()) == (not any((top, bottom, left, right)))


def test_a_bar_is_black_in_every_frame():
    frames = moving(2, 5, 240, 160)
    frames[:4, :30] = 0
    assert without_bars(frames) == Box()
    assert without_bars(np.zeros((3, 160, 240, 3), np.uint8)) == Box()


def test_bars_do_not_count_in_other_measures():
    frames = np.full((5, 160, 240, 3), 0, np.uint8)
    frames[:, 40:120] = (120, 130, 140)
    assert measure(frames, True, False).colour == 0
    assert measure(frames, False, False).colour > 40


def test_colour_is_the_deviation_within_a_frame():
    flat = np.broadcast_to(np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None], (5, 64, 64, 3))
    assert measure(flat, False, False).colour == 0
    frames = flat.copy()
    frames[:, :, 32:, 1] += 20  # one channel: half of the pixels differ by 20
    assert measure(frames, False, False).colour == pytest.approx(10)


def test_a_hash_survives_size_and_noise_and_tells_videos_apart():
    rng = np.random.default_rng(3)
    hashes = [perceptual_hash(grey(moving(seed, 9, 256, 160))) for seed in range(8)]
    for seed, found in enumerate(hashes):
        noisy = moving(seed, 9, 256, 160) + rng.normal(0, 2, (9, 160, 256, 3))
        other = perceptual_hash(grey(noisy.clip(0, 255))[:, ::2, ::2])
        bits = distances(other, np.stack([as_bytes(each) for each in hashes]))
        assert bits[seed] <= 16 and np.delete(bits, seed).min() > 40
        assert bits[seed] == bin(int(found, 16) ^ int(other, 16)).count("1")


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({}, None),
        ({"box": Box(0.1, 0.1, 0.6, 0.8)}, ("bars", 0.52, 0.5)),
        ({"box": Box(0, 0, 0.5, 1.0)}, ("size", 1.3, 1.0)),
        ({"colour": 5.9}, ("colour", 5.9, 6.0)),
        ({"flow": 0.04}, ("flow", 0.04, 0.05)),
        ({"flow": 2.1}, ("flow", 2.1, 2.0)),
        ({"flow": None}, None),
    ],
)
def test_verdicts(found, wanted):
    verdict = judge_clip(PICTURE, Measures(**GOOD.__dict__ | found), (416, 240), Filters())
    assert (verdict and (verdict.filter, verdict.measure, verdict.threshold)) == wanted
    off = Filters(None, None, None, None, None, None)
    assert judge_clip(PICTURE, Measures(**GOOD.__dict__ | found), (416, 240), off) is None


def test_a_slow_video_is_dropped():
    assert judge_picture(Picture(640, 480, 14.4), 16, Filters()) is None
    assert judge_picture(Picture(640, 480, 12.0), 16, Filters()).filter == "fps"
    assert judge_picture(Picture(640, 480, 12.0), 16, Filters(fps=None)) is None


def test_thresholds_are_read():
    assert read_filters("") == Filters()
    found = read_filters("flow=0.1-12, duplicate=off,size=1.5")
    assert found == Filters(size=1.5, flow=(0.1, 12.0), duplicate=None)


@pytest.mark.parametrize(
    "text", ["flow", "flow=1", "flow=3-1", "motion=1-2", "size=big", "size=-1", "size=nan", "size=1-2"]
)
def test_thresholds_that_are_none_are_refused(text):
    with refuses(USAGE, text):
        read_filters(text)


def test_without_opencv_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with refuses(ENVIRONMENT):
        measure(moving(0), False, True)
    assert measure(moving(0), False, False).flow is None


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (720, 1280), (64, 64), (8000, 40)])
def test_measured_frames_are_small(width, height):
    wide, high = small_size(Picture(width, height, 16))
    assert max(wide, high) <= 1024 and min(wide, high) <= 256 and min(wide, high) >= 16
