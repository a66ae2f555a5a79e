"""Where videos and captions come from: a folder, a CSV, a JSONL, or WebDataset's tar files. Nothing is decoded here.

A list that cannot be trusted is an error before any work: not UTF-8, no such columns, a path outside of its folder.
What is wrong with one video (no caption, no file) goes along in `Source.problem`, and that video is dropped for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import read_text, temporary
from fpsgen.text import show
from fpsgen.train.prep.lists import from_list
from fpsgen.train.prep.source import MAX_CAPTION_FILE, VIDEOS, Source, make_source
from fpsgen.train.prep.tars import from_tar

_BLOCK = 1 << 20  # bytes


def find_sources(data: Path) -> list[Source]:
    """All videos of DATA in a fixed order. Raises FpsgenError BAD_INPUT."""
    if os.path.isdir(data):
        found = list(_folder(data))
        tars = [] if found else sorted(path for path in data.glob("*.tar") if path.is_file())
        found = found or [source for tar in tars for source in from_tar(tar)]
    elif data.suffix.lower() in (".csv", ".jsonl"):
        found = list(from_list(data))
    elif data.suffix.lower() == ".tar":
        found = list(from_tar(data))
    elif not os.path.lexists(data):
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
    for place, folders, files in os.walk(data, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in VIDEOS and not name.startswith("."):
                try:
                    text = read_text(path.with_suffix(".txt"), MAX_CAPTION_FILE, f"{path.stem}.txt")
                except FpsgenError as error:
                    yield make_source(path.relative_to(data).as_posix(), path, "", error.message)
                else:
                    yield make_source(path.relative_to(data).as_posix(), path, text)


def _refuse(error: OSError) -> None:
    what = f"{show(Path(error.filename))} cannot be read: {error.strerror}"
    raise FpsgenError(what, "check its permissions, or leave it out of the data", BAD_INPUT) from error


def _unique(sources: Iterable[Source]) -> Iterator[Source]:
    """The same; a name that comes again gets a number, and its video is dropped as a duplicate later."""
    seen: dict[str, int] = {}
    for source in sources:
        count = seen[source.name] = seen.get(source.name, 0) + 1
        yield source if count == 1 else replace(source, name=f"{source.name}#{count}")
