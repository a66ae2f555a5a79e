"""Where the video goes: a name without surprises, checked before any work is done; and how it gets there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen.errors import DISK, USAGE, FpsgenError
from fpsgen.files import OWN_PREFIX, absolute, make_folder, write_text
from fpsgen.pictures import ANIMATIONS, GIF, GIF_FPS, PNG
from fpsgen.text import show

if TYPE_CHECKING:
    import numpy as np

    from fpsgen.pipeline.request import GenerateRequest

OUTPUT_FOLDER = "outputs"
FIELDS = ("slug", "seed", "n")  # of a name such as {slug}-{seed}-{n}.mp4
VIDEO = ".mp4"
KINDS = (VIDEO, *ANIMATIONS, PNG)
_FIELD = re.compile(r"\{([^{}]*)\}")
_MAX_NAME = 200  # bytes; file systems allow 255, and a counter has to fit


def slug(prompt: str) -> str:
    """At most 40 characters of [a-z0-9-] that remind of the prompt."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:40].strip("-") or "video"


def has_fields(name: str) -> bool:
    """Whether a name holds fields such as {seed}. Raises FpsgenError USAGE for a field that there is not."""
    found = _FIELD.findall(name)
    for field in found:
        if field not in FIELDS:
            known = ", ".join(f"{{{known}}}" for known in FIELDS)
            raise FpsgenError(f"-o {show(name)}: {{{show(field)}}} is not a field", f"fields are {known}", USAGE)
    return bool(found)


def fill_fields(name: str, prompt: str, seed: int, number: int) -> str:
    """The name with its fields filled in. number: of {n}."""
    values = {"slug": slug(prompt), "seed": str(seed), "n": str(number)}
    return _FIELD.sub(lambda field: values[field[1]], name)


def resolve_output(
    output: str | None,
    prompt: str,
    seed: int,
    overwrite: bool,
    frames: int | None = None,
    fps: int | None = None,
) -> tuple[Path, bool]:
    """(path of the file, whether the name may still be numbered).

    output: a file name ending in one of KINDS (.png: one frame), which may hold the fields {slug}, {seed} and {n}; a
    folder; or None for outputs/. In a folder the name is <slug>-<seed>.mp4, and "-2" and so on is put behind it until
    it is free; {n} counts from 1 until the name is free. Another name must be free, unless `overwrite`.
    frames, fps: how many there will be. Raises FpsgenError: USAGE for a name that no video has, DISK where nothing can
    be written.
    """
    numbered = False
    if output is not None and has_fields(output):
        numbered = "{n}" in output
        names = (fill_fields(output, prompt, seed, number) for number in count(1))
        output = next(name for name in names if not numbered or overwrite or not taken(Path(name)))
    path = Path(output or OUTPUT_FOLDER)
    check_name(str(path), output)
    folder = output is None or is_folder(output)
    if folder:
        path = path / f"{slug(prompt)}-{seed}{VIDEO}"
    else:
        check_file_name(str(path), output, frames, fps)
    check_writable(path.parent)
    if folder and not overwrite:
        path = free_name(path)
    elif not overwrite and (other := taken(path)):
        raise taken_by(other)
    return path, folder or numbered


def is_folder(name: str) -> bool:
    """Whether an output names a folder, which need not exist."""
    return name.endswith(("/", os.sep)) or os.path.isdir(name)


def check_name(path: str, output: str | None) -> None:
    """Raise FpsgenError USAGE for what can be no file or folder of this machine."""
    if "://" in (output or ""):
        raise FpsgenError(f"-o {show(output)} is an address", "name a file or a folder on this machine", USAGE)
    try:
        long = max(map(len, os.fsencode(path).split(b"/"))) > _MAX_NAME
    except UnicodeEncodeError:
        raise FpsgenError(f"-o {show(output)} is no name that a file can have", "choose another", USAGE) from None
    if long:
        raise FpsgenError(f"-o {show(output)} has a name of more than {_MAX_NAME} bytes", "choose a shorter one", USAGE)


