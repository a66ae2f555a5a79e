"""`fpsgen doctor`: is this machine fit, and what is in use; a kernel is run against the reference."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from fpsgen.cli import console
from fpsgen.cli.options import examples, takes_settings
from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.settings.gather import gather

if TYPE_CHECKING:
    from fpsgen.pipeline.machine_checks import Check

EXAMPLES = examples("fpsgen doctor", "fpsgen doctor -m wan2.1-1.3b", "fpsgen doctor --json")


@takes_settings("doctor")
def doctor(given: dict[str, Any]) -> None:
    """Check this machine: versions, GPU, memory, disk, models, and a kernel against the reference.

    Exit code 6 where it is unfit for what is asked: nano, or the model of --model, FPSGEN_MODEL or fpsgen.toml.
    """
    from fpsgen.pipeline.machine_checks import FAIL, check_machine_for

    settings = gather(given)
    console.quiet_libraries(settings.debug)
    wanted = "nano" if settings.model == "auto" else settings.model
    checks = check_machine_for(wanted)
    failed = [check for check in checks if check.status == FAIL]
    if settings.json and not failed:
        console.print_json("doctor", [asdict(check) for check in checks], list(settings.warnings))
        return
    if settings.json:
        print_failed(checks, failed, list(settings.warnings), wanted)
        raise typer.Exit(ENVIRONMENT)
    wide = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<4}  {check.name:<{wide}}  {console.one_line(check.value)}")
        if check.remedy:
            print(f"{'':<4}  {'':<{wide}}  -> {check.remedy}")
    sys.stdout.flush()
    if failed:
        raise unfit(failed, wanted)
    console.note(f"fit for {wanted}")


def unfit(failed: list[Check], wanted: str) -> FpsgenError:
    return FpsgenError(f"unfit for {wanted}: {', '.join(c.name for c in failed)}", failed[0].remedy, ENVIRONMENT)


def print_failed(checks: list[Check], failed: list[Check], warnings: list[str], wanted: str) -> None:
    """The envelope with what was found and the error, which the general one for errors lacks."""
    problem = unfit(failed, wanted)
    console.print_json("doctor", [asdict(check) for check in checks], warnings, problem)
    console.error(problem)
