"""Two videos are compared as players show them, or refused by name; figures first, then a labelled picture of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fpsgen.evaluate.metrics import decibels, mean_squares, psnr
from fpsgen.ffmpeg import ffmpeg
from fpsgen.video import count_frames, read_frames, write_mp4, write_video


def moving(count: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    frames = np.stack([np.roll(ramp, 3 * index) for index in range(count)])
    return np.ascontiguousarray(np.broadcast_to(frames[:, None, :, None], (count, height, width, 3)))


def run_ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg(), "-v", "error", "-y", *arguments], check=True)


@pytest.fixture
def clip(fpsgen):
    return write_mp4(moving(), "a.mp4", 16)


def test_figures_and_picture(fpsgen, clip):
    frames = moving()
    frames[2, 8:16] = 255 - frames[2, 8:16]
    write_mp4(frames, "b.mp4", 16)
    assert fpsgen("compare", clip, "b.mp4", "-o", "side.mp4", "--json") == 0, fpsgen.err
    got = fpsgen.json["results"][0]
    left, right = read_frames(clip)[0], read_frames("b.mp4")[0]
    wanted = psnr(left, right)
    assert got["psnr_db_of_frames"] == [None if np.isinf(value) else round(float(value), 3) for value in wanted]
    assert np.argmin(wanted) == 2 and np.argmin(got["ssim_of_frames"]) == 2
    assert got["psnr_db"] == pytest.approx(float(decibels(mean_squares(left, right).mean(), 255)), abs=1e-3)
    assert (got["frames"], got["width"], got["height"], got["fps"]) == (5, 48, 32, 16)
    side, fps = read_frames("side.mp4")
    band = side.shape[1] - 32
    assert side.shape[2] == 96 and fps == 16 and band >= 16
    assert psnr(side[:, band:, :48], left).min() > 30 and psnr(side[:, band:, 48:], right).min() > 30  # A is left
    for half in (side[:, :band, :48], side[:, :band, 48:]):  # a name over each
        assert half.max() > 150 and np.median(half) < 40
    assert np.abs(side[0, :band, :48].astype(int) - side[0, :band, 48:]).max() > 100  # and not the same


def test_lines_come_first_and_the_path_last(fpsgen, clip):
    write_mp4(255 - moving(), "another long name, of a video.mp4", 16)
    assert fpsgen("compare", clip, "another long name, of a video.mp4") == 0
    assert [line.split()[0] for line in fpsgen.lines[:3]] == ["frames", "PSNR", "SSIM"]
    assert {line.split()[0] for line in fpsgen.lines[3:-1]} <= {"VMAF", "XPSNR"}  # where this ffmpeg has them
    assert fpsgen.lines[-1] == "outputs/a-vs-another-long-name-of.mp4" and count_frames(fpsgen.lines[-1]) == 5
    assert fpsgen("compare", clip, clip, "-q") == 0 and fpsgen.lines == ["outputs/a-vs-a.mp4"]
    assert fpsgen("compare", clip, clip, "-q") == 0 and fpsgen.lines == ["outputs/a-vs-a-2.mp4"]


def test_figures_alone(fpsgen, clip):
    assert fpsgen("compare", clip, clip, "--no-video") == 0
    assert "identical" in fpsgen.lines[0] and not fpsgen.lines[-1].endswith(".mp4") and os.listdir() == ["a.mp4"]
    assert fpsgen("compare", clip, clip, "--no-video", "--json") == 0
    result = fpsgen.json["results"][0]
    assert result["path"] is None and result["psnr_db"] is None and result["ssim"] == 1 and result["identical_files"]
    assert result["xpsnr_db"] in (None, 100.0) and (result["vmaf"] is None or result["vmaf"] > 90)


def test_a_video_that_players_turn(fpsgen, clip):
    run_ffmpeg("-display_rotation", "90", "-i", "a.mp4", "-c", "copy", "turned.mp4")
    write_mp4(np.rot90(read_frames(clip)[0], axes=(1, 2)), "baked.mp4", 16)
    assert fpsgen("compare", "turned.mp4", "baked.mp4", "--json") == 0, fpsgen.err
    assert fpsgen.json["results"][0]["psnr_db"] > 35 and fpsgen.json["results"][0]["width"] == 32
    fpsgen("compare", clip, "turned.mp4")
    fpsgen.refused(4, "48x32", "32x48")


def test_sides_may_be_odd(fpsgen):
    for name, noise in (("a.mp4", 0), ("b.mp4", 20)):
        source = f"testsrc=s=33x17:d=0.5:r=8,format=yuv444p,noise=alls={noise}"
        run_ffmpeg("-f", "lavfi", "-i", source, "-crf", "1", name)
    assert fpsgen("compare", "a.mp4", "b.mp4", "--json") == 0, fpsgen.err
    result = fpsgen.json["results"][0]
    assert (result["width"], result["height"], result["frames"]) == (33, 17, 4) and 15 < result["psnr_db"] < 50
    assert count_frames(result["path"]) == 4


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (moving(4), 16, ("5", "4", "frames")),
        (moving(9), 16, ("5", "9", "frames")),
        (moving(), 24, ("16", "24", "a second")),
        (moving(height=34), 16, ("48x32", "48x34")),
    ],
)
def test_what_differs_is_refused_by_name(fpsgen, clip, frames, fps, words):
    write_mp4(frames, "b.mp4", fps)
    for pair in ((clip, "b.mp4"), ("b.mp4", clip)):
        fpsgen("compare", *pair)
        fpsgen.refused(4, "a.mp4", "b.mp4", *words)
        assert not fpsgen.out and not Path("outputs").exists()


def test_pixels_that_are_not_square(fpsgen, clip):
    run_ffmpeg("-i", "a.mp4", "-vf", "setsar=2", "b.mp4")
    fpsgen("compare", clip, "b.mp4")
    fpsgen.refused(4, "1:1", "2:1")
    assert fpsgen("compare", "b.mp4", "b.mp4", "--no-video") == 0


def test_what_is_no_video(fpsgen, clip):
    Path("text.mp4").write_text("no video")
    Path("cut.mp4").write_bytes(clip.read_bytes()[:-300])
    write_mp4(np.zeros((5, 4, 4, 3), np.uint8), "tiny.mp4", 16)
    for name in ("text.mp4", "cut.mp4", "none.mp4", "."):
        for pair in ((clip, name), (name, clip)):
            fpsgen("compare", *pair)
            fpsgen.refused(4, name)
    fpsgen("compare", "tiny.mp4", "tiny.mp4")
    fpsgen.refused(4, "4x4")
    fpsgen("compare", clip)
    fpsgen.refused(2, "needs B")


def test_a_working_folder_that_was_removed(fpsgen, clip, tmp_path, monkeypatch):
    whole = clip.resolve()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    fpsgen("compare", whole, whole, "--no-video")
    fpsgen.refused(7, "working folder")


def test_pictures_are_compared_too(fpsgen):
    write_video(moving(), "a.png", 8)
    write_video(moving()[1:], "b.png", 8)
    assert fpsgen("compare", "a.png", "b.png", "--no-video", "--json") == 0
    assert fpsgen.json["results"][0]["psnr_db"] == pytest.approx(float(psnr(moving()[:1], moving()[1:2])[0]), abs=1e-3)


MEASURED = r"""
import re, sys
from fpsgen.cli.app import run
code = run(["compare", sys.argv[1], sys.argv[1], "-q"])
print(code, int(re.search("VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) >> 10)
"""


def test_a_long_video_takes_no_more_memory_than_a_short_one(fpsgen):
    """96 frames of 640x360 are 66 MB of pixels, and twice that side by side."""
    peaks = []
    for frames in (8, 96):
        source = f"color=s=640x360:r=30:d={frames / 30}"
        run_ffmpeg("-f", "lavfi", "-i", source, "-preset", "ultrafast", f"{frames}.mp4")
        command = [sys.executable, "-c", MEASURED, f"{frames}.mp4"]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        code, peak = map(int, done.stdout.splitlines()[-1].split())
        assert code == 0, done.stderr
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 40, peaks


def test_rates_that_were_rounded_are_one_rate(fpsgen, clip):
    frames, _ = read_frames(clip)
    for name, fps in (("film.mp4", 30), ("ntsc.mp4", 29.97), ("slow.mp4", 29)):
        write_mp4(frames, name, fps)
    assert fpsgen("compare", "film.mp4", "ntsc.mp4", "--no-video") == 0, fpsgen.err
    fpsgen("compare", "film.mp4", "slow.mp4", "--no-video")
    fpsgen.refused(4, "30", "29")
