"""`fpsgen models`: what there is, what is on disk; show, fetch, check, remove."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpsgen.cli import console, options
from fpsgen.errors import MODEL, USAGE, FpsgenError
from fpsgen.report.lines import amount, columns
from fpsgen.text import plural, show

if TYPE_CHECKING:
    from fpsgen.models.catalog.registry import ModelSpec
    from fpsgen.models.catalog.vocabulary import Vocabulary

app = typer.Typer(
    name="models",
    help="List, show, fetch, check and remove models.",
    cls=options.Group,
    epilog=options.examples("fpsgen models list", "fpsgen models pull wan2.1-1.3b", "fpsgen models verify nano"),
    context_settings=options.CONTEXT,
    pretty_exceptions_enable=False,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="nano, wan2.1-1.3b, wan2.1-14b, OWNER/REPOSITORY, or a folder.",
        show_default=False,
        autocompletion=options.complete_models,
    ),
]


@app.command("list", cls=options.Command, epilog=options.examples("fpsgen models list"))
def list_models(as_json: options.Json = False) -> None:
    """List the models that fpsgen knows by name, and which of them are on this machine."""
    from fpsgen.models.catalog.cache import on_disk
    from fpsgen.models.catalog.registry import models

    rows = []
    for spec in models():
        folder = on_disk(spec)
        rows.append(
            {
                "name": spec.name,
                "source": spec.source,
                "revision": spec.revision,
                "parameters_b": spec.parameters,
                "download_gb": spec.download_gb,
                "bytes_on_disk": folder_size(folder) if folder else 0,
                "path": str(folder) if folder else None,
                "min_memory_gb": spec.min_memory_gb,
                "trained_schedule": spec.trained_schedule,
                "licence": spec.licence,
                "description": spec.description,
            }
        )
    if as_json:
        console.print_json("models list", rows)
        return
    lines = [["name", "parameters", "download", "on disk", "GPU memory", "licence"]]
    for row in rows:
        lines.append(
            [
                show(row["name"]),
                _parameters(row["parameters_b"]),
                f"{row['download_gb']:g} GB" if row["download_gb"] else "-",
                amount(row["bytes_on_disk"]) if row["path"] else "no",
                f"{row['min_memory_gb']:g} GB" if row["min_memory_gb"] else "none",
                show(row["licence"]),
            ]
        )
    print("\n".join(columns(lines)))


@app.command("show", cls=options.Command, epilog=options.examples("fpsgen models show nano"))
def show_model(name: Name, as_json: options.Json = False) -> None:
    """Show what is known of a model: licence, sizes, defaults, what it can do, and whether this machine can run it."""
    from fpsgen.models.catalog.cache import bytes_to_fetch
    from fpsgen.models.catalog.choice import choose
    from fpsgen.models.catalog.machine import lacks, this_machine

    choice = choose(name, missing_ok=True)
    spec, geometry, vocabulary = choice.spec, choice.geometry, choice.vocabulary
    lack = lacks(spec, this_machine())
    row: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(spec)} | {
        "path": str(choice.folder) if choice.folder else None,
        "bytes_to_fetch": bytes_to_fetch(spec),
        "lacks": lack or None,
        "scheduler": choice.pipeline.scheduler if choice.pipeline else None,
        "geometry": asdict(geometry),
        "vocabulary": None if vocabulary is None else asdict(vocabulary) | {"words": sorted(vocabulary.words)},
    }
    if as_json:
        console.print_json("models show", [row])
        return
    size = f"{spec.width}x{spec.height}, {spec.frames} frames at {spec.fps} a second"
    sampling = f"{spec.steps} steps, guidance {spec.guidance:g}, shift {spec.shift:g}"
    disk = f"{choice.folder} ({amount(folder_size(choice.folder))})" if choice.folder else "no"
    lines = [
        ["name", spec.name],
        ["what", spec.description],
        ["licence", spec.licence],
        ["source", spec.source + ("" if spec.embedded else f" at {spec.revision}")],
        [
            "on disk",
            disk if choice.folder or not row["bytes_to_fetch"] else f"no; {amount(row['bytes_to_fetch'])} to fetch",
        ],
        ["parameters", _parameters(spec.parameters)],
        ["machine", f"{lack}" if lack else "fits this one"],
        ["default", f"{size}; {sampling}"],
        *(
            ["size", f"{label} {_sizes([size])}" + _noted(spec.notes.get(label))]
            for label, size in spec.resolutions.items()
        ),
        ["makes", f"{_sizes(spec.trained_sizes)}; other sizes are scaled from these"]
        if spec.trained_sizes
        else ["makes", f"sides in multiples of {geometry.side} up to {geometry.positions * geometry.side}"],
        ["lengths", f"{geometry.temporal}n+1 frames"],
        ["prompt", f"the first {spec.max_sequence_length} tokens of it"],
        ["schedule", "its own, which its weights were trained with" if spec.trained_schedule else "none of its own"],
        *(
            [["scheduler", f"{choice.pipeline.scheduler}" + _replaced(choice.replaced_scheduler)]]
            if choice.pipeline
            else []
        ),
        *([[kind, ", ".join(words)] for kind, words in _drawn(vocabulary)] if vocabulary else []),
        ["negative", spec.negative_prompt or "(empty)"],
    ]
    for label, text in lines:
        print(f"{label:<10}  {show(text, 2000)}")


@app.command(cls=options.Command, epilog=options.examples("fpsgen models pull wan2.1-1.3b"))
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
    from fpsgen.models.catalog.cache import cached, on_disk

    spec, source = known(name)
    if spec is not None and spec.embedded:
        console.note(f"{spec.name} comes with fpsgen: nothing to fetch")
        _result("pull", {"name": name, "path": str(on_disk(spec)), "fetched_bytes": 0}, as_json)
        return
    if spec is not None and os.path.isdir(os.path.expanduser(spec.source)):
        raise FpsgenError(f"{name} is the folder {show(spec.source)}", "it needs no fetching", USAGE)
    console.quiet_libraries(console.debugging(bool(debug)))
    wanted = revision or (spec.revision if spec is not None else "main")
    if _complete(source, wanted):
        console.note(f"{name} is on this machine already")
        _result("pull", {"name": name, "path": str(cached(source, wanted)), "fetched_bytes": 0}, as_json)
        return
    from fpsgen.models.catalog.pull import pull as fetch

    with Bytes(bool(quiet), f"pull {source}") as progress:
        done = fetch(source, wanted, progress)
    if not quiet:
        console.note(
            f"{plural(done.files, 'file')}, {amount(done.size)}, of which {amount(done.fetched)} came now; all checked"
        )
    row = {"name": name, "path": str(done.folder), "revision": done.revision, "fetched_bytes": done.fetched}
    _result("pull", row, as_json)


@app.command(cls=options.Command, epilog=options.examples("fpsgen models path nano"))
def path(name: Name, as_json: options.Json = False) -> None:
    """Print the folder of a model that is on this machine (exit 5 if it is not)."""
    from fpsgen.models.catalog.choice import choose

    _result("path", {"name": name, "path": str(choose(name).folder)}, as_json)


@app.command(cls=options.Command, epilog=options.examples("fpsgen models verify nano"))
def verify(name: Name, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Check every file of a model, or of a model folder, against its digest (exit 5 where one is wrong)."""
    from fpsgen.models.catalog.cache import cached, missing, on_disk
    from fpsgen.models.catalog.verify import has_digests, verify_folder

    local = os.path.expanduser(name)
    spec, source = (None, name) if os.path.isdir(local) else known(name)
    folder = Path(local) if os.path.isdir(local) else on_disk(spec) if spec is not None else cached(source, "main")
    if folder is None:
        raise missing(name, spec)
    with Bytes(bool(quiet), f"verify {name}") as progress:
        wrong = verify_folder(folder, progress)
    if wrong:
        for text in wrong[1:]:
            console.note(f"also {text}")
        remedy = f"fpsgen models rm {name}, then pull it again"
        if os.path.isdir(local) or (spec is not None and spec.embedded):
            remedy = "make or copy the folder again" if os.path.isdir(local) else "install fpsgen again"
        raise FpsgenError(f"{show(name)} is not intact: {wrong[0]}", remedy, MODEL)
    if has_digests(folder):
        console.note(f"{name} is intact")
    else:
        console.note(f"{name} has no manifest: its structure is sound, its weights were compared with nothing")
    _result("verify", {"name": name, "path": str(folder), "digests": has_digests(folder)}, as_json)


