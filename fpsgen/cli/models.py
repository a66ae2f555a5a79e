"""`fpsgen models`: what there is, what is on disk; show, fetch, check, remove."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpsgen.cli import console, options
from fpsgen.cli.transfer import Bytes
from fpsgen.errors import MODEL, USAGE, FpsgenError
from fpsgen.report.lines import amount
from fpsgen.report.models import described, listed
from fpsgen.text import plural, show

if TYPE_CHECKING:
    from fpsgen.models.catalog.registry import ModelSpec

app = options.group(
    "models",
    "fpsgen models list",
    "fpsgen models pull wan2.1-1.3b",
    "fpsgen models verify nano",
    help="List, show, fetch, check and remove models.",
)

Name = Annotated[
    str,
    options.argument("NAME", "nano, wan2.1-1.3b, wan2.1-14b, OWNER/REPOSITORY, or a folder.", options.complete_models),
]


@app.command("list", cls=options.Command, epilog=options.examples("fpsgen models list"))
def list_models(as_json: options.Json = False) -> None:
    """List the models that fpsgen knows by name, and which of them are on this machine."""
    from fpsgen.models.catalog.cache import on_disk
    from fpsgen.models.catalog.folder import folder_size
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
    print("\n".join(listed(rows)))


@app.command("show", cls=options.Command, epilog=options.examples("fpsgen models show nano"))
def show_model(name: Name, as_json: options.Json = False) -> None:
    """Show what is known of a model: licence, sizes, defaults, what it can do, and whether this machine can run it."""
    from fpsgen.models.catalog.cache import bytes_to_fetch
    from fpsgen.models.catalog.choice import choose
    from fpsgen.models.catalog.folder import folder_size
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
    size = folder_size(choice.folder) if choice.folder else 0
    print("\n".join(described(choice, size, row["bytes_to_fetch"], lack)))


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

    Exit codes: 5 not found or not intact, 7 disk, 8 network. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
    are heeded.
    """
    from fpsgen.models.catalog.cache import cached, fetchable, missing, on_disk

    spec, source = known(name)
    if spec is not None and spec.embedded:
        console.note(f"{spec.name} comes with fpsgen: nothing to fetch")
        _result("pull", {"name": name, "path": str(on_disk(spec)), "fetched_bytes": 0}, as_json)
        return
    if spec is not None and os.path.isdir(os.path.expanduser(spec.source)):
        raise FpsgenError(f"{name} is the folder {show(spec.source)}", "it needs no fetching", USAGE)
    if spec is not None and not fetchable(spec):
        raise missing(name, spec)
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
    from fpsgen.models.catalog.cache import RepositoryCache, fetchable, missing
    from fpsgen.models.catalog.hub import hub_settings

    spec, source = known(name)
    if spec is not None and spec.embedded:
        raise FpsgenError(f"{name} is part of fpsgen and is not removed", "pip uninstall fpsgen takes it along", USAGE)
    if spec is not None and os.path.isdir(os.path.expanduser(spec.source)):
        raise FpsgenError(f"{name} is the folder {show(spec.source)}", "remove that yourself", USAGE)
    store = RepositoryCache(hub_settings().cache, source) if spec is None or fetchable(spec) else None
    if store is None or not os.path.lexists(store.folder):
        raise FpsgenError(missing(name, spec).message, "nothing to do; fpsgen models list shows what is there", MODEL)
    size = store.size()
    if not (quiet and yes):
        console.note(f"{store.folder}: {amount(size)}")
    if not yes:
        if not console.at_terminal():
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


def _result(command: str, row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(f"models {command}", [row])
    else:
        print(row["path"], flush=True)
