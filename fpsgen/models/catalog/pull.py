"""Fetch a model into the Hugging Face cache: only what fpsgen loads, every file checked, usable only when whole.

huggingface_hub does the transfer (HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there, and an
interrupted transfer resumes); model_index.json, by which a model counts as being there, comes last.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.errors import DISK, MODEL, NETWORK, FpsgenError
from fpsgen.files import write_text
from fpsgen.models.catalog.folder import PARTS, WEIGHTED, check_folder
from fpsgen.models.catalog.registry import cached
from fpsgen.models.catalog.verify import mismatch

INDEX = "model_index.json"
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_SMALL = re.compile(r"[\w.-]+\.(json|model|txt)")
_ROOM = 1 << 26  # bytes that must stay free


@dataclass(frozen=True)
class Pulled:
    """folder: the snapshot. files, size: all of them, in bytes. fetched: bytes that came over the network now."""

    folder: Path
    revision: str
    files: int
    size: int
    fetched: int


def pull(
    repository: str,
    revision: str,
    told: Callable[[str, int, int], None],
    note: Callable[[str], None] = lambda text: None,
) -> Pulled:
    """Fetch what is missing of a hub repository at a branch, tag or commit.

    told(file, done, total): bytes over all files, as they come. Raises FpsgenError: NETWORK (no connection, offline),
    MODEL (no such repository, gated, not a Wan pipeline, a file that is not what the hub says), DISK.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE

    with_advice = _Advice(repository, revision)
    with with_advice:
        found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    commit = str(found.sha)
    siblings = {file.rfilename: file for file in found.siblings or [] if _wanted(file.rfilename)}
    if INDEX not in siblings:
        raise FpsgenError(
            f"{repository} has no {INDEX}: it is no diffusers pipeline",
            "choose a Wan2.1 model in diffusers' format, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            MODEL,
        )
    sizes = {name: int(file.size or 0) for name, file in siblings.items()}
    present = {name: path for name in siblings if (path := _present(repository, commit, name, sizes[name]))}
    missing = [name for name in sorted(siblings, key=lambda name: (name == INDEX, name)) if name not in present]
    total, start = sum(sizes.values()), sum(sizes[name] for name in present)
    _check_room(Path(HF_HUB_CACHE), total - start)
    done = start
    for name in missing:
        note(name)
        bar = _bar(lambda count, name=name, base=done: told(name, base + count, total))
        with with_advice:
            path = Path(hf_hub_download(repository, name, revision=commit, tqdm_class=bar))
        wrong = mismatch(path, _digest(siblings[name]))
        if wrong:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise FpsgenError(
                f"{name} of {repository} came out wrong: {wrong}", "it was removed; pull again to fetch it again", MODEL
            )
        done += sizes[name]
        told(name, done, total)
    if commit != revision:
        _point(Path(HF_HUB_CACHE), repository, revision, commit)
    folder = cached(repository, commit)
    if folder is None:
        raise FpsgenError(f"{repository} is not in the cache after all", "pull again", MODEL)
    check_folder(folder)
    return Pulled(folder, commit, len(siblings), total, total - start)


def _wanted(name: str) -> bool:
    """Whether fpsgen reads this file of a pipeline."""
    part, _, file = name.rpartition("/")
    if not part:
        return file in (INDEX, "schedule.toml")
    if part in WEIGHTED:
        return file == "config.json" or bool(_WEIGHTS.fullmatch(file))
    return part in PARTS and bool(_SMALL.fullmatch(file))


def _present(repository: str, commit: str, name: str, size: int) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, revision=commit)
    return Path(path) if isinstance(path, str) and Path(path).stat().st_size == size else None


def _digest(file: Any) -> str:
    """What the hub says of a file: sha256 for large ones, else git's blob id."""
    return str(file.lfs.sha256 if file.lfs else file.blob_id or "")


def _point(cache: Path, repository: str, revision: str, commit: str) -> None:
    """Let the cache know which commit a branch or tag was (as huggingface_hub writes it)."""
    path = cache / f"models--{repository.replace('/', '--')}" / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(commit, path, overwrite=True)


def _check_room(cache: Path, needed: int) -> None:
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed and free < needed + _ROOM:
        what = f"{needed / 1e9:.1f} GB are to come, and {cache} has {free / 1e9:.1f} GB left"
        raise FpsgenError(what, "free some space, or set HF_HOME to a larger disk", DISK)


def _bar(told: Callable[[int], None]) -> Any:
    """A class that takes the place of tqdm's for one file and passes its count on."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._count = int(kwargs.get("initial") or 0)
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            told(self._count)

        def update(self, n: float | None = 1) -> bool | None:
            self._count += int(n or 0)
            told(self._count)
            return None

    return Bar


class _Advice:
    """Turns what huggingface_hub raises within the block into two lines and a code."""

    def __init__(self, repository: str, revision: str) -> None:
        self._repository, self._revision = repository, revision

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, FpsgenError):
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> FpsgenError:
        from huggingface_hub import errors as hub
        from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

        name = self._repository
        if isinstance(error, hub.GatedRepoError):
            remedy = f"accept its terms at {ENDPOINT}/{name}, then: hf auth login (or set HF_TOKEN)"
            return FpsgenError(f"{name} is gated", remedy, MODEL)
        if isinstance(error, hub.RevisionNotFoundError):
            return FpsgenError(f"{name} has no revision {self._revision!r}", "name a branch, tag or commit", MODEL)
        if isinstance(error, hub.RepositoryNotFoundError):
            remedy = "check the name; for a private one: hf auth login (or set HF_TOKEN)"
            return FpsgenError(f"{name} was not found at {ENDPOINT}", remedy, MODEL)
        if HF_HUB_OFFLINE or isinstance(error, hub.OfflineModeIsEnabled):
            what = f"{name} is not on this machine, and HF_HUB_OFFLINE is set"
            return FpsgenError(what, "unset HF_HUB_OFFLINE, or copy the Hugging Face cache of another machine", NETWORK)
        if isinstance(error, OSError) and error.errno in (28, 122):  # no space, quota
            return FpsgenError(f"the disk is full: {error.strerror}", "free some space, or set HF_HOME", DISK)
        text = " ".join(str(error).split())[:160] or type(error).__name__
        remedy = "check the connection (or HF_ENDPOINT), then pull again: it goes on where it stopped"
        return FpsgenError(f"{ENDPOINT} did not answer as it should: {text}", remedy, NETWORK)
