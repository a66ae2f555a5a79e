"""MP4 files: whole, true to their frames, with the recipe inside; or absent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fpsgen import video
from fpsgen.errors import BAD_INPUT, DISK, ENVIRONMENT, FpsgenError
from fpsgen.video import count_frames, read_recipe, sweep, write_mp4, write_text

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


def decode(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    command = [video.ffmpeg(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8).reshape(shape)


def fake_ffmpeg(tmp_path: Path, monkeypatch, script: str) -> None:
    path = tmp_path / "fake-ffmpeg"
    path.write_text("#!/bin/sh\n" + script, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))


def test_frames_and_recipe_come_back(tmp_path):
    frames = make_frames()
    path = write_mp4(frames, tmp_path / "a.mp4", 16, RECIPE)
    assert read_recipe(path) == RECIPE
    assert count_frames(path) == len(frames)
    error = np.abs(decode(path, frames.shape).astype(int) - frames).mean(axis=(0, 1, 2))
    assert error.max() < 8  # chroma is stored at half size; a wrong colour matrix or a swapped channel is far beyond
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_the_stream_is_what_players_want(tmp_path):
    path = write_mp4(make_frames(), tmp_path / "a.mp4", 16)
    said = subprocess.run([video.ffmpeg(), "-i", str(path)], capture_output=True, text=True).stderr
    assert "h264" in said and "yuv420p(tv, bt709" in said and "48x32" in said and "16 fps" in said
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index first, so that it plays while it loads


def test_flat_colours_keep_their_value(tmp_path):
    frames = np.empty((5, 32, 32, 3), np.uint8)
    frames[:] = (200, 40, 90)
    out = decode(write_mp4(frames, tmp_path / "a.mp4", 8), frames.shape)
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
    monkeypatch.setattr(video, "_encode", lambda *a: (real(*a), path.write_text("theirs")))
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


HALF = 'for last in "$@"; do :; done\nexec "$REAL" -v error -y -f rawvideo -pix_fmt rgb24 -s:v 48x32 -r 16 '
HALF += '-i pipe:0 -frames:v 4 -f mp4 "$last"\n'
BROKEN = {
    "fails": ("cat >/dev/null; echo 'No space left on device' >&2; exit 1", DISK, "No space left on device"),
    "fails at once": ("exit 3", DISK, "code 3"),
    "writes nothing": ("cat >/dev/null; exit 0", DISK, "0 of 9 frames"),
    "writes half": (HALF, DISK, "of 9 frames"),
    "crashes": ("kill -SEGV $$", DISK, "ffmpeg failed"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_encoder_is_named_and_leaves_nothing(tmp_path, monkeypatch, fault):
    script, code, said = BROKEN[fault]
    monkeypatch.setenv("REAL", video.ffmpeg())
    if fault == "writes half":  # the counting needs the real one
        real = video.ffmpeg()
        monkeypatch.setattr(video, "count_frames", lambda path: _count_with(real, path))
    folder = tmp_path / "out"
    folder.mkdir()
    fake_ffmpeg(tmp_path, monkeypatch, script)
    with pytest.raises(FpsgenError) as caught:
        write_mp4(make_frames(), folder / "a.mp4", 16)
    assert caught.value.code == code and said in caught.value.message
    assert not os.listdir(folder)


def _count_with(real: str, path: Path) -> int:
    command = [real, "-v", "error", "-i", f"file:{path}", "-f", "null", "-progress", "pipe:1", "-"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return int(out.rsplit("frame=", 1)[1].split()[0])


def test_a_hanging_encoder_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 1.0)
    folder = tmp_path / "out"
    folder.mkdir()
    fake_ffmpeg(tmp_path, monkeypatch, "exec sleep 60")
    start = time.monotonic()
    with pytest.raises(FpsgenError, match="did not finish"):
        write_mp4(make_frames(), folder / "a.mp4", 16)
    assert time.monotonic() - start < 10 and not os.listdir(folder)


def test_a_missing_encoder_is_an_unsuitable_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(FpsgenError) as caught:
        write_mp4(make_frames(), tmp_path / "a.mp4", 16)
    assert caught.value.code == ENVIRONMENT


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path):
    with pytest.raises(FpsgenError) as caught:
        write_mp4(make_frames(), tmp_path / "no" / "a.mp4", 16)
    assert caught.value.code == DISK


KILLED = """
import numpy, sys
from fpsgen import video
real = video._encode
def slow(*args):
    real(*args)
    print("encoded", flush=True)
    import time; time.sleep(60)
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
    assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "a.mp4").exists()
    write_mp4(make_frames(), tmp_path / "b.mp4", 16)
    assert os.listdir(tmp_path) == ["b.mp4"]


def test_what_is_no_video_has_no_recipe(tmp_path):
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(FpsgenError) as caught:
        read_recipe(tmp_path / "a.mp4")
    assert caught.value.code == BAD_INPUT
    assert read_recipe(write_mp4(make_frames(), tmp_path / "b.mp4", 16)) is None


def test_a_truncated_file_does_not_count(tmp_path):
    path = write_mp4(make_frames(count=33), tmp_path / "a.mp4", 16)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert count_frames(path) != 33


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_text("one", path)
    write_text("two", path)
    assert path.read_text() == "two" and os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(FpsgenError) as caught:
        write_text("x", tmp_path / "no" / "a.json")
    assert caught.value.code == DISK


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
    scaled = decode(path, (9, 64, 96, 3)).astype(int)
    small = scaled.reshape(9, 32, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(small - frames).mean() < 6
