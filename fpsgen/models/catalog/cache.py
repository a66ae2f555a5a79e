"""Where models lie: the Hugging Face cache, in the layout that all its tools share.

models--OWNER--NAME/ holds blobs/DIGEST, snapshots/COMMIT/NAME (links to blobs) and refs/BRANCH (a commit). Nothing is
written or removed before its path was seen to lie in that folder.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen.assets import weights_dir
from fpsgen.errors import DISK, MODEL, FpsgenError
from fpsgen.files import lock, read_text, write_text
from fpsgen.models.catalog.folder import INDEX
from fpsgen.models.catalog.hub import hub_settings, is_digest
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.models.catalog.registry import ModelSpec

HUB_ID = re.compile(r"(?!.*(\.\.|--))\w[\w.-]*/\w[\w.-]*", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


class RepositoryCache:
    """One repository's folder in the cache. repository: OWNER/NAME, as HUB_ID takes it."""

    def __init__(self, cache: Path, repository: str) -> None:
        if not HUB_ID.fullmatch(repository):
            raise FpsgenError(f"{show(repository)!r} is no OWNER/REPOSITORY", "check the name", MODEL)
        name = f"models--{repository.replace('/', '--')}"
        self.cache, self.folder, self._locks = cache, cache / name, cache / ".locks" / name

    def snapshot(self, revision: str) -> Path | None:
        """Folder of a branch, tag or commit, None where it is not here or not whole. Raises FpsgenError MODEL where the
        cache may not be read.
        """
        commit = revision if COMMIT.fullmatch(revision) else self._commit_of(revision)
        if commit is None:
            return None
        folder = self.folder / "snapshots" / commit
        return folder if self._is_file(folder / INDEX) else None

    def blob(self, digest: str) -> Path:
        """Path of a file by its digest. Raises FpsgenError MODEL for a text that is no digest."""
        if not is_digest(digest):
            raise FpsgenError(
                f"{show(digest, 80)!r} is not the digest of a file", "set HF_ENDPOINT to another server", MODEL
            )
        return self.inside(self.folder / "blobs" / digest)

    def partial(self, digest: str, size: int) -> Path:
        """Path of a file that is still coming in. What an earlier run, or huggingface_hub, left of it is taken up:
        the longest beginning stays, under this name; the others go. To be called with the digest's lock held.
        """
        blob = self.blob(digest)
        _make(blob.parent)
        own = blob.with_name(f"{digest}.incomplete")
        if own.is_symlink() or not own.is_file():  # a link leads elsewhere, a pipe never ends
            with _in_cache(own):
                own.unlink(missing_ok=True)
        found = self._partials(digest)
        usable = [path for path in found if path.stat().st_size <= size]
        best = max(usable, key=lambda path: path.stat().st_size, default=None)
        for path in found:
            if path != best:
                path.unlink(missing_ok=True)
        if best is not None and best != own:
            os.replace(best, own)
        return own

    def begun(self, digest: str) -> int:
        """Bytes of a file that an earlier run has brought."""
        return max((path.stat().st_size for path in self._partials(digest)), default=0)

    def _partials(self, digest: str) -> list[Path]:
        found = self.blob(digest).parent.glob(f"{digest}.*incomplete")
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def link(self, commit: str, name: str, digest: str) -> Path:
        """Give a blob its name in a snapshot."""
        target, path = self.blob(digest), self.snapshot_path(commit, name)
        _make(path.parent)
        relative = os.path.relpath(target, path.parent)
        if not (path.is_symlink() and os.readlink(path) == relative):
            with _in_cache(path):
                path.unlink(missing_ok=True)
                try:
                    os.symlink(relative, path)
                except OSError:  # a file system without links
                    os.replace(target, path)
        return path

    def snapshot_path(self, commit: str, name: str) -> Path:
        """Path of a file in a snapshot, seen to lie in it."""
        if not COMMIT.fullmatch(commit):
            raise FpsgenError(f"{show(commit, 80)!r} is not a commit", "set HF_ENDPOINT to another server", MODEL)
        return self.inside(self.folder / "snapshots" / commit / name)

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit a branch or tag is."""
        path = self.inside(self.folder / "refs" / revision)
        _make(path.parent)
        with _in_cache(path):
            write_text(commit, path, overwrite=True)

    def remove(self) -> int:
        """Remove the repository, all its revisions; returns the bytes that this freed. Raises FpsgenError DISK."""
        size = self.size()
        try:
            if self.folder.is_symlink():
                raise OSError("it is a link; remove it by hand")
            shutil.rmtree(self.folder)
            shutil.rmtree(self._locks, ignore_errors=True)
        except OSError as error:
            raise FpsgenError(
                f"{self.folder} cannot be removed: {error.strerror or error}", "check its permissions", DISK
            ) from error
        return size

    def size(self) -> int:
        """Bytes on disk, each blob counted once."""
        files = (Path(top) / name for top, _, names in os.walk(self.folder) for name in names)
        return sum(path.lstat().st_size for path in files if not path.is_symlink())

    def inside(self, path: Path) -> Path:
        """The path, if it lies in the repository's folder and no link on its way leads anywhere else. Raises
        FpsgenError MODEL.
        """
        parent, right = path.parent, path.name not in ("", ".", "..") and path.is_relative_to(self.folder)
        if not right or parent.resolve() != self.folder.resolve() / parent.relative_to(self.folder):
            what = f"{show(path, 300)} does not lie in the folder of its repository"
            raise FpsgenError(what, "remove the links in that folder, or set HF_HOME to another", MODEL)
        return path

    @contextmanager
    def locked(self, digest: str, busy: str) -> Iterator[None]:
        """Hold the lock that huggingface_hub takes as well while it fetches this file. Raises FpsgenError LOCKED."""
        _make(self._locks)
        path = self._locks / f"{self.blob(digest).name}.lock"
        with ExitStack() as held:
            with _in_cache(path):
                held.enter_context(lock(path, busy, "wait until it has ended, then pull again"))
            yield

    def _is_file(self, path: Path) -> bool:
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            what = f"the model cache {show(self.cache, 300)} cannot be read: {error.strerror}"
            raise FpsgenError(what, "check its permissions, or set HF_HOME to another folder", MODEL) from error

    def _commit_of(self, revision: str) -> str | None:
        if not REVISION.fullmatch(revision) or not self._is_file(self.folder / "refs" / revision):
            return None
        with suppress(FpsgenError):
            text = read_text(self.folder / "refs" / revision, 100, "a revision of the cache").strip()
            return text if COMMIT.fullmatch(text) else None
        return None


def _make(folder: Path) -> None:
    with _in_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _in_cache(path: Path) -> Iterator[None]:
    """What cannot be written in the block is FpsgenError DISK about the cache."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise FpsgenError(
            what, "check that place and its permissions, or set HF_HOME to another folder", DISK
        ) from error
    except FpsgenError as error:
        if error.code != DISK:
            raise
        raise FpsgenError(error.message, "check that place, or set HF_HOME to another folder", DISK) from error