def check_file_name(path: str, output: str | None, frames: int | None, fps: int | None = None) -> None:
    """Raise FpsgenError USAGE or DISK for a path that no video of so many frames, so many a second, can have."""
    stem, kind = os.path.splitext(os.path.basename(path))
    kind = kind.lower()
    if stem.startswith(OWN_PREFIX):  # the next run would remove it with what a killed one left
        raise FpsgenError(f"-o {show(output)} begins as fpsgen's own hidden files do", "choose another name", USAGE)
    for name in (path, str(sidecar(Path(path)))):
        if os.path.lexists(name) and not os.path.isfile(name) and not os.path.islink(name):
            kind = "a folder" if os.path.isdir(name) else "a device or pipe"
            raise FpsgenError(f"{show(name)} is {kind}, not a file", "choose another name with -o, or a folder", DISK)
    if kind not in KINDS:
        remedy = f"for example -o {show(stem.strip('.') or 'video')}.mp4, or a folder: -o {show(output)}/"
        raise FpsgenError(f"-o {show(output)} does not end in {', '.join(KINDS[:-1])} or {PNG}", remedy, USAGE)
    if kind == PNG and frames not in (None, 1):
        what = f"-o {show(output)} is one picture, and there are {frames} frames"
        raise FpsgenError(what, "make one with --frames 1, or name a file ending in .mp4, .gif or .webp", USAGE)
    if kind == GIF and fps is not None and fps > GIF_FPS:
        what = f"-o {show(output)}: a GIF shows at most {GIF_FPS} frames a second, not {fps}"
        raise FpsgenError(what, f"give --fps {GIF_FPS}, or name a file ending in .mp4 or .webp", USAGE)


def taken(path: Path) -> Path | None:
    """`path` or its sidecar, whichever exists."""
    return next((name for name in (path, sidecar(path)) if os.path.lexists(name)), None)


def taken_by(path: Path) -> FpsgenError:
    """The error for a name that a file has already."""
    return FpsgenError(f"{show(path)} exists already", "choose another name, or add --overwrite", DISK)


def free_name(path: Path) -> Path:
    """`path`, or the same with -2, -3 ... behind its stem, such that neither it nor its sidecar exists."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") if number > 1 else path for number in count(1))
    return next(name for name in names if not taken(name))


def sidecar(path: Path) -> Path:
    """The JSON file beside a video."""
    return path.with_suffix(".json")


def check_writable(folder: Path, option: str = "-o") -> None:
    """Raise FpsgenError DISK unless files can be made in `folder`, or it can be made first. Changes nothing.

    option: the one that names the folder.
    """
    standing = absolute(folder)
    while not os.path.lexists(standing) and standing != standing.parent:
        standing = standing.parent
    elsewhere = f"choose another place with {option}"
    if not os.path.isdir(standing):
        raise FpsgenError(f"{show(standing)} is not a folder", elsewhere, DISK)
    if not os.access(standing, os.W_OK | os.X_OK):
        raise FpsgenError(f"folder {show(standing)} is not writable", elsewhere, DISK)
    try:
        os.lstat(absolute(folder) / ("x" * 255))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # of all names together; each alone is judged by check_name
            raise FpsgenError(f"{show(folder)} is too long a path", elsewhere, DISK) from error
    usage = shutil.disk_usage(standing)
    if not usage.total:
        raise FpsgenError(f"{show(standing)} is no place for files: its file system holds none", elsewhere, DISK)
    if usage.free < 1 << 16:
        raise FpsgenError(f"the disk of {show(standing)} is full", f"free some space, or {elsewhere}", DISK)


def write_output(frames: Iterable[np.ndarray], request: GenerateRequest, recipe: dict[str, Any]) -> Path:
    """Write frames, each uint8 [H, W, 3], as what the name ends in, see KINDS. They may be read twice.

    Returns the path: another number if the name was taken meanwhile and may be numbered. Raises FpsgenError DISK.
    """
    from fpsgen.video import write_video

    output, path = request.output, request.output.path
    make_folder(path.parent)
    inside = recipe if output.metadata else None
    while True:
        try:
            if not output.overwrite and (other := taken(path)):
                raise FileExistsError(str(other))
            return write_video(frames, path, request.video.fps, inside, output.overwrite, request.video.scaled_to)
        except FileExistsError as error:
            if not output.numbered:
                what = f"{show(error)} exists by now"
                raise FpsgenError(what, "choose another name, or add --overwrite", DISK) from None
            path = free_name(path)


def write_sidecar(path: Path, recipe: dict[str, Any], report: dict[str, Any] | None, overwrite: bool) -> Path:
    """Write recipe and report beside the video at `path`. Raises FpsgenError DISK, also where such a file exists."""
    beside = sidecar(path)
    try:
        return write_text(json.dumps({"recipe": recipe, "report": report}, indent=2) + "\n", beside, overwrite)
    except FileExistsError:
        what = f"{show(beside)} exists by now"
        raise FpsgenError(what, "move it away, or add --overwrite", DISK) from None
