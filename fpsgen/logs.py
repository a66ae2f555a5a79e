"""Logs: lines of JSON, appended one by one and read back without those that a kill cut short. A leaf."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import parse_json
from fpsgen.files import cannot_write, decode, read_bytes, sync
from fpsgen.text import show


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a log and sync it. It begins on a line of its own even where a kill cut the last one short.
    Raises FpsgenError DISK.
    """
    try:
        with open(path, "ab+") as file:
            file.seek(max(0, file.tell() - 1))
            cut = file.read(1) not in (b"", b"\n")
            file.write(f"{chr(10) * cut}{line}\n".encode())
        sync(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def read_objects(path: str | Path, limit: int, code: int = BAD_INPUT) -> Iterator[dict[str, Any]]:
    """The objects in a log of at most `limit` bytes, none where it is not there; other lines are passed over. Raises
    FpsgenError `code` where it cannot be read.
    """
    data = read_bytes(path, limit, show(path), code) if os.path.lexists(path) else b""
    for line in filter(None, data.split(b"\n")):
        with suppress(FpsgenError):
            yield parse_json(decode(line, "a line"), "a line")
