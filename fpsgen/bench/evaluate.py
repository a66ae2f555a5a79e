"""A model against dense attention of the same seeds, over a file of prompts. No torch until it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen.bench.plan import BASELINE, OURS, methods_to_run
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.evaluate.vbench import export
from fpsgen.files import write_text
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.report.evaluate import page
from fpsgen.settings.table import SETTINGS

if TYPE_CHECKING:
    from fpsgen.pipeline.events import Timing

_FOR_ALL = ("schedule", "linear", "exact")


def with_seeds(requests: Sequence[GenerateRequest], seeds: int) -> list[GenerateRequest]:
    """Each request with its own seed and those that follow. Raises FpsgenError USAGE where models differ, or what a
    comparison has for all of its videos.
    """
    folders = {request.model.folder for request in requests}
    if len(folders) > 1:
        raise FpsgenError("the prompt file names several models", "evaluate one at a time", USAGE)
    for name in _FOR_ALL:
        if any(request.values()[name] != requests[0].values()[name] for request in requests):
            what = f"some lines of the prompt file set {name}, which a comparison has for all videos"
            raise FpsgenError(what, f"give {SETTINGS[name].option} to the command, or evaluate them apart", USAGE)
    return [
        request.replace(sampling={"seed": request.sampling.seed + extra})
        for request in requests
        for extra in range(seeds)
    ]


def run(
    requests: Sequence[GenerateRequest],
    teacher: ModelChoice | None,
    compare: tuple[str, ...],
    folder: Path,
    timing: Timing,
    command: str = "",
) -> list[dict[str, Any]]:
    """Rows of the reference and of every method for each request, see suite.run. fps runs by the request's schedule,
    else by the model's own. teacher: whose dense videos are the reference, without a LoRA; None is the model itself.
    """
    from fpsgen.bench.suite import DENSE, Models, Variant
    from fpsgen.bench.suite import run as run_suite

    first = requests[0]
    values = first.values()
    names = methods_to_run(compare)
    if teacher is None:
        names = [name for name in names if name != BASELINE]  # that is the reference
    variants = [
        replace(DENSE, name=name)
        if name == BASELINE
        else Variant(name, first.attention.schedule, None if name == OURS else name, values["linear"], values["exact"])
        for name in names
    ]
    reference = first if teacher is None else replace(first, model=teacher).with_settings(lora="")
    return list(run_suite(Models(first, reference), requests, variants, folder, timing, command))


def save(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Write the page and VBench's layout beside the rows; the path to print."""
    export(rows, folder / "vbench")
    return write_text(page(rows), folder / "index.html", overwrite=True)
