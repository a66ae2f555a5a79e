"""`fpsgen train export`: a run's newest checkpoint as a folder, or as a LoRA file, with its schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fpsgen.cli import console, options

EXAMPLES = options.examples(
    "fpsgen train export runs/mine -o mine-trained",
    "fpsgen train export runs/mine --lora -o mine.safetensors",
    'fpsgen generate "a cat surfing" -m mine-trained',
)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=options.complete_files)],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", rich_help_panel="Output", help="Folder or file. In RUN by default."
        ),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="The adapter alone, as a file for generate --lora.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Export the averaged weights of a run's newest checkpoint, with the schedule that they were trained for.

    stdout: the folder or file. Exit codes: 2 usage, 4 not a run, 5 model, 7 disk.
    """
    console.quiet_libraries(False)
    from fpsgen.train.export import export_run

    exported = export_run(Path(run), Path(output) if output else None, lora)
    if not quiet:
        console.note(f"step {exported.step} of {exported.steps}" + (", a row for models.toml:" if exported.row else ""))
        for line in exported.row.splitlines():
            console.note(line)
    if as_json:
        console.print_json("train export", [json.loads(exported.to_json())])
    else:
        print(exported.path, flush=True)
