"""`fpsgen models`: what there is, what is on disk; fetch, check, remove."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fpsgen.cli import console, options
from fpsgen.errors import MODEL, USAGE, FpsgenError
from fpsgen.report.lines import amount
from fpsgen.text import show

app = typer.Typer(
    name="models",
    help="List, fetch, check and remove models.",
    cls=options.Group,
    context_settings=options.CONTEXT,
    pretty_exceptions_enable=False,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="nano, wan2.1-1.3b, wan2.1-14b, or OWNER/REPOSITORY.",
        show_default=False,
        autocompletion=options.complete_models,
    ),
]


@app.command("list", cls=options.Command)
def list_models(as_json: options.Json = False) -> None:
    """List the models that fpsgen knows by name, and which of them are on this machine."""
    from fpsgen.models.catalog.registry import models, on_disk

    rows = []
    for spec in models():
        folder = on_disk(spec)
        size = folder_size(folder) if folder else 0
        rows.append(
            {
                "name": spec.name,
                "source": spec.source,
                "revision": spec.revision,
                "parameters_b": spec.parameters,
                "download_gb": spec.download_gb,
                "bytes_on_disk": size,
                "path": str(folder) if folder else None,
                "min_memory_gb": spec.min_memory_gb,
                "trained_schedule": spec.trained_schedule,
                "licence": spec.licence,
                "description": spec.description,
            }
        )
    if as_json:
        console.print_json("models", rows)
        return
    lines = [("name", "parameters", "download", "on disk", "GPU memory", "licence")]
    for row in rows:
        lines.append(
            (
                row["name"],
                f"{row['parameters_b'] * 1e3:.0f} M" if row["parameters_b"] < 1 else f"{row['parameters_b']:g} B",
                f"{row['download_gb']:g} GB" if row["download_gb"] else "-",
                amount(row["bytes_on_disk"]) if row["path"] else "no",
                f"{row['min_memory_gb']:g} GB" if row["min_memory_gb"] else "none",
                row["licence"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command(cls=options.Command)
def pull(
    name: Name,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="A branch, tag or commit.", show_default=False)
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a model into the Hugging Face cache; what is there already is not fetched again.

    Exit codes: 5 not found or not intact, 7 disk, 8 network. HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE hold.
    """
    from fpsgen.models.catalog.registry import on_disk

    spec, source = known(name)
    if spec is not None and spec.embedded:
        console.note(f"{spec.name} comes with fpsgen: nothing to fetch")
        _result("pull", {"name": name, "path": str(on_disk(spec)), "fetched_bytes": 0}, as_json)
        return
    if spec is not None and Path(spec.source).expanduser().is_dir():
        raise FpsgenError(f"{name} is the folder {spec.source}", "it needs no fetching", USAGE)
    console.quiet_libraries(console.debugging(bool(debug)))
    wanted = revision or (spec.revision if spec is not None else "main")
    if _complete(source, wanted):
        console.note(f"{name} is on this machine already")
        from fpsgen.models.catalog.registry import cached

        _result("pull", {"name": name, "path": str(cached(source, wanted)), "fetched_bytes": 0}, as_json)
        return
    from fpsgen.models.catalog.pull import pull as fetch

    with Bytes(bool(quiet), f"pull {source}") as told:
        done = fetch(source, wanted, told)
    if not quiet:
        console.note(f"{done.files} files, {amount(done.size)}, of which {amount(done.fetched)} came now; all checked")
    row = {"name": name, "path": str(done.folder), "revision": done.revision, "fetched_bytes": done.fetched}
    _result("pull", row, as_json)


@app.command(cls=options.Command)
def path(name: Name, as_json: options.Json = False) -> None:
    """Print the folder of a model that is on this machine (exit 5 if it is not)."""
    from fpsgen.models.catalog.registry import resolve

    folder = resolve(name)[1]
    _result("path", {"name": name, "path": str(folder)}, as_json)


