"""`fpsgen report`: rows of several benches, from any number of machines, as one page and a Markdown table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fpsgen.cli import console, options
from fpsgen.errors import BAD_INPUT, DISK, FpsgenError

EXAMPLES = options.examples("fpsgen report a/bench.jsonl b/bench.jsonl -o both.html")


def report(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="bench.jsonl files that fpsgen bench wrote.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", rich_help_panel="Output", help="The page.")
    ] = "report.html",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Join rows of several benches and machines into one page and a Markdown table.

    stdout: the table and the path of the page.
    """
    from fpsgen.files import write_text
    from fpsgen.report.bench import markdown
    from fpsgen.report.page import page
    from fpsgen.report.rows import read_rows

    path = Path(output)
    if os.path.lexists(path) and not overwrite:
        raise FpsgenError(f"{output} exists already", "choose another name with -o, or add --overwrite", DISK)
    rows = [row for name in files for row in read_rows(Path(name))]
    if not rows:
        raise FpsgenError("the files hold no rows", "name files that fpsgen bench wrote", BAD_INPUT)
    write_text(page(rows), path, overwrite=bool(overwrite))
    if as_json:
        console.print_json("report", [{"path": str(path), "rows": len(rows)}])
        return
    if not quiet:
        print(markdown(rows))
    print(path)
