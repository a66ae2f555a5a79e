"""Is what lies on disk what was fetched? In the Hugging Face cache the name of a file's blob is its digest."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

from fpsgen.errors import FpsgenError
from fpsgen.models.catalog.folder import check_folder

_CHUNK = 1 << 22


def verify_folder(folder: Path, told: Callable[[str, int, int], None]) -> list[str]:
    """What is wrong with a model folder, file by file; empty if nothing is.

    Files of the hub's cache are hashed against the digest in their blob's name; safetensors elsewhere are checked to
    be as long as their header says. told(file, done, total): bytes.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    total = sum(path.stat().st_size for path in files if path.exists())
    wrong, done = [], 0
    for path in files:
        name = path.relative_to(folder).as_posix()
        if not path.exists():
            wrong.append(f"{name}: its blob is missing")
            continue
        told(name, done, total)
        blob = path.resolve().name if path.is_symlink() else ""
        problem = mismatch(path, blob) if blob else _short(path)
        if problem:
            wrong.append(f"{name}: {problem}")
        done += path.stat().st_size
        told(name, done, total)
    try:
        check_folder(folder)
    except FpsgenError as error:
        wrong.append(error.message)
    return wrong


def mismatch(path: Path, digest: str) -> str:
    """How a file differs from its digest (64 hex digits: sha256; 40: git blob id), "" where it does not."""
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        found = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", digest):
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return f"no digest is known for it ({digest[:20]!r})"
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    got = found.hexdigest()
    return "" if got == digest else f"its digest is {got[:12]}..., not {digest[:12]}..."


def _short(path: Path) -> str:
    """What is wrong with the length of a safetensors file, "" for others."""
    if path.suffix != ".safetensors":
        return ""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return "it is no safetensors file"
    return "" if wanted == size else f"it has {size} bytes, not {wanted}"
