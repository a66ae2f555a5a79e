"""One video with its caption, not opened yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fpsgen.text import clean_text

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
VIDEO_KEYS = ("video", "file_name", "path", "file")
CAPTION_KEYS = ("caption", "text", "prompt")
MAX_CAPTION = 10_000  # characters; text encoders read 512 tokens
MAX_CAPTION_FILE = 1 << 20  # bytes


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


def make_source(name: str, path: Path, text: str, why: str = "") -> Source:
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
