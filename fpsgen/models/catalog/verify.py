"""Is what lies on disk what was fetched, or what came with fpsgen?

A manifest says what each file should be; in the Hugging Face cache the name of a file's blob is its digest. A full
check costs a second per 2 GB, so it is done once and a stamp is kept (stamp.py): a file that changed is checked again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from fpsgen.errors import MODEL, FpsgenError, lacks_permission, may_not_be_read
from fpsgen.models.catalog.folder import MANIFEST, broken, check_folder, folder_size, model_files, wanted
from fpsgen.models.catalog.manifest import read_manifest
from fpsgen.models.catalog.stamp import FileStats, file_stats, is_stamped, write_stamp
from fpsgen.text import show

Progress = Callable[[str, int, int], None]


def verify_folder(folder: Path, progress: Progress = lambda name, done, total: None) -> list[str]:
    """What is wrong with a model folder, file by file; empty if nothing is. progress(file, done, total): bytes.

    Every file is compared with its digest, in the manifest or in the blob's name; where there is neither, the folder
    is judged by its structure alone.
    """
    before = _stats(folder)
    wrong = _compare(folder, progress)
    try:
        check_folder(folder)
    except FpsgenError as error:
        wrong.append(error.message)
    if not wrong and _digests(folder):
        write_stamp(folder, before)
    return wrong


def check_intact(folder: Path) -> None:
    """Raise FpsgenError MODEL unless every file of the folder is what its digest says. Milliseconds, unless a file
    changed since the last full check.
    """
    before = _stats(folder)
    if is_stamped(folder, before):
        return
    wrong = _compare(folder)
    if wrong:
        raise broken(folder, wrong[0])
    if _digests(folder):
        write_stamp(folder, before)


def mark_intact(folder: Path) -> None:
    """Note that every file of a folder was compared with its digest just now, as it came."""
    write_stamp(folder, _stats(folder))


def has_digests(folder: Path) -> bool:
    """Whether anything says what the files of this folder should be."""
    return bool(_digests(folder))


def mismatch(path: Path, digest: str, source: str = "") -> str:
    """How a file differs from its digest (64 hex digits: sha256; 40: git blob id), "" where it does not. One that may
    not be read differs. source: name of what says the digest.
    """

    def git() -> hashlib._Hash:
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)

    try:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256" if len(digest) == 64 else git).hexdigest()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    says = f" as {source} says" if source else ""
    return "" if got == digest else f"its digest is {got[:12]}..., not {digest[:12]}...{says}"


def _compare(folder: Path, progress: Progress = lambda name, done, total: None) -> list[str]:
    """What is wrong, file by file, by the digests that are known. Raises FpsgenError MODEL for a file that this user
    may not read: nothing is known of it.
    """
    try:
        digests, manifest = _digests(folder), read_manifest(folder) or {}
    except FpsgenError as error:
        if lacks_permission(error):
            raise
        return [error.message]
    files = {path.relative_to(folder).as_posix(): path for path in model_files(folder)}
    total = folder_size(folder)
    wrong = [f"{name}: it is missing, and {MANIFEST} names it" for name in digests if name not in files]
    done = 0
    for name, path in files.items():
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            wrong.append(f"{name}: its blob is missing")
            continue
        except OSError as error:
            if lacks_permission(error):
                raise may_not_be_read(f"{name} of {show(folder)}", MODEL) from error
            wrong.append(f"{name}: it cannot be read: {error.strerror}")
            continue
        if not os.access(path, os.R_OK):
            raise may_not_be_read(f"{name} of {show(folder)}", MODEL)
        progress(name, done, total)
        problem = ""
        if name in manifest and size != manifest[name][0]:
            problem = f"it has {size} bytes, not {manifest[name][0]} as {MANIFEST} says"
        elif name in digests:
            problem = mismatch(path, digests[name], MANIFEST if name in manifest else "")
        elif digests and wanted(name) and name != MANIFEST:
            problem = f"{MANIFEST} does not name it" if manifest else "no digest is known for it"
        if not problem and path.suffix == ".safetensors":
            problem = _malformed(path)
        if problem:
            wrong.append(f"{name}: {problem}")
        done += size
        progress(name, done, total)
    return wrong


def _digests(folder: Path) -> dict[str, str]:
    """Name -> digest of the files that have one. Raises FpsgenError MODEL for a manifest that cannot be read."""
    digests = {name: digest for name, (_, digest) in (read_manifest(folder) or {}).items()}
    for path in model_files(folder):
        blob = path.resolve()
        if path.is_symlink() and blob.parent.name == "blobs" and len(blob.name) in (40, 64):
            digests.setdefault(path.relative_to(folder).as_posix(), blob.name)
    return digests


def _malformed(path: Path) -> str:
    """What is wrong with the layout of a safetensors file: its header, its length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return ""
    except (SafetensorError, OSError, ValueError) as error:
        return f"it is no whole safetensors file ({str(error).splitlines()[0][:100]})"


def _stats(folder: Path) -> FileStats:
    return file_stats(folder, model_files(folder))