@app.command(cls=options.Command)
def verify(name: Name, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Check every file of a model against its digest (exit 5 where one is wrong)."""
    from fpsgen.models.catalog.registry import cached, missing, on_disk
    from fpsgen.models.catalog.verify import verify_folder

    spec, source = known(name)
    folder = on_disk(spec) if spec is not None else cached(source, "main")
    if folder is None:
        raise missing(name, spec)
    with Bytes(bool(quiet), f"verify {name}") as told:
        wrong = verify_folder(folder, told)
    if wrong:
        for text in wrong[1:]:
            console.note(f"also {text}")
        remedy = "install fpsgen again" if spec and spec.embedded else f"fpsgen models rm {name}, then pull it again"
        raise FpsgenError(f"{name} is not intact: {wrong[0]}", remedy, MODEL)
    console.note(f"{name} is intact")
    _result("verify", {"name": name, "path": str(folder)}, as_json)


@app.command(cls=options.Command)
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)] = False,
    as_json: options.Json = False,
) -> None:
    """Remove a model from the Hugging Face cache, all its revisions."""
    from fpsgen.models.catalog.registry import missing

    spec, source = known(name)
    if spec is not None and spec.embedded:
        raise FpsgenError(f"{name} is part of fpsgen and is not removed", "pip uninstall fpsgen takes it along", USAGE)
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_id == source and repo.repo_type == "model"]
    except CacheNotFound:
        repos = []
    if not repos:
        raise missing(name, spec)
    size = repos[0].size_on_disk
    console.note(f"{repos[0].repo_path}: {len(repos[0].revisions)} revision(s), {amount(size)}")
    if not yes:
        if not sys.stdin.isatty():
            raise FpsgenError("nobody is there to be asked", "add --yes", USAGE)
        if not typer.confirm("remove it?", err=True):
            raise typer.Exit(1)
    scan_cache_dir().delete_revisions(*(revision.commit_hash for revision in repos[0].revisions)).execute()
    _result("rm", {"name": name, "path": str(repos[0].repo_path), "freed_bytes": size}, as_json)


def known(name: str) -> tuple[Any, str]:
    """(spec of a name of the registry or None, hub repository). Raises FpsgenError MODEL."""
    from fpsgen.models.catalog.registry import HUB_ID, models

    spec = next((spec for spec in models() if name in (spec.name, spec.source)), None)
    if spec is not None:
        return spec, spec.source
    if HUB_ID.fullmatch(name):
        return None, name
    names = ", ".join(spec.name for spec in models())
    raise FpsgenError(f"no model is named {show(name)!r}", f"choose from {names}, or OWNER/REPOSITORY", MODEL)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _complete(source: str, revision: str) -> bool:
    """Whether a pinned commit is whole on disk; a branch may have moved, unless nothing can be asked."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from fpsgen.models.catalog.folder import check_folder
    from fpsgen.models.catalog.registry import cached

    folder = cached(source, revision)
    if folder is None or not (folder.name == revision or HF_HUB_OFFLINE):
        return False
    try:
        check_folder(folder)
    except FpsgenError:
        return False
    return True


def _result(command: str, row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(f"models {command}", [row])
    else:
        print(row["path"], flush=True)


class Bytes:
    """Bytes as they pass: a bar on a terminal, a line for every tenth elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool, title: str) -> None:
        self._quiet, self._title = quiet, title
        self._bar: Any = None
        self._tenth = 0
        self._start = time.monotonic()
        self._first = -1

    def __enter__(self) -> Bytes:
        if not self._quiet and console.can_draw():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            columns = (TextColumn("{task.description}", markup=False), BarColumn(16), DownloadColumn(), Speed())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.add_task(self._title, total=None)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(0, completed=done, total=total, description=name[-30:])
            return
        self._first = done if self._first < 0 else self._first
        tenth = done * 10 // total if total else 10
        if self._quiet or tenth <= self._tenth:
            return
        self._tenth = tenth
        pace = (done - self._first) / max(time.monotonic() - self._start, 1e-3)
        console.note(f"{self._title}  {amount(done)} of {amount(total)}, {amount(pace)}/s")
