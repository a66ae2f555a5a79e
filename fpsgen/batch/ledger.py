"""What a folder holds already: one line per finished job, appended after its MP4 has its name. And the folder's lock.

The ledger is trusted only where the file that it names still has the size it had. A video that was finished but not
yet entered (the run died in between) is taken for done if it decodes to the right number of frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fpsgen.batch.jobs import Job
from fpsgen.errors import DISK, LOCKED, FpsgenError
from fpsgen.video import count_frames

NAME = ".fpsgen-batch.jsonl"
LOCK = ".fpsgen-batch.lock"


class Ledger:
    """Finished jobs of one folder. Raises FpsgenError DISK where it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise FpsgenError(f"{self._path} cannot be read: {error}", "remove it; videos stay", DISK) from error
        for line in lines:
            try:
                entry = json.loads(line)
                self._entries[entry["job"]] = {"path": str(entry["path"]), "bytes": int(entry["bytes"])}
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed

    def done(self, job: Job) -> Path | None:
        """The finished video of a job, if it is still there and whole."""
        entry = self._entries.get(job.key)
        path = self._folder / entry["path"] if entry else job.request.output.path
        if entry and (path == job.request.output.path or not job.named):
            return path if path.is_file() and path.stat().st_size == entry["bytes"] else None
        if not job.named and path.is_file() and count_frames(path) == job.request.video.frames:
            return path
        return None

    def add(self, job: Job, path: Path, seconds: float) -> None:
        """Enter a finished job, in one write that survives a crash."""
        name = os.path.relpath(path, self._folder)
        entry = {"job": job.key, "path": name, "bytes": path.stat().st_size, "seconds": round(seconds, 2)}
        entry |= {"prompt": job.request.prompt.text, "seed": job.request.sampling.seed}
        try:
            with self._path.open("a", encoding="utf-8") as file:  # blank lines part it from what a kill cut short
                file.write("\n" + json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FpsgenError(f"{self._path} cannot be written: {error.strerror}", "free space", DISK) from error
        self._entries[job.key] = entry


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run; the lock goes with the process. Raises FpsgenError LOCKED, DISK."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise FpsgenError(f"{folder} cannot be written: {error.strerror}", "choose another with -o", DISK) from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except OSError:
            what = f"another batch is writing to {folder}"
            raise FpsgenError(what, "wait for it, or choose another folder with -o", LOCKED) from None
        yield
