"""The model that is meant, fetched first where a person or --pull says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpsgen.cli import console
from fpsgen.errors import FpsgenError
from fpsgen.report.lines import amount

if TYPE_CHECKING:
    from fpsgen.models.catalog.choice import ModelChoice
    from fpsgen.models.catalog.registry import ModelSpec
    from fpsgen.settings.gather import Settings


def choose_model(settings: Settings) -> ModelChoice:
    """The model of `settings`, on this machine (with --dry-run it may be missing).

    Where it is missing, or where "auto" has only the embedded one and a better one would fit: --pull fetches it, a
    person at a terminal is asked. What this machine cannot run is not fetched. Raises FpsgenError MODEL, NETWORK,
    DISK, ENVIRONMENT.
    """
    from fpsgen.models.catalog.cache import fetchable, missing
    from fpsgen.models.catalog.choice import choose
    from fpsgen.pipeline.memory import check_model, model_lack
    from fpsgen.pipeline.plan import instead_of_embedded

    choice = choose(settings.model, settings.res, settings.device, missing_ok=True)
    if choice.folder is None and not fetchable(choice.spec):
        raise missing(choice.spec.name, choice.spec)
    if settings.dry_run:
        return choice
    wanted = choice.spec if choice.folder is None else instead_of_embedded(choice)
    if wanted is None:
        return choice
    if settings.pull:
        check_model(wanted, settings.device)
    lack = model_lack(wanted, settings.device)
    if settings.pull or (not lack and _agreed(wanted)):
        fetch(wanted, settings)
        return choose(settings.model, settings.res, settings.device)
    if choice.folder is not None:
        return choice
    problem = missing(wanted.name, wanted)
    if lack:
        remedy = f"take -m nano; {wanted.name} {lack}: fpsgen models pull {wanted.name} on a machine that has it"
        raise FpsgenError(problem.message, remedy, problem.code)
    raise problem


def fetch(spec: ModelSpec, settings: Settings) -> None:
    """Bring a model's files onto this machine, with progress on stderr. Raises FpsgenError MODEL, NETWORK, DISK."""
    from fpsgen.cli.transfer import Bytes
    from fpsgen.models.catalog.pull import pull

    console.quiet_libraries(settings.debug)
    with Bytes(settings.quiet, f"pull {spec.source}") as progress:
        pull(spec.source, spec.revision, progress)


def _agreed(spec: ModelSpec) -> bool:
    """Whether a person, if one is there, wants it fetched now."""
    if not console.at_terminal():
        return False
    from fpsgen.models.catalog.cache import bytes_to_fetch

    size = bytes_to_fetch(spec)
    return console.ask(f"{spec.name} is not on this machine: fetch {amount(size) if size else 'it'} now?")
