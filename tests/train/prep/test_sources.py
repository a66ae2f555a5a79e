"""What is found in folders, lists and tar files, and what is refused or dropped."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import refusal

from fpsgen.errors import BAD_INPUT
from fpsgen.train.prep.source import MAX_CAPTION
from fpsgen.train.prep.sources import find_sources, video_file


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video of " + name.encode())


def names(data: Path) -> list[str]:
    return [source.name for source in find_sources(data)]


def refused(data: Path) -> str:
    return refusal.refused(lambda: find_sources(data), BAD_INPUT).message


def test_a_folder_is_walked_in_order(tmp_path):
    put(tmp_path, "b.mp4", "a/2.MOV", "a/1.webm", ".hidden/x.mp4", "._b.mp4", "notes.md")
    (tmp_path / "b.txt").write_text(" two\nlines \n")
    found = {source.name: source for source in find_sources(tmp_path)}
    assert list(found) == ["b.mp4", "a/1.webm", "a/2.MOV"]
    assert found["b.mp4"].caption == "two lines" and found["b.mp4"].problem is None
    assert found["a/1.webm"].problem[0] == "caption"


@pytest.mark.parametrize("data", [b"", b" \n ", b"caf\xe9", b"a\x00b", b"\x1b[2J", b"x" * (MAX_CAPTION + 1)])
def test_captions_that_cannot_be_used_are_dropped(tmp_path, data):
    put(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_bytes(data)
    [source] = find_sources(tmp_path)
    assert source.problem[0] == "caption" and source.problem[1]


def test_a_csv_and_a_jsonl_say_the_same(tmp_path):
    put(tmp_path, "v/1.mp4", "v/2.mp4")
    (tmp_path / "l.csv").write_text('video,caption\r\nv/1.mp4,"a, b"\r\nv/2.mp4,c\r\nv/3.mp4,d\r\n')
    rows = [("v/1.mp4", "a, b"), ("v/2.mp4", "c"), ("v/3.mp4", "d")]
    (tmp_path / "l.jsonl").write_text(
        "\ufeff" + "".join(json.dumps({"path": path, "text": text, "more": 1}) + "\n" for path, text in rows)
    )
    found = find_sources(tmp_path / "l.csv")
    assert [(source.name, source.caption) for source in found] == rows
    assert [source.problem and source.problem[0] for source in found] == [None, None, "missing"]
    assert found == find_sources(tmp_path / "l.jsonl")


def test_a_video_that_is_listed_twice_has_two_names(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "l.csv").write_text("video,caption\na.mp4,one\n./a.mp4,two\n")
    assert names(tmp_path / "l.csv") == ["a.mp4", "a.mp4#2"]


@pytest.mark.parametrize("video", ["../out.mp4", "/etc/hostname", "v/../../out.mp4", "a\0.mp4"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_path_outside_of_the_list_s_folder_is_refused(tmp_path, video, kind):
    folder = tmp_path / "data"
    put(tmp_path, "out.mp4")
    put(folder, "v/1.mp4")
    text = f"video,caption\n{video},a\n" if kind == "csv" else json.dumps({"video": video, "caption": "a"})
    (folder / f"l.{kind}").write_text(text)
    refused(folder / f"l.{kind}")


def test_a_path_inside_of_it_may_be_absolute(tmp_path):
    put(tmp_path, "v/1.mp4")
    (tmp_path / "l.csv").write_text(f"video,caption\n{tmp_path / 'v' / '1.mp4'},a\n")
    assert names(tmp_path / "l.csv") == ["v/1.mp4"]


@pytest.mark.parametrize(
    ("name", "data", "culprit"),
    [
        ("l.csv", b"film,caption\na.mp4,b\n", "column for the video"),
        ("l.csv", b"video,words\na.mp4,b\n", "column for the caption"),
        ("l.csv", b"video,caption\na.mp4,b,c\n", "line 2"),
        ("l.csv", b"video,caption\na.mp4\n", "line 2"),
        ("l.csv", b'video,caption\na.mp4,"b\n', "not CSV"),
        ("l.csv", b"video,caption\na.mp4,caf\xe9\n", "line 2"),
        ("l.csv", b"", "column"),
        ("l.jsonl", b'{"video": "a.mp4", "caption": "b"}\n{"video"', "line 2"),
        ("l.jsonl", b'{"caption": "b"}', "line 1"),
        ("l.jsonl", b'{"video": 7, "caption": "b"}', "line 1"),
        ("l.jsonl", b"\n", "holds no video"),
        ("l.tar", b"no tar", "l.tar"),
        ("l.tar", b"\x1f\x8b\x08\x00", "l.tar"),
        ("l.txt", b"a", "l.txt"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(tmp_path, name, data, culprit):
    (tmp_path / name).write_bytes(data)
    assert culprit in refused(tmp_path / name)


def test_nothing_there_and_an_empty_folder_are_refused(tmp_path):
    assert "not there" in refused(tmp_path / "none")
    assert "holds no video" in refused(tmp_path)
    assert "not there" in refused(tmp_path / ("x" * 300))


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path, "a.mp4", "b/c.mp4")
    true = os.scandir

    def scandir(place):
        if str(place).endswith("b"):
            raise PermissionError(13, "Permission denied", str(place))
        return true(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert str(tmp_path / "b") in refused(tmp_path)


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a")
    assert find_sources(tmp_path)[0].problem[0] == "missing"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("evil.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_tar_files_are_read_in_place(tmp_path):
    first = {"x/0001.mp4": b"one" * 1000, "x/0001.txt": b"a cat", "x/0001.json": b"{}", "x/0002.txt": b"no video"}
    second = {"0001.json": b'{"text": "a dog"}', "0001.webm": b"two", "0002.mp4": b"three", "0002.txt": b"\xff"}
    write_tar(tmp_path / "a.tar", first)
    write_tar(tmp_path / "b.tar", second)
    found = find_sources(tmp_path)
    assert [(source.name, source.caption) for source in found] == [
        ("a.tar/x/0001.mp4", "a cat"),
        ("b.tar/0001.webm", "a dog"),
        ("b.tar/0002.mp4", ""),
    ]
    assert [source.problem and source.problem[0] for source in found] == [None, None, "caption"]
    for source, data in zip(found, (b"one" * 1000, b"two", b"three"), strict=True):
        with video_file(source, tmp_path) as path:
            assert path.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_a_tar_that_was_cut_short_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.txt": b"a", "1.mp4": b"x" * 5000})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"xxxx") + 700])
    assert "a.tar" in refused(tmp_path / "a.tar")
