"""A folder that is written to: room on its disk, and who may read it."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from fpsgen.errors import DISK, FpsgenError
from fpsgen.files import temporary
from fpsgen.report.lines import amount
from fpsgen.text import show


def check_space(folder: Path, size: int, what: str) -> None:
    """Raise FpsgenError DISK where `size` bytes for `what` do not fit on the disk of `folder`, which exists."""
    free = shutil.disk_usage(folder).free
    if size > free:
        message = f"{what} may take {amount(size)}, and the disk of {show(folder)} has {amount(free)}"
        raise FpsgenError(message, "free space on the disk, or choose another folder with -o", DISK)


def use_default_modes(folder: Path) -> None:
    """Give all in a folder of the caller's the modes of new files and folders (umask): safetensors writes files for
    their owner alone, and a copy has the mode of its source. Raises FpsgenError DISK.
    """
    with temporary(folder / "mode") as (part, _):
        mode = stat.S_IMODE(part.stat().st_mode)
    for path in (folder, *folder.rglob("*")):
        of_folder = mode >> 2 & 0o111 | path.stat().st_mode & stat.S_ISGID
        path.chmod(mode | of_folder if path.is_dir() else mode)
