"""The ffmpeg program: broken ones are named before there is work to lose, and whatever it does, it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from pathlib import Path

import fake_ffmpeg
import numpy as np
import pytest
from refusal import refused

from fpsgen import ffmpeg
from fpsgen.errors import DISK, ENVIRONMENT
from fpsgen.ffmpeg import Process, check_ffmpeg, run
from fpsgen.video import read_recipe, write_mp4

FRAMES = np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), np.uint8)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(ffmpeg, "PATIENCE", 1.0)


@pytest.fixture
def children():
    """After the test no process of /bin/sh's `sleep 600` or `yes` is left that was not there before."""

    def running() -> set[str]:
        found = subprocess.run(["pgrep", "-f", "^(sleep 600|yes)$"], capture_output=True, text=True).stdout
        return set(found.split())

    before = running()
    yield
    for _ in range(50):
        if running() <= before:
            return
        time.sleep(0.1)
    raise AssertionError("a process was left")


def test_the_one_that_comes_with_us_works():
    check_ffmpeg()


@pytest.mark.parametrize("fault", fake_ffmpeg.BROKEN)
def test_a_broken_one_is_found_before_the_work(tmp_path, monkeypatch, children, fault):
    path = fake_ffmpeg.install(tmp_path, fake_ffmpeg.BROKEN[fault], monkeypatch)
    assert ffmpeg.VARIABLE in refused(check_ffmpeg, ENVIRONMENT, str(path)).remedy


@pytest.mark.parametrize("fault", ["prints and succeeds", "crashes", "writes nothing", "hangs with a child"])
def test_a_broken_one_is_named_by_whoever_meets_it(tmp_path, monkeypatch, children, fault):
    whole = write_mp4(FRAMES, tmp_path / "whole.mp4", 16, {"schema": "x"})
    folder = tmp_path / "out"
    folder.mkdir()
    path = fake_ffmpeg.install(tmp_path, fake_ffmpeg.BROKEN[fault], monkeypatch)
    refused(lambda: write_mp4(FRAMES, folder / "a.mp4", 16), ENVIRONMENT, str(path))
    assert not os.listdir(folder)
    if fault in ("crashes", "hangs with a child"):  # the others say that a video has no comment
        refused(lambda: read_recipe(whole), ENVIRONMENT, str(path))


@pytest.mark.parametrize("fault", fake_ffmpeg.FILES_ALONE)
def test_a_file_that_is_not_whole_gets_no_name(tmp_path, monkeypatch, fault):
    folder = tmp_path / "out"
    folder.mkdir()
    fake_ffmpeg.install(tmp_path, fake_ffmpeg.FILES_ALONE[fault], monkeypatch)
    refused(lambda: write_mp4(FRAMES, folder / "a.mp4", 16), DISK)
    assert not os.listdir(folder)


def test_what_is_not_a_program(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.write_text("hello")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\x7fELF nonsense")
    binary.chmod(0o755)
    for path, word in ((tmp_path / "none", "not there"), (plain, "may not"), (tmp_path, "may not"), (binary, "format")):
        monkeypatch.setenv(ffmpeg.VARIABLE, str(path))
        refused(check_ffmpeg, ENVIRONMENT, str(path), word)


def test_work_that_gets_on_is_not_late(tmp_path, monkeypatch):
    fake_ffmpeg.install(tmp_path, "for i in 1 2 3 4 5 6; do sleep 0.3; echo $i; done", monkeypatch)
    done = run([])
    assert not done.late and done.code == 0 and done.out.split() == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_what_is_said_and_written_is_bounded(tmp_path, monkeypatch):
    fake_ffmpeg.install(tmp_path, "yes | head -c 20000000 >&2; echo end >&2; echo ok", monkeypatch)
    done = run([])
    assert done.said == "end" and done.out == b"ok\n"
    fake_ffmpeg.install(tmp_path, "exec yes", monkeypatch)
    assert len(run([], limit=100_000).out) < 200_000


def test_an_interrupted_run_ends_its_group(tmp_path, monkeypatch, children):
    fake_ffmpeg.install(tmp_path, "sleep 600 & sleep 600", monkeypatch)
    with pytest.raises(KeyboardInterrupt), Process([]):
        raise KeyboardInterrupt


def test_it_is_ended_from_any_thread(tmp_path, monkeypatch, children):
    fake_ffmpeg.install(tmp_path, "exec sleep 600", monkeypatch)
    done = []
    thread = threading.Thread(target=lambda: done.append(run([])))
    thread.start()
    thread.join(20)
    assert done and done[0].late


def test_no_argument_holds_the_recipe(tmp_path, monkeypatch):
    log = tmp_path / "log"
    fake_ffmpeg.install(tmp_path, f'echo "$@" >> "{log}"; exec "$REAL" "$@"', monkeypatch)
    path = write_mp4(FRAMES, tmp_path / "a.mp4", 16, {"schema": "x", "prompt": "secret words"})
    assert "secret" not in Path(log).read_text() and read_recipe(path)["prompt"] == "secret words"


def test_a_machine_at_its_limits_is_no_fault_of_ffmpeg(monkeypatch):
    def busy(*args, **more):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("subprocess.Popen", busy)
    assert "ulimit" in refused(check_ffmpeg, ENVIRONMENT, "Too many open files").remedy
