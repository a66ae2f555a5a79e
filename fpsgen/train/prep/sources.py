"""Where videos and captions come from: a folder, a CSV, a JSONL, or WebDataset's tar files. Nothing is decoded here.

A list that cannot be trusted is an error before any work: not UTF-8, no such columns, a path outside of its folder.
What is wrong with one video (no caption, no file) goes along in `Source.problem`, and that video is dropped for it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import parse_json
from fpsgen.files import absolute, read_text, temporary
from fpsgen.text import clean_text, show

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
MAX_CAPTION = 10_000  # characters; text encoders read 512 tokens
VIDEO_KEYS = ("video", "file_name", "path", "file")
CAPTION_KEYS = ("caption", "text", "prompt")
_MAX_LIST = 1 << 30  # bytes
_MAX_CAPTION_FILE = 1 << 20
_BLOCK = 1 << 20
_EXAMPLE = 'for example {"video": "cats/1.mp4", "caption": "a cat surfing"}'


@dataclass(frozen=True)
class Source:
    """A video and its caption. name: unique, its path within the data. path, start, length: the bytes of the video,
    a part of a tar file where length is not None. problem: why it cannot be used, as (filter, words); None if it can.
    """

    name: str
    path: Path
    caption: str = ""
    problem: tuple[str, str] | None = None
    start: int = 0
    length: int | None = None


def find_sources(data: Path) -> list[Source]:
    """All videos of DATA in a fixed order. Raises FpsgenError BAD_INPUT."""
    if os.path.isdir(data):
        found = list(_folder(data))
        tars = [] if found else sorted(path for path in data.glob("*.tar") if path.is_file())
        found = found or [source for tar in tars for source in _tar(tar)]
    elif data.suffix.lower() in (".csv", ".jsonl"):
        found = list(_listed(data))
    elif data.suffix.lower() == ".tar":
        found = list(_tar(data))
    elif not os.path.exists(data):
        raise FpsgenError(f"{show(data)} is not there", "name a folder, a .csv, a .jsonl or a .tar", BAD_INPUT)
    else:
        what = f"{show(data)} is neither a folder nor a .csv, a .jsonl or a .tar"
        raise FpsgenError(what, "name one of these; unpack a tar that is compressed", BAD_INPUT)
    if not found:
        raise FpsgenError(f"{show(data)} holds no video", f"videos end in {', '.join(VIDEOS)}", BAD_INPUT)
    return list(_unique(found))


@contextmanager
def video_file(source: Source, folder: Path) -> Iterator[Path]:
    """A file with the video alone: its own, or a temporary in `folder` that goes with the block."""
    if source.length is None:
        yield source.path
        return
    with temporary(folder / "video") as (part, _), source.path.open("rb") as tar:
        tar.seek(source.start)
        left = source.length
        with part.open("wb") as out:
            while left > 0 and (block := tar.read(min(left, _BLOCK))):
                out.write(block)
                left -= len(block)
        yield part


def _folder(data: Path) -> Iterator[Source]:
    """Videos in a folder and those below it, by name; the caption of a.mp4 is a.txt."""
    for place, folders, files in os.walk(data):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in VIDEOS and not name.startswith("."):
                try:
                    text = read_text(path.with_suffix(".txt"), _MAX_CAPTION_FILE, f"{path.stem}.txt")
                except FpsgenError as error:
                    yield _source(path.relative_to(data).as_posix(), path, "", error.message)
                else:
                    yield _source(path.relative_to(data).as_posix(), path, text)


def _listed(data: Path) -> Iterator[Source]:
    """Rows of a CSV or JSONL; paths are relative to its folder."""
    name = show(data)
    text = read_text(data, _MAX_LIST, name)
    folder = absolute(data).parent
    for where, row in _rows_of_csv(text, name) if data.suffix.lower() == ".csv" else _rows_of_jsonl(text, name):
        video = next((row[key] for key in VIDEO_KEYS if key in row), None)
        caption = next((row[key] for key in CAPTION_KEYS if key in row), None)
        if not isinstance(video, str) or not video:
            raise FpsgenError(f"{where} names no video ({', '.join(VIDEO_KEYS)})", _EXAMPLE, BAD_INPUT)
        path = Path(os.path.normpath(folder / video))
        if "\0" in video or folder not in path.parents:
            what = f"{where} names {show(video)!r}, which lies outside of the list's folder"
            raise FpsgenError(what, "write paths relative to that folder, or move the list above the videos", BAD_INPUT)
        yield _source(path.relative_to(folder).as_posix(), path, caption if isinstance(caption, str) else "")


def _rows_of_csv(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        for kind, keys in (("video", VIDEO_KEYS), ("caption", CAPTION_KEYS)):
            if not set(keys) & set(columns):
                what = f"{name} has no column for the {kind} (one of {', '.join(keys)})"
                raise FpsgenError(what, "its first line names the columns, for example video,caption", BAD_INPUT)
        for row in reader:
            where = f"{name} line {reader.line_num}"
            if None in row or None in row.values():
                what = f"{where} has not as many values as the first line"
                raise FpsgenError(what, "put a caption with commas in double quotes", BAD_INPUT)
            yield where, row
    except csv.Error as error:
        raise FpsgenError(f"{name} line {reader.line_num} is not CSV: {error}", "mend that line", BAD_INPUT) from None


def _rows_of_jsonl(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(re.split("\r\n|[\r\n]", text), 1):
        if line.strip():
            where = f"{name} line {number}"
            yield where, parse_json(line, where, example=_EXAMPLE)


def _tar(path: Path) -> Iterator[Source]:
    """Samples of a WebDataset shard: files that share a name up to its first dot. Captions are .txt, or .json."""
    import tarfile

    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # members of a compressed one have no place in the file
            for member in tar:
                tar.members = []  # otherwise it keeps them all
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.isreg() and stem:
                    key = f"{folder}/{stem}" if folder else stem
                    found.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        what = f"{show(path)} is not a tar file that can be read: {show(error, 80)}"
        raise FpsgenError(what, "make it anew, not compressed", BAD_INPUT) from error
    with path.open("rb") as file:
        for key, parts in found.items():
            video = next((suffix for suffix in parts if f".{suffix.split('.')[-1]}" in VIDEOS), None)
            if video is None:
                continue
            start, length = parts[video]
            caption, why = _caption_of_tar(file, parts)
            source = _source(f"{path.name}/{key}.{video}", path, caption, why)
            yield replace(source, start=start, length=length)


def _caption_of_tar(file: Any, parts: dict[str, tuple[int, int]]) -> tuple[str, str]:
    """(the caption, what is wrong with it)."""
    for suffix in ("txt", "json"):
        if suffix not in parts:
            continue
        start, length = parts[suffix]
        if length > _MAX_CAPTION_FILE:
            return "", f"the .{suffix} is larger than {_MAX_CAPTION_FILE >> 20} MiB"
        file.seek(start)
        try:
            text = file.read(length).decode("utf-8-sig")
            if suffix == "json":
                table = json.loads(text)
                text = next(table[key] for key in CAPTION_KEYS if isinstance(table.get(key), str))
        except UnicodeDecodeError as error:
            return "", f"the .{suffix} is not UTF-8 text (byte {error.start})"
        except (ValueError, AttributeError, StopIteration, RecursionError):
            return "", f"the .json has no {', '.join(CAPTION_KEYS)}"
        return text, ""
    return "", "there is no .txt or .json"


def _source(name: str, path: Path, text: str, why: str = "") -> Source:
    """The source, with what is wrong with its caption or its file, if anything is."""
    caption = ""
    if not why:
        try:
            caption = clean_text(text)
        except ValueError as error:
            why = str(error)
        else:
            if not caption:
                why = "it is empty"
            elif len(caption) > MAX_CAPTION:
                why = f"it has {len(caption)} characters, more than {MAX_CAPTION}"
    if not os.path.isfile(path):
        what = "it is no regular file" if os.path.lexists(path) else "no such file"
        return Source(name, path, caption, ("missing", what))
    return Source(name, path, caption, ("caption", why) if why else None)


def _unique(sources: Iterable[Source]) -> Iterator[Source]:
    """The same; a name that comes again gets a number, and its video is dropped as a duplicate later."""
    seen: dict[str, int] = {}
    for source in sources:
        count = seen[source.name] = seen.get(source.name, 0) + 1
        yield source if count == 1 else replace(source, name=f"{source.name}#{count}")
