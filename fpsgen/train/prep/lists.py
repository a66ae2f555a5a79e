"""Videos and captions that a CSV or a JSONL lists; paths are relative to its folder."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import parse_json
from fpsgen.files import absolute, read_text
from fpsgen.text import show
from fpsgen.train.prep.source import CAPTION_KEYS, VIDEO_KEYS, Source, make_source

_MAX_BYTES = 1 << 30
_EXAMPLE = 'for example {"video": "cats/1.mp4", "caption": "a cat surfing"}'


def from_list(data: Path) -> Iterator[Source]:
    """Raises FpsgenError BAD_INPUT where it cannot be trusted: not UTF-8, no such columns, a path out of its folder."""
    name = show(data)
    text = read_text(data, _MAX_BYTES, name)
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
        yield make_source(path.relative_to(folder).as_posix(), path, caption if isinstance(caption, str) else "")


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