def cached(repository: str, revision: str) -> Path | None:
    """Snapshot of a repository in the cache, or None. Where `revision` is not there: that of "main"."""
    store = RepositoryCache(hub_settings().cache, repository)
    return store.snapshot(revision) or store.snapshot("main")


def free_disk() -> int:
    """Bytes that are free where models go."""
    place = hub_settings().cache.absolute()
    while not os.path.exists(place):
        place = place.parent
    return shutil.disk_usage(place).free


def on_disk(spec: ModelSpec) -> Path | None:
    """Folder of a model of the registry, if it is on this machine (not judged). Raises as RepositoryCache.snapshot."""
    if spec.embedded:
        folder = weights_dir() / spec.source
        return folder if (folder / INDEX).is_file() else None
    local = os.path.expanduser(spec.source)
    if os.path.isdir(local):
        return Path(local).resolve()
    return cached(spec.source, spec.revision) if fetchable(spec) else None


def fetchable(spec: ModelSpec) -> bool:
    """Whether it comes from a hub repository, and neither with fpsgen nor from a folder of this machine."""
    return not spec.embedded and HUB_ID.fullmatch(spec.source) is not None


def bytes_to_fetch(spec: ModelSpec) -> int:
    """What a pull would still bring, by the registry's figure and what the cache holds of it."""
    if on_disk(spec) is not None or not fetchable(spec):
        return 0
    here = RepositoryCache(hub_settings().cache, spec.source).size()
    return max(0, round(spec.download_gb * 1e9) - here)


def missing(name: str, spec: ModelSpec | None) -> FpsgenError:
    """The error for a model that is not on this machine, with the command that fetches it where one can."""
    if spec is not None and spec.embedded:
        return FpsgenError(
            f"model {name} is not in {weights_dir() / spec.source}", "install fpsgen again: it comes with it", MODEL
        )
    if spec is not None and not fetchable(spec):
        what = f"model {name}: there is no folder {show(spec.source)}"
        return FpsgenError(what, "put the model there, or change source in its row of models.toml", MODEL)
    size = f" ({spec.download_gb:g} GB)" if spec is not None and spec.download_gb else ""
    return FpsgenError(f"model {name} is not on this machine{size}", f"fetch it: fpsgen models pull {name}", MODEL)
