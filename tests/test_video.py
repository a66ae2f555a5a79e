"""MP4 files: whole, true to their frames, with the recipe inside; or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusal import refuses

from fpsgen import video
from fpsgen.errors import BAD_INPUT, DISK, ENVIRONMENT
from fpsgen.ffmpeg import ffmpeg
from fpsgen.files import sweep
from fpsgen.video import count_frames, frames_of, open_video, read_frames, read_recipe, whole_mp4, write_mp4

RECIPE = {
    "schema": "test/1",
    "prompt": 'a "cat"; # = \\ \n é 😀 [/bold] %s ${x}',
    "seed": 2**60,
    "nested": {"a": [1, None]},
}


def make_frames(count: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A gradient with a bar that moves, so that a wrong order or a wrong colour shows."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    frames[..., 2] = 60
    for index in range(count):
        frames[index, :, 4 * index : 4 * index + 4, 1] = 220
    return frames


def run_ffmpeg(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([ffmpeg(), "-v", "error", *arguments], capture_output=True, check=True)


def test_frames_and_recipe_come_back(tmp_path):
    frames = make_frames()
    path = write_mp4(frames, tmp_path / "a.mp4", 16, RECIPE)
    assert read_recipe(path) == RECIPE
    assert count_frames(path) == len(frames)
    error = np.abs(read_frames(path)[0].astype(int) - frames).mean(axis=(0, 1, 2))
    assert error.max() < 8  # chroma is stored at half size; a wrong colour matrix or a swapped channel is far beyond
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_the_stream_is_what_players_want(tmp_path):
    path = write_mp4(make_frames(), tmp_path / "a.mp4", 16)
    said = subprocess.run([ffmpeg(), "-i", str(path)], capture_output=True, text=True).stderr
    assert "h264" in said and "yuv420p(tv, bt709" in said and "48x32" in said and "16 fps" in said
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index first, so that it plays while it loads


def test_flat_colours_keep_their_value(tmp_path):
    frames = np.empty((5, 32, 32, 3), np.uint8)
    frames[:] = (200, 40, 90)
    out, _ = read_frames(write_mp4(frames, tmp_path / "a.mp4", 8))
    assert np.abs(out.astype(int) - frames).max() <= 3


def test_same_frames_same_bytes(tmp_path):
    first = write_mp4(make_frames(), tmp_path / "a.mp4", 16, RECIPE).read_bytes()
    assert write_mp4(make_frames(), tmp_path / "b.mp4", 16, RECIPE).read_bytes() == first
    assert write_mp4(make_frames(), tmp_path / "c.mp4", 16, RECIPE | {"seed": 1}).read_bytes() != first


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_mp4(make_frames(), path, 16)
    assert path.read_text() == "mine"
    write_mp4(make_frames(), path, 16, overwrite=True)
    assert count_frames(path) == 9


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    real = video._encode
    monkeypatch.setattr(video, "_encode", lambda *a: (real(*a), path.write_text("theirs"))[0])
    with pytest.raises(FileExistsError):
        write_mp4(make_frames(), path, 16)
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    "frames",
    [
        make_frames().astype(np.float32),
        make_frames()[0],
        make_frames()[..., :1],
        make_frames()[:0],
        make_frames(height=31),
        make_frames(width=47),
    ],
)
def test_other_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError):
        write_mp4(frames, tmp_path / "a.mp4", 16)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["-vf.mp4", "x:y.mp4", "a b'c.mp4", "100%d.mp4", "é😀.mp4", "http:x.mp4"])
def test_odd_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mp4(make_frames(), name, 16, RECIPE)
    assert os.listdir(tmp_path) == [name] and read_recipe(name) == RECIPE


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path):
    with refuses(DISK):
        write_mp4(make_frames(), tmp_path / "no" / "a.mp4", 16)


KILLED = """
import numpy, sys
from fpsgen import video
real = video._encode
def slow(*args):
    real(*args)
    print("encoded", flush=True)
    __import__("time").sleep(60)