@app.command(cls=options.Command, epilog=options.examples("fpsgen models rm wan2.1-1.3b"))
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove a model from the Hugging Face cache, all its revisions."""
    from fpsgen.models.catalog.cache import RepositoryCache, missing
    from fpsgen.models.catalog.hub import hub_settings

    spec, source = known(name)
    if spec is not None and spec.embedded:
        raise FpsgenError(f"{name} is part of fpsgen and is not removed", "pip uninstall fpsgen takes it along", USAGE)
    if spec is not None and os.path.isdir(os.path.expanduser(spec.source)):
        raise FpsgenError(f"{name} is the folder {show(spec.source)}", "remove that yourself", USAGE)
    store = RepositoryCache(hub_settings().cache, source)
    if not os.path.lexists(store.folder):
        raise missing(name, spec)
    size = store.size()
    if not (quiet and yes):
        console.note(f"{store.folder}: {amount(size)}")
    if not yes:
        if not sys.stdin.isatty():
            raise FpsgenError("nobody is there to be asked", "add --yes", USAGE)
        if not console.ask("remove it?"):
            console.note(f"{name} stays")
            if as_json:
                console.print_json("models rm", [])
            return
    freed = store.remove()
    _result("rm", {"name": name, "path": str(store.folder), "freed_bytes": freed}, as_json)


def known(name: str) -> tuple[ModelSpec | None, str]:
    """(spec of a name of the registry or None, hub repository). Raises FpsgenError MODEL."""
    from fpsgen.models.catalog.cache import HUB_ID
    from fpsgen.models.catalog.registry import find_spec, models

    spec = find_spec(name)
    if spec is not None:
        return spec, spec.source
    if HUB_ID.fullmatch(name):
        return None, name
    names = ", ".join(spec.name for spec in models())
    raise FpsgenError(f"no model is named {show(name)!r}", f"choose from {names}, or OWNER/REPOSITORY", MODEL)


def folder_size(folder: Path) -> int:
    """Bytes of the files of a model folder."""
    from fpsgen.models.catalog.folder import model_files

    return sum(path.stat().st_size for path in model_files(folder) if path.exists())


def _complete(source: str, revision: str) -> bool:
    """Whether a pinned commit is intact on disk; a branch may have moved, unless nothing can be asked."""
    from fpsgen.models.catalog.cache import cached
    from fpsgen.models.catalog.folder import check_folder
    from fpsgen.models.catalog.hub import hub_settings
    from fpsgen.models.catalog.verify import check_intact

    folder = cached(source, revision)
    if folder is None or not (folder.name == revision or hub_settings().offline):
        return False
    try:
        check_folder(folder)
        check_intact(folder)
    except FpsgenError:
        return False
    return True


def _parameters(count: float) -> str:
    """Parameters, given in thousand millions."""
    return f"{count * 1e3:.0f} M" if count < 1 else f"{count:g} B"


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sizes)


def _noted(note: str | None) -> str:
    return f" ({note})" if note else ""


def _replaced(name: str | None) -> str:
    return ", in whose place UniPCMultistepScheduler is used" if name else ""


def _drawn(vocabulary: Vocabulary) -> list[tuple[str, tuple[str, ...]]]:
    return [
        ("draws", vocabulary.subjects),
        ("colours", vocabulary.colours),
        ("motions", vocabulary.motions),
        ("places", vocabulary.backgrounds),
    ]


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
