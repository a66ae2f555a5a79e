"""From settings to the request of an end-to-end bench. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fpsgen.attention.methods import BASELINE, OURS
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.pipeline.plan import Plan, plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.settings.gather import Settings
from fpsgen.text import show

EVERY_STEP = {"cache": "none", "cfg_until": 1.0}  # settings by which no step is skipped and all have their guidance
WARM_STEPS = {"cuda": 3, "cpu": 1}


def methods_to_run(compare: tuple[str, ...]) -> list[str]:
    """The baseline first: bf16 if it is named, else the first; then the others, fps last."""
    named = list(dict.fromkeys(compare))
    others = sorted((name for name in named if name != OURS), key=lambda name: name != BASELINE)
    return [*others, OURS]


def warm_steps(method: str, steps: int, device: str) -> int:
    """Steps before what is measured: kernels are compiled in the first step of each profile. bf16 has one kind of step.

    steps: of the video. device: kind of device.
    """
    return 1 if method == BASELINE else min(steps, WARM_STEPS[device])


def plan_bench(settings: Settings, choose_model: Callable[[Settings], ModelChoice]) -> Plan:
    """The video that every method makes. Its output lies in a new folder of its own.

    choose_model: finds, asks for or fetches the model. Random weights have no quality to lose: they run by the
    schedule "paper" unless another is asked for. Raises FpsgenError as pipeline.plan.plan.
    """
    if settings.random_weights and settings.schedule is None:
        settings = settings.replace(schedule="paper")
    choice = _shape_alone(settings) if settings.random_weights else choose_model(settings)
    place = new_folder(Path(settings.bench_output), methods_to_run(settings.compare))
    seed = 0 if settings.seed is None else settings.seed
    planned = plan(settings.prompt, settings.replace(output=f"{place}/", seed=seed, overwrite=True), choice)
    check_compiled(planned.request)
    return planned


def check_compiled(request: GenerateRequest) -> None:
    """Raise FpsgenError USAGE where a GPU would run every method as diffusers does, whatever its row said."""
    if request.values()["compile"] == "off":
        what = "compile is off, in the environment or a file: every method would run as diffusers does"
        raise FpsgenError(what, "set FPSGEN_COMPILE=auto for this command", USAGE)


def new_folder(root: Path, methods: list[str]) -> Path:
    """A folder that is not there yet, named by the methods and numbered from 1."""
    stem, number = "-".join(methods), 1
    while os.path.lexists(root / f"{stem}-{number}"):
        number += 1
    return root / f"{stem}-{number}"


def _shape_alone(settings: Settings) -> ModelChoice:
    from fpsgen.models.catalog.registry import models

    known = [spec.name for spec in models()]
    if settings.model not in known:
        what = f"--random-weights has no shape for {show(settings.model)!r}"
        raise FpsgenError(what, f"add -m with one of {', '.join(known)}", USAGE)
    choice = choose(settings.model, settings.res, settings.device, missing_ok=True)
    return replace(choice, reason="random weights")