video._encode = slow
video.write_mp4(numpy.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), numpy.uint8), sys.argv[1], 16)
"""


def test_a_killed_run_leaves_no_video_and_the_next_one_cleans_up(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "a.mp4")], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout and run.stdout.readline() == "encoded\n"
        assert sweep(tmp_path) == 0  # it is alive: its temporary is not touched
        run.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) and not (tmp_path / "a.mp4").exists()
    write_mp4(make_frames(), tmp_path / "b.mp4", 16)
    assert os.listdir(tmp_path) == ["b.mp4"]


def test_what_is_no_video_has_no_recipe(tmp_path):
    (tmp_path / "a.mp4").write_text("hello")
    with refuses(BAD_INPUT):
        read_recipe(tmp_path / "a.mp4")
    assert read_recipe(write_mp4(make_frames(), tmp_path / "b.mp4", 16)) is None


def test_a_file_that_was_cut_is_not_whole(tmp_path):
    path = write_mp4(make_frames(count=33), tmp_path / "a.mp4", 16)
    data = path.read_bytes()
    assert whole_mp4(path) and count_frames(path) == 33
    for size in (0, 3, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert not whole_mp4(path) and count_frames(path) == 0
    path.write_bytes(data + b"\0")
    assert not whole_mp4(path)


def test_frames_may_come_one_by_one(tmp_path):
    frames = make_frames()
    one = write_mp4(frames, tmp_path / "a.mp4", 16).read_bytes()
    assert write_mp4(iter(frames), tmp_path / "b.mp4", 16).read_bytes() == one
    with pytest.raises(ValueError, match="one size"):
        write_mp4([frames[0], frames[1, :-2]], tmp_path / "c.mp4", 16)
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]


def test_frames_come_as_players_show_them(tmp_path):
    """A phone stores its pictures lying and a display matrix that turns them."""
    path = write_mp4(make_frames(), tmp_path / "a.mp4", 16)
    lying = np.stack(list(frames_of(path)))
    run_ffmpeg("-display_rotation", "90", "-i", str(path), "-c", "copy", str(tmp_path / "b.mp4"))
    turned = np.stack(list(frames_of(tmp_path / "b.mp4")))
    assert turned.shape == (9, 48, 32, 3) and np.array_equal(turned, np.rot90(lying, axes=(1, 2)))


@pytest.mark.parametrize("rate", [8, 24, 29.97, 120])
def test_the_rate_is_read(tmp_path, rate):
    clip = open_video(write_mp4(make_frames(), tmp_path / "a.mp4", rate))
    assert clip.fps == pytest.approx(rate, rel=1e-3) and clip.pixel == "1:1"


def test_a_video_of_odd_sides_is_read(tmp_path):
    run_ffmpeg("-f", "lavfi", "-i", "testsrc=s=33x17:d=0.5:r=8", "-pix_fmt", "yuv444p", str(tmp_path / "a.mp4"))
    assert read_frames(tmp_path / "a.mp4")[0].shape == (4, 17, 33, 3)


def test_a_video_that_breaks_off_is_refused(tmp_path):
    path = write_mp4(make_frames(count=33), tmp_path / "a.mp4", 16)
    path.write_bytes(path.read_bytes()[:-300])
    for call in (lambda: list(frames_of(path)), lambda: list(frames_of(tmp_path / "none.mp4"))):
        with refuses(BAD_INPUT):
            call()


def test_a_reader_that_stops_early_leaves_no_process(tmp_path):
    path = write_mp4(make_frames(count=600), tmp_path / "a.mp4", 16)
    next(frames_of(path))
    assert not subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", str(path)], capture_output=True).stdout


def test_a_recipe_of_any_length_fits(tmp_path):
    recipe = RECIPE | {"negative": "é=;#\\\n" * 60_000}
    assert read_recipe(write_mp4(make_frames(), tmp_path / "a.mp4", 16, recipe)) == recipe
    assert os.listdir(tmp_path) == ["a.mp4"]


def quality(path: Path, frames: np.ndarray) -> float:
    from fpsgen.evaluate.metrics import psnr

    return float(psnr(read_frames(path)[0], frames).mean())


def test_quality_is_what_crf_18_gives(tmp_path):
    """Grey clouds, so that no chroma is lost. Measured: 38.6 dB at CRF 18, 37.4 at 20, 39.7 at 16, 30.6 at 30."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(9, 16, 16)).repeat(8, 1).repeat(8, 2)
    soft = (coarse + np.roll(coarse, 4, 1) + np.roll(coarse, 4, 2)) / 3
    frames = (128 + 40 * soft + rng.normal(scale=2, size=soft.shape)).clip(0, 255).astype(np.uint8)
    frames = frames[..., None].repeat(3, -1)
    assert quality(write_mp4(frames, tmp_path / "a.mp4", 16), frames) == pytest.approx(38.6, abs=0.5)


FULL = """
import numpy, resource, sys
from fpsgen import video
from fpsgen.errors import DISK, FpsgenError
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
noise = numpy.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), numpy.uint8)
try:
    video.write_mp4(noise, sys.argv[1], 16)
except FpsgenError as error:
    sys.exit(error.code)
"""


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "a.mp4")], capture_output=True, text=True)
    assert done.returncode == DISK, done.stderr
    assert not os.listdir(tmp_path)


def test_frames_are_scaled_to_the_size_asked_for(tmp_path):
    frames = make_frames()
    path = write_mp4(frames, tmp_path / "a.mp4", 8, size=(96, 64))
    scaled = read_frames(path)[0].astype(int)
    small = scaled.reshape(9, 32, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(small - frames).mean() < 6


def test_a_picture_of_another_shape_lies_between_black_bars(tmp_path):
    frames = make_frames()
    shown = read_frames(write_mp4(frames, tmp_path / "a.mp4", 8, size=(48, 128)))[0].astype(int)
    assert np.abs(shown[:, 48:80] - frames).mean() < 6  # 48x32 in the middle
    assert shown[:, :44].mean() < 2 and shown[:, 84:].mean() < 2


def test_another_program_in_ffmpegs_place_is_named_by_who_reads(tmp_path, monkeypatch):
    path = write_mp4(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "a.mp4", 8, {"schema": "x"})
    other = tmp_path / "true"
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(other))
    with refuses(ENVIRONMENT, str(other)):
        read_recipe(path)
