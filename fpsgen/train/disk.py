"""A folder that is written to: used by one run alone, with room on its disk."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from fpsgen.errors import DISK, FpsgenError
from fpsgen.files import lock
from fpsgen.report.lines import amount
from fpsgen.text import show


def used_alone(folder: Path) -> AbstractContextManager[bool]:
    """Within it no other run works in the folder, which exists. Raises FpsgenError LOCKED, DISK."""
    busy = f"{show(folder)} is used by another run"
    return lock(folder / ".lock", busy, "wait for it, or name another folder with -o")


def check_space(folder: Path, size: int, what: str) -> None:
    """Raise FpsgenError DISK where `size` bytes for `what` do not fit on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if size > free:
        message = f"{what} may take {amount(size)}, and the disk of {show(folder)} has {amount(free)}"
        raise FpsgenError(message, "free space on the disk, or choose another folder with -o", DISK)
