"""Fetch a model into the Hugging Face cache: only what fpsgen loads, every file checked, usable only when whole.

A transfer that was cut short goes on where it stopped, also in another run and after a kill: what has come lies in
blobs/DIGEST.incomplete. Small files come first and are judged before any weights are fetched. model_index.json, by
which a model counts as being there, is read first and linked last.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fpsgen.errors import DISK, MODEL, NETWORK, USAGE, FpsgenError
from fpsgen.files import sync
from fpsgen.models.catalog.cache import REVISION, RepositoryCache, free_disk
from fpsgen.models.catalog.folder import (
    INDEX,
    PICKLES,
    STEMS,
    TOKENIZER_FILES,
    WEIGHTED,
    broken,
    check_configs,
    check_folder,
    check_index,
    read_json,
    shards,
    wanted,
)
from fpsgen.models.catalog.hub import (
    STALLED,
    STALLED_SECONDS,
    HubSettings,
    RemoteFile,
    file_address,
    hub_settings,
    is_digest,
    read_listing,
    request,
)
from fpsgen.models.catalog.verify import mark_intact, mismatch
from fpsgen.text import show

_ROOM = 1 << 26  # bytes that must stay free
_ATTEMPTS = 3  # in a row that bring less than _PROGRESS bytes
_PROGRESS = 1 << 20
_PAUSE = 1.0  # seconds between them

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pulled:
    """folder: the snapshot. files, size: all of them, in bytes. fetched: bytes that came over the network now."""

    folder: Path
    revision: str
    files: int
    size: int
    fetched: int


def pull(repository: str, revision: str, progress: Progress = lambda name, done, total: None) -> Pulled:
    """Fetch what is missing of a hub repository at a branch, tag or commit.

    progress(file, done, total): bytes over all files, as they come. Raises FpsgenError: NETWORK (no connection,
    offline), MODEL (no such repository, gated, not a Wan pipeline, a file that is not what the hub says), DISK, LOCKED.
    """
    hub = hub_settings()
    store = RepositoryCache(hub.cache, repository)
    if not REVISION.fullmatch(revision):
        raise FpsgenError(f"{show(revision)!r} is no revision", "name a branch, tag or commit", USAGE)
    commit, listed = read_listing(hub, repository, revision)
    files = _wanted_files(hub, repository, listed)
    for file in files:
        store.snapshot_path(commit, file.name)
        store.blob(file.digest)
    here = {file: path for file in files if (path := _present(store, commit, file))}
    total, done = sum(file.size for file in files), sum(file.size for file in here)
    to_come = {file.digest: file.size - store.begun(file.digest) for file in files if file not in here}
    _check_room(hub, sum(to_come.values()))
    came = 0
    judged = False
    for file in files:
        if not judged and _is_weights(file):
            _judge({other.name: here[other] for other in files if not _is_weights(other)}, files, repository)
            judged = True
        if file not in here and store.blob(file.digest) not in here.values():
            report = _counting(progress, file.name, done, total)
            came += _fetch(hub, store, repository, commit, file, report)
        if file not in here:
            here[file] = store.blob(file.digest)
            done += file.size
            progress(file.name, done, total)
        if file.name == INDEX:
            check_index(read_json(here[file], f"{INDEX} of {repository}"), repository)
    for file in reversed(files):
        if here[file] == store.blob(file.digest):
            store.link(commit, file.name, file.digest)
    if commit != revision:
        store.remember(revision, commit)
    folder = store.snapshot(commit)
    if folder is None:
        raise FpsgenError(f"{repository} is not in the cache after all", "pull again", MODEL)
    check_folder(folder)
    mark_intact(folder)
    return Pulled(folder, commit, len(files), total, came)


def _is_weights(file: RemoteFile) -> bool:
    return file.name.endswith(".safetensors")


def _judge(small: dict[str, Path], files: list[RemoteFile], repository: str) -> None:
    """Raise FpsgenError MODEL where configurations or the indices of weights cannot be used. small: what is here."""

    def path_of(name: str) -> Path:
        if name not in small:
            raise broken(repository, f"{name} is missing")
        return small[name]

    names = {file.name for file in files}
    check_configs(repository, path_of)
    for part in WEIGHTED:
        index = small.get(f"{part}/{STEMS[part]}.safetensors.index.json")
        if index is not None:
            shards(index, part, repository, {name.removeprefix(f"{part}/") for name in names}.__contains__)
    if not any(f"tokenizer/{name}" in names for name in TOKENIZER_FILES):
        raise broken(repository, "the tokenizer's files are missing")


def _counting(progress: Progress, name: str, before: int, total: int) -> Callable[[int], None]:
    return lambda count: progress(name, before + count, total)


def _wanted_files(hub: HubSettings, repository: str, listed: list[RemoteFile]) -> list[RemoteFile]:
    """What fpsgen reads of a pipeline, model_index.json first. Raises FpsgenError MODEL for what is no Wan pipeline
    with safetensors weights, or where a digest is none.
    """
    found = {file.name: file for file in listed if wanted(file.name)}
    names = {file.name for file in listed}
    if INDEX not in found:
        remedy = "choose a Wan2.1 model in diffusers' format, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        raise FpsgenError(f"{repository} has no {INDEX}: it is no diffusers pipeline", remedy, MODEL)
    for part in WEIGHTED:
        if not any(name.startswith(f"{part}/") and name.endswith(".safetensors") for name in found):
            pickled = sorted(name for name in names if name.startswith(f"{part}/") and name.endswith(PICKLES))
            what = f"{part} as a pickle only ({pickled[0]}), which can run code" if pickled else f"no weights of {part}"
            raise FpsgenError(f"{repository} has {show(what)}", "choose a model whose weights are safetensors", MODEL)
    for file in found.values():
        if not is_digest(file.digest):
            what = f"{hub.shown} gives {show(file.digest, 60)!r} as the digest of {file.name} of {repository}"
            raise FpsgenError(what, "set HF_ENDPOINT to another server, or unset it", MODEL)
    return sorted(found.values(), key=lambda file: (file.name != INDEX, _is_weights(file), file.size, file.name))


def _present(store: RepositoryCache, commit: str, file: RemoteFile) -> Path | None:
    """Where a file is, if it is what it should be; one that is not is removed."""
    for path in (store.blob(file.digest), store.snapshot_path(commit, file.name)):
        if path.is_file() and not path.is_symlink():
            if path.stat().st_size == file.size and not mismatch(path, file.digest):
                return path
            path.unlink()
    return None


def _fetch(
    hub: HubSettings,
    store: RepositoryCache,
    repository: str,
    commit: str,
    file: RemoteFile,
    progress: Callable[[int], None],
) -> int:
    """Bring one blob in and return the bytes that came. Raises FpsgenError."""
    what = f"{file.name} of {repository}"
    address = file_address(hub, repository, commit, file.name)
    blob = store.blob(file.digest)
    came, wrong = 0, ""
    try:
        with store.locked(file.digest, f"another run is fetching {what}"):
            partial = store.partial(file.digest, file.size)
            resumed = _size(partial) > 0
            for _ in range(1 + resumed):  # once more from the start, if what an earlier run left was wrong
                came += _receive(hub, address, what, file.size, partial, progress)
                wrong = mismatch(partial, file.digest)
                if not wrong:
                    sync(partial)
                    os.replace(partial, blob)
                    sync(blob.parent)
                    return came
                partial.unlink()
    except OSError as error:
        what = f"{what} cannot be written: {show(error.strerror or error)}"
        raise FpsgenError(what, "free some space, or set HF_HOME to a larger disk", DISK) from error
    raise FpsgenError(f"{what} came out wrong: {wrong}", "it was removed; pull again to fetch it again", MODEL)


def _receive(
    hub: HubSettings, address: str, what: str, size: int, partial: Path, progress: Callable[[int], None]
) -> int:
    """Append what is missing of a file to `partial`; transfers that break off are taken up again. Returns the bytes
    that came. Raises FpsgenError NETWORK, MODEL; OSError.
    """
    came = failures = 0
    while True:
        before = _size(partial)
        try:
            _receive_once(hub, address, what, size, partial, progress)
            return came + _size(partial) - before
        except FpsgenError as error:
            brought = max(0, _size(partial) - before)
            came, failures = came + brought, 0 if brought >= _PROGRESS else failures + 1
            if error.code != NETWORK or hub.offline or failures >= _ATTEMPTS:
                raise
            time.sleep(_PAUSE)


def _receive_once(
    hub: HubSettings, address: str, what: str, size: int, partial: Path, progress: Callable[[int], None]
) -> None:
    have = _size(partial)
    progress(have)
    if have == size and size:
        return
    with request(hub, address, what, have) as response, partial.open("ab") as file:
        if have and (response.status_code != 206 or not _begins_at(response, have)):
            file.truncate(0)  # the server sends it from the start, or has no such part
            have = 0
        if response.status_code == 416:
            raise _broken_off(hub, what, "it has no such part")
        since, counted = time.monotonic(), 0
        for part in response.iter_bytes():
            if have + len(part) > size:
                raise FpsgenError(f"{hub.shown} sends more of {what} than it said", "pull again later", MODEL)
            file.write(part)
            file.flush()
            have += len(part)
            counted += len(part)
            progress(have)
            now = time.monotonic()
            if now - since > STALLED_SECONDS:
                if counted < STALLED * (now - since):
                    raise _broken_off(hub, what, "it has all but stopped")
                since, counted = now, 0
        if have < size:
            raise _broken_off(hub, what, f"it ended after {have} of {size} bytes")


def _begins_at(response: object, start: int) -> bool:
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))  # pyright: ignore
    return given is not None and int(given[1]) == start


def _broken_off(hub: HubSettings, what: str, why: str) -> FpsgenError:
    remedy = "check the connection, then pull again: it goes on where it stopped"
    return FpsgenError(f"the transfer of {what} from {hub.shown} broke off: {why}", remedy, NETWORK)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_room(hub: HubSettings, needed: int) -> None:
    free = free_disk() if needed else 0
    if needed and free < needed + _ROOM:
        what = f"{needed / 1e9:.1f} GB are to come, and {hub.cache} has {free / 1e9:.1f} GB left"
        raise FpsgenError(what, "free some space, or set HF_HOME to a larger disk", DISK)
