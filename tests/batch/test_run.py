"""A batch and what may come between: kills, full disks, signals, foreign files, other runs. The generator is a fake."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fake_generator
import pytest

from fpsgen import files, video
from fpsgen.batch.ledger import NAME, Ledger
from fpsgen.cli.app import run as command
from fpsgen.errors import DISK
from fpsgen.pipeline import output
from fpsgen.video import count_frames, read_recipe

SMALL = ("-m", "nano", "--frames", "5", "--steps", "1")


class Shell:
    """Runs `fpsgen batch` in this process with the fake generator."""

    def __init__(self, capsys, begun) -> None:
        self._capsys, self.begun = capsys, begun
        self.out = self.err = ""

    def __call__(self, file: str = "p.txt", *arguments: str) -> int:
        code = command(["batch", file, *SMALL, *arguments])
        self.out, self.err = self._capsys.readouterr()
        return code

    @property
    def paths(self) -> list[Path]:
        return [Path(line) for line in self.out.splitlines()]


@pytest.fixture
def batch(capsys, generator, own_folder):
    return Shell(capsys, generator)


def write(*lines: str | dict) -> str:
    name = "p.jsonl" if isinstance(lines[0], dict) else "p.txt"
    Path(name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return name


def is_whole(path: Path) -> bool:
    """An MP4 with its recipe inside and beside it."""
    beside = json.loads(path.with_suffix(".json").read_text())
    return count_frames(path) == 5 and beside["recipe"] == read_recipe(path)


def entered(folder: str = "outputs") -> list[str]:
    """Files that the ledger calls finished."""
    found = []
    for line in (Path(folder) / NAME).read_text(errors="replace").splitlines():
        with suppress(ValueError):
            found += [json.loads(line)["path"]] if "bytes" in json.loads(line) else []
    return found


# Between which two steps of a job the process dies, by the function that is not reached.
DEATHS = {
    "before the file": (output, "make_folder"),
    "while encoding": (video, "whole_mp4"),
    "between file and name": (files, "_claim"),
    "between file and sidecar": (output, "write_text"),
    "between sidecar and ledger": (Ledger, "add"),
}


class Killed(BaseException): ...


def kill(*arguments, **names):
    raise Killed


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("death", DEATHS)
def test_the_next_run_completes_what_a_killed_one_left(batch, monkeypatch, death, named):
    lines = [{"prompt": text, **({"output": f"{text}.mp4"} if named else {})} for text in ("cat", "dog", "bug")]
    file = write(*lines)
    place, name = DEATHS[death]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill)
        with pytest.raises(Killed):
            batch(file)
    has_file = death.startswith("between sidecar") or death == "between file and sidecar"
    assert len(list(Path("outputs").glob("*.mp4"))) == has_file
    decoded = []
    real = video._frames_of
    monkeypatch.setattr(video, "_frames_of", lambda path, *rest: decoded.append(Path(path)) or real(path, *rest))
    assert batch(file) == 0, batch.err
    assert len(batch.paths) == 3 and all(is_whole(path) for path in batch.paths)
    assert sorted(Path("outputs").glob("*.mp4")) == sorted(batch.paths)
    assert len(batch.begun()) == (3 if has_file else 4)  # what was finished is not made again
    assert sorted(entered()) == sorted(path.name for path in batch.paths)
    assert not list(Path("outputs").glob(".fpsgen-*.part"))
    decoded.clear()
    monkeypatch.setattr(video, "_frames_of", lambda path, *rest: decoded.append(path) or real(path, *rest))
    assert batch(file) == 0 and "3 done before" in batch.err and not decoded  # and is not looked at any more


def test_a_file_that_the_ledger_lost_is_decoded_once(batch, monkeypatch):
    assert batch(write("a cat")) == 0
    [path] = batch.paths
    (path.parent / NAME).unlink()
    path.with_suffix(".json").unlink()
    assert batch() == 0 and batch.paths == [path] and is_whole(path) and len(batch.begun()) == 1
    monkeypatch.setattr(video, "_frames_of", kill)
    assert batch() == 0 and batch.paths == [path]


def test_a_ledger_line_that_was_cut_costs_nothing_else(batch):
    assert batch(write("a cat", "a dog é")) == 0
    ledger = Path("outputs") / NAME
    lines = ledger.read_bytes()
    ledger.write_bytes(lines[: lines.rindex(b"\xc3") + 1])  # in the middle of a letter
    write("a cat", "a dog é", "a bug")
    assert batch() == 0 and "1 made, 2 done before" in batch.err
    assert len(entered()) == 3 and batch() == 0 and "3 done before" in batch.err


def test_foreign_files_stay(batch):
    """Neither a video nor a sidecar that was there is replaced, whoever named it."""
    Path("outputs").mkdir()
    Path("outputs/x.json").write_text("theirs")
    file = write({"prompt": "a cat", "output": "x.mp4"})
    assert batch(file) == DISK and "x.json" in batch.err and not batch.begun()
    assert batch(file, "--overwrite") == 0 and is_whole(Path("outputs/x.mp4"))
    assert batch(write({"prompt": "a dog", "output": "x.mp4"})) == DISK and "x.mp4" in batch.err
    assert batch(write("a cow")) == 0
    [path] = batch.paths
    path.unlink()
    path.with_suffix(".json").write_text("theirs")
    assert batch() == 0 and batch.paths == [path.with_stem(path.stem + "-2")] and is_whole(batch.paths[0])
    assert path.with_suffix(".json").read_text() == "theirs"


def test_a_sidecar_that_comes_meanwhile_stays(batch, monkeypatch):
    theirs = Path("outputs/x.json")
    real = output.write_text
    monkeypatch.setattr(output, "write_text", lambda *rest: theirs.write_text("theirs") and real(*rest))
    assert batch(write({"prompt": "a cat", "output": "x.mp4"})) == DISK and "x.json" in batch.err
    assert theirs.read_text() == "theirs"


def test_an_overwritten_file_of_before_is_not_taken_for_the_new_one(batch, monkeypatch):
    file = write({"prompt": "a cat", "output": "x.mp4"})
    assert batch(file) == 0
    old = Path("outputs/x.mp4").read_bytes()
    file = write({"prompt": "a dog", "output": "x.mp4"})
    with monkeypatch.context() as patch:
        patch.setattr(output, "make_folder", kill)
        with pytest.raises(Killed):
            batch(file, "--overwrite")
    assert batch(file) == DISK and Path("outputs/x.mp4").read_bytes() == old
    with monkeypatch.context() as patch:
        patch.setattr(output, "write_text", kill)
        with pytest.raises(Killed):
            batch(file, "--overwrite")
    assert batch(file) == 0 and is_whole(Path("outputs/x.mp4"))  # the sidecar of the cat was replaced too
    assert len(batch.begun()) == 2 + 1


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_disk_that_fails_ends_the_run_and_the_next_one_goes_on(batch, monkeypatch, call):
    file = write(*(f"cat {i}" for i in range(4)))
    count = 0
    real = getattr(os, call)

    def fails(*arguments, **names):
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **names)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        if call == "link":
            patch.setattr(os, "replace", fails)
        assert batch(file) == DISK and "free space" in batch.err
    assert batch(file) == 0, batch.err
    assert len(batch.paths) == 4 and all(is_whole(path) for path in batch.paths)
    assert sorted(Path("outputs").glob("*.mp4")) == sorted(batch.paths)


def test_no_metadata_is_no_sidecar(batch):
    assert batch(write("a cat"), "--no-metadata") == 0
    [path] = batch.paths
    assert read_recipe(path) is None and not path.with_suffix(".json").exists()
    (path.parent / NAME).unlink()
    assert batch("p.txt", "--no-metadata") == 0 and batch.paths == [path] and not path.with_suffix(".json").exists()


def test_a_broken_ffmpeg_is_found_before_the_first_video(batch, monkeypatch, tmp_path):
    path = tmp_path / "ffmpeg"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    assert batch(write("a cat")) == 6 and str(path) in batch.err and not batch.begun()


def test_a_file_system_without_locks_is_said(batch, monkeypatch):
    import fcntl

    def fail(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    assert batch(write("a cat")) == 0 and "without locks" in batch.err and is_whole(batch.paths[0])


SLEEPS = "import time; import fake_generator as f; r = f.frames_of\n"
SLEEPS += "f.frames_of = lambda q: time.sleep(30) or r(q)\n"


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    """A process that is in the middle of its first video."""
    log = tmp_path / "log"
    line, env = fake_generator.command(log, "batch", "p.txt", *SMALL, *arguments)
    code = SLEEPS + "import sys, runpy; sys.argv[1:] = sys.argv[1:]\n"
    code += "sys.modules.update(f.modules(__import__('pathlib').Path(sys.argv[1])))\n"
    code += "from fpsgen.cli.app import run; sys.exit(run(sys.argv[2:]))"
    process = subprocess.Popen(
        [line[0], "-c", code, *line[3:]], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:  # pytest's limit ends what hangs
        if log.exists():
            return process
        time.sleep(0.05)
    raise AssertionError(process.communicate())


def test_another_run_is_named_by_process_and_host(batch, tmp_path):
    write("a cat")
    process = start(tmp_path)
    try:
        assert batch() == 11
        assert f"process {process.pid} on {socket.gethostname()}" in batch.err
    finally:
        process.kill()
        process.wait()
    assert batch() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_batch(batch, tmp_path, number, code):
    write("a cat", "a dog")
    process = start(tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    assert "2 of 2 videos to go" in said and "Traceback" not in said
    assert not [name for name in os.listdir("outputs") if not name.startswith(".fpsgen-batch")]


def test_a_video_that_was_cut_since_is_made_again(batch):
    assert batch(write("a cat")) == 0
    path = batch.paths[0]
    path.write_bytes(path.read_bytes()[:-10])
    assert batch() == 0 and batch.begun() == ["a cat"] * 2 and is_whole(batch.paths[0])


@pytest.mark.parametrize("elsewhere", ["../cat.mp4", "{folder}/cat.mp4"])
def test_a_ledger_names_no_file_outside_its_folder(batch, tmp_path, elsewhere):
    assert batch(write("a cat")) == 0
    path, ledger = batch.paths[0], Path("outputs") / NAME
    path.rename("cat.mp4")
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    for entry in entries:
        assert entry["path"] == path.name
        entry["path"] = elsewhere.format(folder=Path.cwd())
    ledger.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert batch() == 0 and batch.begun() == ["a cat"] * 2 and is_whole(batch.paths[0])


def test_a_ledger_that_is_a_link_is_not_written_to(batch, tmp_path):
    (tmp_path / "other").write_text("kept")
    Path("outputs").mkdir()
    Path("outputs", NAME).symlink_to(tmp_path / "other")
    assert batch(write("a cat")) == DISK and NAME in batch.err
    assert (tmp_path / "other").read_text() == "kept"


def test_what_holds_for_every_job_is_said_once(batch, monkeypatch):
    made = sys.modules["fpsgen.pipeline.run"]
    real = made.run

    def run(request, timing, model):
        timing.warn("nano is small")
        timing.warn(f"prompt {request.prompt.text} is short")
        return real(request, timing, model)

    monkeypatch.setattr(made, "run", run)
    assert batch(write("cat", "dog")) == 0, batch.err
    assert [batch.err.count(text) for text in ("nano is small", "prompt cat is", "prompt dog is")] == [1, 1, 1]


def test_jobs_with_another_lora_get_a_model_of_their_own(batch, monkeypatch):
    made = []
    loaded, run = sys.modules["fpsgen.pipeline.loaded_model"], sys.modules["fpsgen.pipeline.run"]
    monkeypatch.setattr(loaded, "load_model", lambda request, timing: request.values()["lora"])
    real = run.run

    def records(request, timing, model):
        made.append((request.values()["lora"], model))
        return real(request, timing, model)

    monkeypatch.setattr(run, "run", records)
    for name in ("a", "b"):
        Path(f"{name}.safetensors").touch()
    lines = [{"prompt": "a cat", "lora": f"{name}.safetensors"} for name in ("a", "b")]
    assert batch(write(*lines, {"prompt": "a cat"})) == 0, batch.err
    assert made == [("a.safetensors",) * 2, ("b.safetensors",) * 2, ("", "")]


def test_a_signal_that_a_library_swallowed_ends_the_batch_all_the_same(batch, generator, monkeypatch):
    module = sys.modules["fpsgen.pipeline.run"]
    real = module.run

    def swallows(request, timing, model):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:  # as C code does that calls back
            pass
        return real(request, timing, model)

    monkeypatch.setattr(module, "run", swallows)
    before = signal.getsignal(signal.SIGINT)
    assert batch(write("a cat", "a dog")) == 130
    assert len(batch.begun()) == 1 and signal.getsignal(signal.SIGINT) is before


def warnings_beside(out: str) -> list[list[str]]:
    return [json.loads(Path(line).with_suffix(".json").read_text())["report"]["warnings"] for line in out.splitlines()]


def test_a_sidecar_holds_the_warnings_of_its_own_video(batch):
    """On stderr each is said once."""
    write({"prompt": "a cat", "res": "128x128"}, {"prompt": "a ball"}, {"prompt": "a star", "res": "128x128"})
    assert batch("p.jsonl") == 0
    first, second, third = warnings_beside(batch.out)
    assert any("scaled" in text for text in first) and not any("scaled" in text for text in second)
    assert third == first and all("5 frames" in text for text in second) and second
    assert batch.err.count("scaled to") == 1 and batch.err.count("5 frames may") == 1


def test_warnings_of_a_schedule_are_those_of_its_videos(tiny_dir, capsys, own_folder):
    """The real generator: what apply warns of goes to the video that it was said of, each time."""
    write("a cat", "a cat --schedule paper", "a dog", "a dog --schedule paper")
    assert command(["batch", "p.txt", "-m", str(tiny_dir), *SMALL[2:], "--res", "64x48", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    plain, sparse, again, last = warnings_beside(out)
    assert plain == again == [] and len(sparse) == 1 and "'paper'" in sparse[0] and last == sparse
    assert err.count("'paper'") == 1
