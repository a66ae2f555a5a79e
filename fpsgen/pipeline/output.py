"""Where the video goes: a name without surprises, checked before any work is done."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from pathlib import Path

from fpsgen.errors import DISK, USAGE, FpsgenError
from fpsgen.text import show

OUTPUT_FOLDER = "outputs"
_SUFFIX = ".mp4"
_MAX_NAME = 200  # bytes; file systems allow 255, and a counter has to fit


def slug(prompt: str) -> str:
    """At most 40 characters of [a-z0-9-] that remind of the prompt."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:40].strip("-") or "video"


def resolve_output(output: str | None, prompt: str, seed: int, overwrite: bool) -> tuple[Path, bool]:
    """(path of the MP4, whether the name may still be numbered).

    output: a file name ending in .mp4, a folder, or None for outputs/. In a folder the name is <slug>-<seed>.mp4, and
    "-2" and so on is put behind it until it is free. A named file must be free, unless `overwrite`.
    Raises FpsgenError: USAGE for a name that is no MP4's, DISK where nothing can be written.
    """
    path = Path(output or OUTPUT_FOLDER)
    if "://" in (output or ""):
        raise FpsgenError(f"-o {show(output)} is an address", "name a file or a folder on this machine", USAGE)
    if any(len(os.fsencode(part)) > _MAX_NAME for part in path.parts):
        raise FpsgenError(f"-o {show(output)} has a name of more than {_MAX_NAME} bytes", "choose a shorter one", USAGE)
    folder = output is None or output.endswith(("/", os.sep)) or path.is_dir()
    if folder:
        path = path / f"{slug(prompt)}-{seed}{_SUFFIX}"
    elif path.exists() and not path.is_file():
        raise FpsgenError(f"-o {show(output)} is a device or pipe", "name a file ending in .mp4, or a folder", DISK)
    elif path.suffix.lower() != _SUFFIX or len(path.name) == len(_SUFFIX):
        remedy = f"for example -o {show(path.stem or 'video')}.mp4, or a folder: -o {show(output)}/"
        raise FpsgenError(f"-o {show(output)} does not end in .mp4", remedy, USAGE)
    check_writable(path.parent)
    if folder and not overwrite:
        path = free_name(path)
    elif not overwrite:
        for taken in (path, sidecar(path)):
            if os.path.lexists(taken):
                raise FpsgenError(f"{show(taken)} exists already", "choose another name, or add --overwrite", DISK)
    return path, folder


def free_name(path: Path) -> Path:
    """`path`, or the same with -2, -3 ... behind its stem, such that neither it nor its sidecar exists."""
    candidate, number = path, 1
    while os.path.lexists(candidate) or os.path.lexists(sidecar(candidate)):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def sidecar(path: Path) -> Path:
    """The JSON file beside an MP4."""
    return path.with_suffix(".json")


def check_writable(folder: Path) -> None:
    """Raise FpsgenError DISK unless files can be made in `folder`, or it can be made first. Changes nothing."""
    standing = folder.absolute()
    while not os.path.lexists(standing) and standing != standing.parent:
        standing = standing.parent
    elsewhere = "choose another place with -o"
    if not standing.is_dir():
        raise FpsgenError(f"{show(standing)} is not a folder", elsewhere, DISK)
    if not os.access(standing, os.W_OK | os.X_OK):
        raise FpsgenError(f"folder {show(standing)} is not writable", elsewhere, DISK)
    if shutil.disk_usage(standing).free < 1 << 16:
        raise FpsgenError(f"the disk of {show(standing)} is full", f"free some space, or {elsewhere}", DISK)
