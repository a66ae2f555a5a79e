"""What a full check of a folder's files found whole is not read again until a file changes.

A stamp in the user's cache folder holds size, times and inode of each file as it was when the check began.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs

from fpsgen.errors import FpsgenError
from fpsgen.files import make_folder, read_json, write_text

SCHEMA = "fpsgen.stamp/1"
FileStats = dict[str, list[int]]


def file_stats(folder: Path, paths: Iterable[Path]) -> FileStats:
    """Name -> size, time of change, time of change of its inode, inode of files below `folder`; links followed."""
    found = {}
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            name = path.relative_to(folder).as_posix()
            found[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


def is_stamped(folder: Path, now: FileStats) -> bool:
    """Whether the files were found whole as they are now."""
    with suppress(FpsgenError):
        return read_json(_file(folder), 1 << 22, "the stamp").get("files") == now
    return False


def write_stamp(folder: Path, before: FileStats) -> None:
    """Keep that the files are whole. before: as they were when the check began, so that one that changed meanwhile does
    not pass. A cache that cannot be written costs time, no more.
    """
    path = _file(folder)
    body = {"schema": SCHEMA, "folder": str(folder.resolve()), "files": before}
    with suppress(FpsgenError):
        make_folder(path.parent)
        write_text(json.dumps(body), path, overwrite=True)


def _file(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return platformdirs.user_cache_path("fpsgen") / "intact" / f"{name}.json"
