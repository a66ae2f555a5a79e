"""Files are whole or absent, never replaced unasked, on the disk when they have their name; and read safely."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from limits import largest_file
from refusal import refused

from fpsgen import files
from fpsgen.errors import BAD_INPUT, DISK, LOCKED, MODEL
from fpsgen.files import (
    atomic,
    lock,
    make_folder,
    read_bytes,
    read_json,
    read_text,
    read_toml,
    sweep,
    writing_tensors,
)
from fpsgen.files import write_text as write


def _no_links(*_):
    raise OSError(errno.EPERM, "no links here")


def test_a_file_is_written_whole_and_never_replaced_unasked(tmp_path):
    path = tmp_path / "a.txt"
    assert write("one\r\n", path) == path and path.read_bytes() == b"one\r\n"
    with pytest.raises(FileExistsError):
        write("two", path)
    write("three", path, overwrite=True)
    assert path.read_text() == "three" and os.listdir(tmp_path) == ["a.txt"]


def test_nothing_is_left_of_what_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "a") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_what_came_into_being_meanwhile_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    with pytest.raises(FileExistsError), atomic(tmp_path / "a"):
        (tmp_path / "a").write_text("theirs")
    assert (tmp_path / "a").read_text() == "theirs" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch, links, overwrite):
    """A power cut is not to be had here: the calls that survive one are watched instead."""
    done: list[str] = []

    def watch(name: str, real):
        def call(*arguments):
            inode = os.fstat(arguments[0]).st_ino if name == "fsync" else os.stat(arguments[0]).st_ino
            done.append(f"{name} {'folder' if inode == os.stat(tmp_path).st_ino else 'file'}")
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    watch("fsync", os.fsync)
    watch("replace", os.replace)
    if links:
        watch("link", os.link)
    else:
        monkeypatch.setattr(os, "link", _no_links)
    write("x", tmp_path / "a", overwrite)
    assert done == ["fsync file", "link file" if links and not overwrite else "replace file", "fsync folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_named(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    refused(lambda: write("x", tmp_path / "a"), DISK, str(tmp_path / "a"), os.strerror(number))
    assert not (tmp_path / "a").exists()


def test_tensors_that_do_not_fit_are_a_disk_that_fails(tmp_path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")

    def save() -> None:
        with largest_file(1000), atomic(tmp_path / "a") as part, writing_tensors():
            safetensors.save_file({"x": torch.zeros(5000)}, part)

    refused(save, DISK, str(tmp_path / "a"), os.strerror(errno.EFBIG))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["no/a", "x" * 300, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    refused(lambda: write("x", tmp_path / name), DISK)
    if name != "no/a":
        refused(lambda: make_folder(tmp_path / name), DISK)


HOLDS = """
import sys, time
from fpsgen.files import atomic, lock
with (lock if sys.argv[2] == "lock" else atomic)(sys.argv[1], *(("busy", "wait") if sys.argv[2] == "lock" else ())):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, kind: str) -> subprocess.Popen:
    run = subprocess.Popen([sys.executable, "-c", HOLDS, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert run.stdout and run.stdout.readline() == "held\n"
    return run


def test_a_living_run_keeps_its_temporary_and_a_dead_one_does_not(tmp_path):
    with holder(tmp_path / "a", "atomic") as run:
        assert sweep(tmp_path) == 0 and len(os.listdir(tmp_path)) == 1
        run.kill()
    assert sweep(tmp_path) == 1 and not os.listdir(tmp_path)


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    path = tmp_path / "lock"
    with holder(path, "lock") as run:
        for _ in range(2):  # the first attempt does not wipe the name of the holder
            refused(lambda: lock(path, "folder x is in use", "wait").__enter__(), LOCKED, "folder x", str(run.pid))
        run.kill()
    with lock(path, "busy", "wait") as held:
        assert held


def test_a_file_system_without_locks_is_not_another_run(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):

        def fail(*arguments, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", fail)
        with lock(tmp_path / f"lock{number}", "busy", "wait") as held:
            assert held is False
        assert write(str(number), tmp_path / f"a{number}").is_file()  # writing needs none


def test_readers_take_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfcat = 1\n")
    assert read_text(tmp_path / "a", 100, "a") == "cat = 1\n" and read_toml(tmp_path / "a", 100, "a") == {"cat": 1}
    for path, word in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "pipe"),
        ("/dev/zero", "device"),
        (tmp_path / "none", "not there"),
        (tmp_path / "a" / "b", "Not a directory"),
        (tmp_path / ("x" * 300), "name"),
        ("a\0b", "name"),
        ("\ud800", "name"),
    ):
        refused(lambda path=path: read_bytes(path, 100, "the file", MODEL), MODEL, "the file", word)
    refused(lambda: read_bytes(tmp_path / "a", 9, "the file"), BAD_INPUT, "larger than 9 bytes")


def test_text_that_is_not_utf8_is_placed(tmp_path):
    (tmp_path / "a").write_bytes(b"ok\r\nok\rbad \xff\n")
    refused(lambda: read_text(tmp_path / "a", 100, "a"), BAD_INPUT, "0xff", "offset 11", "line 3")
    (tmp_path / "a").write_bytes("ok".encode("utf-16"))
    refused(lambda: read_json(tmp_path / "a", 100, "a"), BAD_INPUT, "UTF-16")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a").touch(0o200)
    refused(lambda: read_text(tmp_path / "a", 100, "a"), BAD_INPUT, "may not be read")


def test_no_permission_is_said_as_such(tmp_path, monkeypatch):
    def fail(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", fail)
    error = refused(lambda: files.read_text(tmp_path / "a", 100, "a"), BAD_INPUT, "may not be read")
    assert "permissions" in error.remedy


def test_a_working_folder_that_was_removed(tmp_path, monkeypatch):
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    for call, code in ((lambda: read_text("a", 100, "a"), BAD_INPUT), (lambda: write("x", "a"), DISK)):
        assert "working folder" in refused(call, code).remedy


def test_a_library_that_replaces_the_temporary_does_not_change_who_may_read_it(tmp_path):
    """safetensors writes a file of its own, for its owner alone, and renames it."""
    with atomic(tmp_path / "plain") as part:
        part.write_bytes(b"x")
    with atomic(tmp_path / "replaced") as part:
        other = tmp_path / "other"
        other.write_bytes(b"y")
        other.chmod(0o600)
        other.rename(part)
    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "replaced").read_bytes() == b"y"


@pytest.mark.timeout(60)
def test_a_pipe_of_tensors_is_not_waited_for(tmp_path):
    import torch
    from safetensors.torch import save_file

    from fpsgen.pipeline.capture import read_capture

    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(lambda: read_capture(tmp_path / "pipe.safetensors"), BAD_INPUT, "pipe.safetensors", "no file")
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with files.open_tensors(tmp_path / "a.safetensors") as file:
        assert file.get_tensor("a").tolist() == [1.0, 1.0]


def test_what_the_machine_refuses_is_no_fault_of_ours():
    denied = files.system_error(PermissionError(errno.EACCES, "Permission denied", "a\x1bb"))
    assert denied is not None and denied.code == DISK and "a\\x1bb: Permission denied" in denied.message
    assert all(
        files.system_error(OSError(number, "", "x")) for number in (errno.ENOSPC, errno.EMFILE, errno.ENAMETOOLONG)
    )
    assert not any(map(files.system_error, (FileNotFoundError(errno.ENOENT, "", "x"), OSError("odd"), ValueError("x"))))


def test_a_file_in_a_folders_place_is_named_so(tmp_path):
    (tmp_path / "one.mp4").write_text("x")
    refused(lambda: make_folder(tmp_path / "one.mp4"), DISK, "one.mp4 is not a folder", remedy="another place")
    error = refused(lambda: make_folder(tmp_path / "one.mp4" / "in"), DISK, "one.mp4", remedy="another place")
    assert "permissions" not in error.remedy


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_a_files_place_is_named_so(tmp_path, overwrite):
    (tmp_path / "page.html").mkdir()
    error = refused(lambda: write("x", tmp_path / "page.html", overwrite), DISK, "page.html is a folder, not a file")
    assert "--overwrite" not in error.remedy and os.listdir(tmp_path) == ["page.html"]
