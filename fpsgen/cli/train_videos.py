"""How a run gets on, in videos made as `fpsgen generate` does, and what it came to, as `fpsgen evaluate` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fpsgen.bench.evaluate import save
from fpsgen.bench.suite import Models, Variant
from fpsgen.bench.suite import run as run_suite
from fpsgen.cli.progress import Quiet
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.patch.schedule_choice import no_schedule_warning
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import LoadedModel
from fpsgen.pipeline.plan import plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import render, run
from fpsgen.settings.gather import gather
from fpsgen.train.config import TrainConfig

SEED = 0
EVALUATED = 4  # prompts at most
EVERY = 2  # velocities are compared at each second step


def request_of(config: TrainConfig, choice: ModelChoice, prompt: str, path: Path, device: str) -> GenerateRequest:
    """A video of the run's size, steps and guidance."""
    values = {
        "res": f"{config.width}x{config.height}",
        "frames": str(config.frames),
        "steps": str(config.teacher_steps),
    }
    values |= {"guidance": str(config.guidance), "shift": str(config.shift), "seed": str(SEED)}
    values |= {"model": config.model, "output": str(path), "device": device, "overwrite": True}
    return plan(prompt, gather(values), choice).request


def prompts_of(config: TrainConfig) -> tuple[str, ...]:
    """What is shown of a run: its first held-out prompts, or its last prompt; "a cat surfing" without any."""
    if not config.prompts:
        return ("a cat surfing",)
    return config.prompts[-max(1, config.held_out) :][:EVALUATED]


class Validation:
    """Makes a video with a pipeline under training, whose transformer is unpatched and holds the averaged weights."""

    def __init__(self, config: TrainConfig, device: str, timing: Timing) -> None:
        self._config, self._device, self._timing = config, device, timing

    def __call__(self, pipe: Any, choice: ModelChoice, path: Path, writes: bool) -> None:
        config = self._config
        request = request_of(config, choice, prompts_of(config)[0], path, self._device)
        request = request.replace(attention={"schedule": config.parsed_schedule()})
        transformer = pipe.transformer
        model = LoadedModel(pipe, transformer.device, transformer.dtype)
        timing = Timing(Quiet())
        with no_schedule_warning(), torch.no_grad():
            if writes:
                run(request, timing, model)
            else:
                render(model, request, timing)


def evaluate_run(
    config: TrainConfig, folder: Path, out: Path, device: str, timing: Timing
) -> tuple[list[dict[str, Any]], Path]:
    """Videos of `prompts_of` in `out`: dense and untrained of the run's model, dense and by the run's schedule, and
    trained of the exported folder. Rows of bench.suite, all against the dense ones of equal seeds, and the page's path.
    """
    prompts, base, student = prompts_of(config), choose(config.model), choose(str(folder))
    requests = [request_of(config, student, prompt, out / "a.mp4", device) for prompt in prompts]
    teacher = request_of(config, base, prompts[0], out / "a.mp4", device)
    untrained = Variant("untrained", config.parsed_schedule(), linear=None, of_teacher=True)
    with no_schedule_warning():  # that it was not trained is the point of one
        variants = [untrained, Variant("trained", linear=None)]
        rows = list(run_suite(Models(requests[0], teacher), requests, variants, out, timing, every=EVERY))
    return rows, save(rows, out)
