"""`--dry-run`: print what a plan holds. Nothing is made."""

from __future__ import annotations

from fpsgen.cli import console
from fpsgen.pipeline.dry_run import foresee
from fpsgen.pipeline.plan import Plan
from fpsgen.settings.gather import Settings


def show(planned: Plan, settings: Settings) -> None:
    """Print the plan on stdout, as a table or as JSON."""
    warnings = [*settings.warnings, *planned.notes]
    with console.library_warnings(warnings.append, settings.debug):
        outlook = foresee(planned)
    if settings.json:
        console.print_json("generate", [outlook.as_json()], warnings)
        return
    for text in warnings:
        console.warning(text)
    rows = outlook.rows()
    wide = max(len(name) for name, _, _ in rows)
    for name, value, origin in rows:
        print(f"{name:<{wide}}  {console.one_line(value, 2000)}  [{origin}]")
