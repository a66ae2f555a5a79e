"""The flow scheduler of a pipeline: made from data, and drawing its noise from the request's generator."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.models.catalog.folder import PipelineFolder, broken
from fpsgen.text import show


def make_scheduler(pipeline: PipelineFolder) -> Any:
    """The scheduler that a folder names, made to predict flow; UniPC in place of one that cannot, which
    `pipeline.replaced_scheduler` says. Raises FpsgenError MODEL for a configuration that gives no sigmas.
    """
    config = pipeline.configs["scheduler"]
    kept = pipeline.replaced_scheduler is None
    kind = getattr(diffusers, pipeline.scheduler) if kept else UniPCMultistepScheduler
    known = set(inspect.signature(kind.__init__).parameters) if kept else {"num_train_timesteps"}
    values = {key: value for key, value in config["config"].items() if key in known}
    if kind is not FlowMatchEulerDiscreteScheduler:
        shift = config["flow_shift"] or config["shift"] or 3.0
        values |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    try:
        scheduler = kind.from_config(values)
        tried: Any = kind.from_config(values)
        tried.set_timesteps(4)
        right = all(math.isfinite(sigma) and 0 <= sigma <= 1.001 for sigma in tried.sigmas.tolist())
    except Exception as error:  # whatever a class of diffusers raises for values that it does not take
        raise broken(Path(pipeline.folder), f"scheduler: {show(error)}") from error
    if not right:
        raise broken(Path(pipeline.folder), "scheduler: its sigmas do not lie in 0 to 1")
    return scheduler


@contextmanager
def noise_from(scheduler: Any, generator: torch.Generator) -> Iterator[None]:
    """Within the block all noise that `scheduler.step` draws comes from `generator`: same seed, same video. Schedulers
    that draw none are as they were. A CPU generator gives the same noise on every device.
    """
    step = scheduler.step
    if "generator" in inspect.signature(step).parameters:
        scheduler.step = partial(step, generator=generator)
    try:
        yield
    finally:
        vars(scheduler).pop("step", None)
