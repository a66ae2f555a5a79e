"""What a folder holds already: a log of jobs begun and finished. And the folder's lock.

A job is entered before its file is written (`begin`) and after file and sidecar have their names (`add`). The log is
trusted only where the file that it names still has the size it had. A file that is there but was not entered, because
the run died in between, is found again by `unfinished`: through the entry of its beginning, or the key in its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.batch.jobs import Job
from fpsgen.errors import DISK, FpsgenError
from fpsgen.fields import fields, many, raw, switch, whole
from fpsgen.files import lock, make_folder
from fpsgen.logs import append_line, read_objects
from fpsgen.text import show

NAME = ".fpsgen-batch.jsonl"
LOCK = ".fpsgen-batch.lock"
_MAX_BYTES = 1 << 30
_ENTRY = {
    "job": raw(64),
    "path": raw(4096),
    "bytes": whole(0, 1 << 60, default=None),  # of a finished file
    "before": many(whole(0, 1 << 80), 3, 3, default=None),  # what stood under that name when the job began
    "replaces": switch(default=False),
}


@dataclass(frozen=True)
class Unfinished:
    """A file that a run wrote and did not enter. replaces: its sidecar may be that of a file that it replaced."""

    path: Path
    replaces: bool


class Ledger:
    """Jobs of one folder. Raises FpsgenError DISK where it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._done: dict[str, tuple[str, int]] = {}  # (path, bytes)
        self._begun: dict[str, tuple[str, Any, bool]] = {}  # (path, before, replaces), where nothing followed
        if os.path.islink(self._path):  # entries would be written elsewhere
            raise FpsgenError(f"{show(self._path)} is a link", "remove it, or choose another folder with -o", DISK)
        for row in read_objects(self._path, _MAX_BYTES, DISK):
            try:
                entry = fields(row, _ENTRY, NAME, more=True)
            except FpsgenError:
                continue
            if not os.path.isabs(entry["path"]) and ".." not in Path(entry["path"]).parts:
                self._note(entry)

    def done(self, job: Job) -> Path | None:
        """The finished file of a job, if it is still there and has the size it had."""
        name, size = self._done.get(job.key, ("", 0))
        path = self._folder / name
        if not name or (job.named and path != job.path):
            return None
        state = _state(path)
        return path if state and state[2] == size else None

    def unfinished(self, job: Job) -> Unfinished | None:
        """A file that may be this job's, finished and not entered. Whether it is whole has to be looked at."""
        name, before, replaces = self._begun.get(job.key, ("", None, False))
        path = self._folder / name
        if name and (not job.named or path == job.path) and _state(path) not in (None, before):
            return Unfinished(path, replaces)
        if not job.named and job.key not in self._done and _state(job.path):  # its name holds the key
            return Unfinished(job.path, False)
        return None

    def begin(self, job: Job, path: Path) -> None:
        """Enter that a job is about to be made and to become `path`."""
        before = _state(path)
        entry = {"job": job.key, "path": os.path.relpath(path, self._folder)}
        self._append(entry | ({"before": before, "replaces": True} if before else {}))

    def add(self, job: Job, path: Path, seconds: float | None) -> None:
        """Enter a finished job. seconds: what it took, None where that is not known any more."""
        size = path.stat().st_size
        entry = {"job": job.key, "path": os.path.relpath(path, self._folder), "bytes": size}
        entry |= {"seconds": None if seconds is None else round(seconds, 2), "prompt": job.prompt, "seed": job.seed}
        self._append(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        append_line(self._path, json.dumps(entry, ensure_ascii=False))
        self._note(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        if entry.get("bytes") is not None:
            self._done[entry["job"]] = (entry["path"], entry["bytes"])
            self._begun.pop(entry["job"], None)
        else:
            self._begun[entry["job"]] = (entry["path"], entry.get("before"), entry.get("replaces", False))


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the folder for one run; the lock goes with the process. Yields whether it is held: a file system may know
    no locks. Raises FpsgenError LOCKED naming the other run, DISK.
    """
    make_folder(folder)
    busy = f"another batch is writing to {show(folder)}"
    with lock(folder / LOCK, busy, "wait for it, or choose another folder with -o") as held:
        yield held


def _state(path: Path) -> tuple[int, int, int] | None:
    """(inode, time of change in ns, bytes) of a regular file, None where there is none. A file that replaces another
    differs in one of them.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if os.path.isfile(path) else None
