"""`fpsgen report`: rows of several benches, from any number of machines, as one page and a Markdown table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fpsgen.cli import console, options
from fpsgen.errors import BAD_INPUT, DISK, FpsgenError

EXAMPLES = options.examples(
    "fpsgen report a/bench.jsonl b/bench.jsonl -o both.html", "fpsgen report runs/mine/log.jsonl -o mine.html"
)


def report(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="bench.jsonl files of fpsgen bench, or a run's log.jsonl.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", rich_help_panel="Output", help="The page.")
    ] = "report.html",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Join rows of several benches and machines into one page and a Markdown table; or show a run of fpsgen train.

    stdout: the table and the path of the page.
    """
    from fpsgen.files import write_text
    from fpsgen.report import training
    from fpsgen.report.bench import markdown
    from fpsgen.report.page import page
    from fpsgen.report.rows import read_rows
    from fpsgen.report.training import read_log

    path = Path(output)
    if os.path.lexists(path) and not os.path.isdir(path) and not overwrite:
        raise FpsgenError(f"{output} exists already", "choose another name with -o, or add --overwrite", DISK)
    run = read_log(Path(files[0])) if len(files) == 1 else []
    if run:
        folder = Path(files[0]).resolve().parent
        html = training.page(run, folder.name, training.validation_videos(folder), training.errors_before(folder))
        write_text(html, path, overwrite=bool(overwrite))
        _show(path, len(run), "\n".join(training.table(run)), as_json, quiet)
        return
    rows = [row for name in files for row in read_rows(Path(name))]
    if not rows:
        raise FpsgenError("the files hold no rows", "name files that fpsgen bench wrote", BAD_INPUT)
    write_text(page(rows), path, overwrite=bool(overwrite))
    _show(path, len(rows), markdown(rows), as_json, quiet)


def _show(path: Path, rows: int, table: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        console.print_json("report", [{"path": str(path), "rows": rows}])
        return
    if not quiet:
        print(table)
    print(path)
