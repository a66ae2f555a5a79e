"""Names: safe, free, and checked before any work is done."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from refusal import refuses

from fpsgen.errors import DISK, USAGE, FpsgenError
from fpsgen.files import temporary
from fpsgen.pipeline.output import free_name, resolve_output, sidecar, slug


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a cat surfing", "a-cat-surfing"),
        ("  A CAT!! ../../etc/passwd ", "a-cat-etc-passwd"),
        ("Käse & naïve café", "kase-naive-cafe"),
        ("一只猫", "video"),
        ("", "video"),
        ("x" * 99, "x" * 40),
        ("a" * 39 + " bc", "a" * 39),
        ("[/bold]\x1b[31m", "bold-31m"),
    ],
)
def test_slug(prompt, wanted):
    assert slug(prompt) == wanted


def test_ten_thousand_prompts_give_names_that_are_safe_everywhere():
    draw = random.Random(0)
    for _ in range(10_000):
        name = slug("".join(chr(draw.randrange(1, 0x3000)) for _ in range(draw.randrange(60))))
        assert 1 <= len(name) <= 40 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not name.startswith("-") and not name.endswith("-")


def test_default_names_never_collide():
    path, numbered = resolve_output(None, "a cat", 7, False)
    assert (str(path), numbered) == (os.path.join("outputs", "a-cat-7.mp4"), True)
    path.parent.mkdir()
    path.touch()
    second, _ = resolve_output(None, "a cat", 7, False)
    assert second.name == "a-cat-7-2.mp4"
    sidecar(second).touch()
    assert resolve_output(None, "a cat", 7, False)[0].name == "a-cat-7-3.mp4"
    assert free_name(path).name == "a-cat-7-3.mp4"
    assert resolve_output(None, "a cat", 7, True)[0] == path


def test_nothing_is_made_by_asking():
    resolve_output("new/folder/", "a cat", 7, False)
    resolve_output("new/folder/a.mp4", "a cat", 7, False)
    assert os.listdir() == []


def test_a_folder_or_a_file():
    os.mkdir("here.mp4")
    for text, wanted in (("new/", "new/a-cat-7.mp4"), ("here.mp4", "here.mp4/a-cat-7.mp4"), (".", "a-cat-7.mp4")):
        assert resolve_output(text, "a cat", 7, False) == (Path(wanted), True)
    assert resolve_output("x/y.MP4", "a cat", 7, False) == (Path("x/y.MP4"), False)


NO_PROC = pytest.mark.skipif(os.geteuid() != 0 or not os.path.isdir("/proc/self"), reason="needs root, and a /proc")


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("http://127.0.0.1:9/x.mp4", USAGE, "address"),
        ("a.avi", USAGE, "does not end in .mp4"),
        ("noend", USAGE, "does not end in .mp4"),
        (".mp4", USAGE, "does not end in .mp4"),
        ("x" * 300 + ".mp4", USAGE, "200 bytes"),
        ("y" * 300 + "/a.mp4", USAGE, "200 bytes"),
        ("/dev/null", DISK, "device"),
        ("taken.mp4", DISK, "exists already"),
        ("beside.mp4", DISK, "beside.json exists already, where the recipe of beside.mp4 goes"),
        ("link.mp4", DISK, "exists already"),
        ("taken.mp4/a.mp4", DISK, "is not a folder"),
        ("/proc/none/a.mp4", DISK, "/proc"),
        pytest.param("/proc/a.mp4", DISK, "file system", marks=NO_PROC),
    ],
)
def test_what_cannot_be_written_is_said_at_once(output, code, said):
    Path("taken.mp4").touch()
    Path("beside.json").touch()
    Path("link.mp4").symlink_to("nowhere")
    before = sorted(os.listdir())
    with refuses(code, said):
        resolve_output(output, "a cat", 7, False)
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission():
    os.mkdir("locked", 0o500)
    with pytest.raises(FpsgenError, match="not writable"):
        resolve_output("locked/a.mp4", "a cat", 7, False)


def test_a_name_may_hold_fields():
    def name(output, **rest):
        path, numbered = resolve_output(output, "A cat!", 7, rest.pop("overwrite", False), **rest)
        return str(path), numbered

    assert name("{slug}-{seed}-{n}.mp4") == ("a-cat-7-1.mp4", True)
    Path("a-cat-7-1.mp4").touch()
    Path("a-cat-7-2.json").touch()
    assert name("{slug}-{seed}-{n}.mp4") == ("a-cat-7-3.mp4", True)
    assert name("{slug}-{seed}-{n}.mp4", overwrite=True) == ("a-cat-7-1.mp4", True)
    assert name("x/{seed}/") == ("x/7/a-cat-7.mp4", True) and name("{seed}.mp4") == ("7.mp4", False)
    for wrong in ("{prompt}.mp4", "{slug.__class__}.mp4", "{}.mp4", "{n!r}.mp4"):
        with pytest.raises(FpsgenError, match="not a field") as caught:
            name(wrong)
        assert caught.value.code == USAGE
    Path("7.mp4").touch()
    with pytest.raises(FpsgenError, match=r"7\.mp4 exists already"):
        name("{seed}.mp4")


def test_one_frame_may_be_a_picture():
    assert resolve_output("a.png", "a cat", 7, False, 1) == (Path("a.png"), False)
    with pytest.raises(FpsgenError, match="33 frames") as caught:
        resolve_output("a.png", "a cat", 7, False, 33)
    assert caught.value.code == USAGE and "--frames 1" in caught.value.remedy


def test_names_that_no_system_call_takes():
    for output in ("a\0b.mp4", "\ud800.mp4"):
        try:
            resolve_output(output, "a cat", 7, False)
        except FpsgenError as error:
            assert error.code in (USAGE, DISK)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sidecar_that_could_not_be_written_is_said_before_the_work(tmp_path, overwrite):
    (tmp_path / "a.json").mkdir()
    os.mkfifo(tmp_path / "b.json")
    for name in ("a.mp4", "b.mp4"):
        with refuses(DISK, name.replace("mp4", "json")):
            resolve_output(name, "a cat", 7, overwrite)


def test_names_of_temporaries_are_not_taken(tmp_path):
    with temporary(tmp_path / "x.mp4") as (part, _), refuses(USAGE, part.name):
        resolve_output(f"{part}.mp4", "a cat", 7, False)


def test_a_path_that_is_too_long_as_a_whole_is_said_before_the_work():
    for name in ("/".join(["a" * 100] * 50), "/".join(["a" * 100] * 50) + "/x.mp4"):
        with refuses(DISK, "too long"):
            resolve_output(name + "/" * (not name.endswith(".mp4")), "a cat", 7, False)


def test_a_working_folder_that_was_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FpsgenError, match="working folder") as caught:
        resolve_output(None, "a cat", 7, False)
    assert caught.value.code == DISK


def test_how_many_frames_a_kind_of_file_takes():
    for output, frames, fps in (("a.gif", 9, 50), ("a.webp", 9, 60), ("a.png", 1, 16), ("a.MP4", 9, 120)):
        assert resolve_output(output, "a cat", 7, False, frames, fps)[0] == Path(output)
    for output, frames, fps in (("a.gif", 9, 51), ("a.png", 5, 16)):
        with refuses(USAGE, output):
            resolve_output(output, "a cat", 7, False, frames, fps)
