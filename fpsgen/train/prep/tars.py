"""Samples of a WebDataset shard, found in the tar file and left there."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.text import show
from fpsgen.train.prep.source import CAPTION_KEYS, MAX_CAPTION_FILE, VIDEOS, Source, make_source


def from_tar(path: Path) -> Iterator[Source]:
    """Files that share a name up to its first dot are a sample; its caption is .txt, or .json.

    Raises FpsgenError BAD_INPUT for a tar that is compressed, cut short or none.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # members of a compressed one have no place in the file
            for member in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # otherwise it keeps them all
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
            source = make_source(f"{path.name}/{key}.{video}", path, caption, why)
            yield replace(source, start=start, length=length)


def _caption_of_tar(file: Any, parts: dict[str, tuple[int, int]]) -> tuple[str, str]:
    """(the caption, what is wrong with it)."""
    for suffix in ("txt", "json"):
        if suffix not in parts:
            continue
        start, length = parts[suffix]
        if length > MAX_CAPTION_FILE:
            return "", f"the .{suffix} is larger than {MAX_CAPTION_FILE >> 20} MiB"
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
