"""A folder that is written to: with room on its disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from fpsgen.errors import DISK, FpsgenError
from fpsgen.report.lines import amount
from fpsgen.text import show


def check_space(folder: Path, size: int, what: str) -> None:
    """Raise FpsgenError DISK where `size` bytes for `what` do not fit on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if size > free:
        message = f"{what} may take {amount(size)}, and the disk of {show(folder)} has {amount(free)}"
        raise FpsgenError(message, "free space on the disk, or choose another folder with -o", DISK)
