"""Frames come at the rate, size and place asked for, against the frames that were written."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from refusal import refuses

from fpsgen.errors import BAD_INPUT
from fpsgen.ffmpeg import ffmpeg, raw_input
from fpsgen.train.prep.frames import Box, Picture, centre, clip_frames, probe
from fpsgen.video import write_mp4

from .conftest import moving


def counted(path, frames: int, fps: float, width: int = 64, height: int = 48):
    """Each frame is one grey, 4 more than the one before; nothing is lost to the codec."""
    values = np.arange(frames, dtype=np.uint8) * 4 + 20
    data = np.broadcast_to(values[:, None, None, None], (frames, height, width, 3)).tobytes()
    command = [ffmpeg(), "-v", "error", *raw_input(width, height, fps), "-c:v", "libx264", "-qp", "0", path]
    subprocess.run(command, input=data, check=True)
    return path


def number(frames: np.ndarray) -> list[int]:
    return ((frames.mean(axis=(1, 2, 3)) - 20) / 4).round().astype(int).tolist()


def test_a_rate_is_resampled(tmp_path):
    path = counted(tmp_path / "a.mp4", 32, 32)
    found = clip_frames(path, 0, 100, 16, (64, 48), Box())
    assert found.shape == (16, 48, 64, 3)
    assert set(np.diff(number(found))) == {2}
    assert number(clip_frames(path, 0, 5, 32, (64, 48), Box())) == [0, 1, 2, 3, 4]


def test_clips_follow_each_other(tmp_path):
    path = counted(tmp_path / "a.mp4", 40, 16)
    parts = [number(clip_frames(path, first / 16, 9, 16, (64, 48), Box())) for first in (0, 9, 18, 27, 36, 45)]
    assert [n for part in parts for n in part] == list(range(40))
    assert [len(part) for part in parts] == [9, 9, 9, 9, 4, 0]


def test_a_box_is_cut_out_and_scaled(tmp_path):
    frames = np.full((4, 96, 128, 3), 30, np.uint8)
    frames[:, 24:72, 32:96] = (200, 60, 90)
    path = write_mp4(frames, tmp_path / "a.mp4", 16)
    found = clip_frames(path, 0, 4, 16, (32, 24), Box(0.25, 0.25, 0.5, 0.5))
    assert np.abs(found[:, 1:-1, 1:-1].astype(int) - (200, 60, 90)).max() < 12
    whole = clip_frames(path, 0, 4, 16, (32, 24), Box())
    assert np.abs(whole[:, 2, 2].astype(int) - 30).max() < 12


@pytest.mark.parametrize(
    ("size", "width", "height"), [((64, 64), 0.75, 1.0), ((160, 80), 1.0, 2 / 3), ((128, 96), 1, 1)]
)
def test_the_centre_has_the_shape_asked_for(size, width, height):
    box = centre(Picture(128, 96, 16), Box(), size)
    assert (box.width, box.height) == pytest.approx((width, height))
    assert (box.left, box.top) == pytest.approx(((1 - width) / 2, (1 - height) / 2))
    inner = centre(Picture(128, 96, 16), Box(0.5, 0.0, 0.5, 1.0), size)
    assert inner.left >= 0.5 and inner.left + inner.width <= 1
    assert 128 * inner.width / (96 * inner.height) == pytest.approx(size[0] / size[1])


def test_a_picture_is_as_players_show_it(tmp_path):
    path = counted(tmp_path / "a.mp4", 4, 25)
    assert probe(path) == Picture(64, 48, 25.0)
    turned, wide = tmp_path / "turned.mp4", tmp_path / "wide.mp4"
    quiet = [ffmpeg(), "-v", "error"]
    subprocess.run([*quiet, "-display_rotation", "90", "-i", path, "-c", "copy", turned], check=True)
    subprocess.run([*quiet, "-i", path, "-vf", "setsar=2", wide], check=True)
    assert probe(turned) == Picture(48, 64, 25.0)
    assert probe(wide) == Picture(128, 48, 25.0)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "inside", "audio"])
def test_what_does_not_decode_is_said(tmp_path, damage):
    path = write_mp4(moving(0, 40, 320, 240), tmp_path / "a.mp4", 16)
    data = path.read_bytes()
    if damage == "audio":
        command = [ffmpeg(), "-v", "error", "-y", "-f", "lavfi", "-i", "sine=d=1", path]
        subprocess.run(command, check=True)
    else:
        middle = data.index(b"mdat") + 5000  # within a frame
        inside = data[:middle] + b"\xff" * 300 + data[middle + 300 :]
        damaged = {"text": b"hello\n" * 100, "empty": b"", "cut": data[: len(data) * 2 // 3], "inside": inside}
        path.write_bytes(damaged[damage])
    with refuses(BAD_INPUT, "a.mp4"):
        probe(path)
        clip_frames(path, 0, 40, 16, (64, 48), Box())


def test_a_frame_of_huge_dimensions_takes_no_memory(tmp_path):
    """A PNG header that claims 60,000 x 60,000 pixels, in a Matroska file."""
    path = tmp_path / "a.mkv"
    source = "color=s=16000x16000:d=0.1:r=10"
    subprocess.run([ffmpeg(), "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "png", path], check=True)
    with refuses(BAD_INPUT):
        probe(path)
