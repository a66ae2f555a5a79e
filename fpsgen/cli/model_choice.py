"""The model that is meant, fetched first where a person or --pull says so."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fpsgen.cli import console
from fpsgen.report.lines import amount

if TYPE_CHECKING:
    from fpsgen.models.catalog.choice import ModelChoice
    from fpsgen.models.catalog.registry import ModelSpec
    from fpsgen.settings.gather import Settings


def choose_model(settings: Settings) -> ModelChoice:
    """The model of `settings`, on this machine (with --dry-run it may be missing).

    Where it is missing, or where "auto" would take a better one that only lacks being here: --pull fetches it, a
    person at a terminal is asked. Raises FpsgenError MODEL, NETWORK, DISK, ENVIRONMENT.
    """
    from fpsgen.models.catalog.cache import missing
    from fpsgen.models.catalog.choice import choose

    choice = choose(settings.model, settings.res, settings.device, missing_ok=True)
    if settings.dry_run:
        return choice
    better = next((passed.spec for passed in choice.passed if passed.fetchable), None)
    wanted = choice.spec if choice.folder is None else better
    if wanted is not None and (settings.pull or _agreed(wanted)):
        fetch(wanted, settings)
        return choose(settings.model, settings.res, settings.device)
    if choice.folder is None:
        raise missing(choice.spec.name, choice.spec)
    return choice


def fetch(spec: ModelSpec, settings: Settings) -> None:
    """Bring a model's files onto this machine, with progress on stderr. Raises FpsgenError MODEL, NETWORK, DISK."""
    from fpsgen.cli.models import Bytes
    from fpsgen.models.catalog.pull import pull

    console.quiet_libraries(settings.debug)
    with Bytes(settings.quiet, f"pull {spec.source}") as progress:
        pull(spec.source, spec.revision, progress)


def _agreed(spec: ModelSpec) -> bool:
    """Whether a person, if one is there, wants it fetched now."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    from fpsgen.models.catalog.cache import bytes_to_fetch

    return console.ask(f"{spec.name} is not on this machine: fetch {amount(bytes_to_fetch(spec))} now?")
