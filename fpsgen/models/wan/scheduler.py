"""The flow scheduler of a pipeline: made from data, and drawing its noise from the request's generator."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.errors import MODEL, FpsgenError
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


def with_shift(scheduler: Any, shift: float) -> Any:
    """A scheduler of the same kind with this flow shift. Raises FpsgenError MODEL for one that has none."""
    key = next((key for key in ("flow_shift", "shift") if key in scheduler.config), None)
    if key is None:
        name = type(scheduler).__name__
        raise FpsgenError(f"scheduler {name} of the model has no flow shift", "choose a Wan model with -m", MODEL)
    return type(scheduler).from_config(scheduler.config, **{key: shift})


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


def _of_order_two(scheduler: Any) -> bool:
    """Whether the scheduler is UniPC with the formulas of _predict and _correct."""
    if not isinstance(scheduler, UniPCMultistepScheduler) or not scheduler.predict_x0 or scheduler.solver_p is not None:
        return False
    config: Any = scheduler.config
    return config.solver_order <= 2 and config.solver_type == "bh2"


@contextmanager
def coefficients_on_host(scheduler: Any) -> Iterator[None]:
    """Within the block, UniPC computes its coefficients on the CPU, where it keeps its noise levels: a step starts a
    tenth of the kernels and never waits for the device. On a CPU nothing changes to the bit; on a GPU, logarithms may
    round otherwise. Other schedulers, and UniPC of an order above 2 or with another B(h), are as they were.
    """
    if _of_order_two(scheduler):
        scheduler.multistep_uni_p_bh_update = partial(_predict, scheduler)
        scheduler.multistep_uni_c_bh_update = partial(_correct, scheduler)
    try:
        yield
    finally:
        for name in ("multistep_uni_p_bh_update", "multistep_uni_c_bh_update"):
            vars(scheduler).pop(name, None)


def _predict(scheduler: Any, model_output: torch.Tensor, *, sample: torch.Tensor, order: int) -> torch.Tensor:
    """multistep_uni_p_bh_update of orders 1 and 2, with 0-dim tensors on the CPU as coefficients."""
    step = scheduler.step_index
    terms, m0 = _Terms.between(scheduler, step, step + 1), scheduler.model_outputs[-1]
    x_t = terms.ratio * sample - terms.alpha * terms.phi * m0
    if order == 2:
        difference = (scheduler.model_outputs[-2] - m0) / terms.distance(scheduler, step - 1)
        x_t = x_t - terms.alpha * terms.phi * (0.5 * difference)
    return x_t.to(sample.dtype)


def _correct(
    scheduler: Any,
    this_model_output: torch.Tensor,
    *,
    last_sample: torch.Tensor,
    this_sample: torch.Tensor,
    order: int,
) -> torch.Tensor:
    """multistep_uni_c_bh_update of orders 1 and 2, in the same way."""
    step, m0 = scheduler.step_index, scheduler.model_outputs[-1]
    terms = _Terms.between(scheduler, step - 1, step)
    x_t = terms.ratio * last_sample - terms.alpha * terms.phi * m0
    change = this_model_output - m0
    if order == 1:
        return (x_t - terms.alpha * terms.phi * (0.5 * change)).to(last_sample.dtype)
    rk = terms.distance(scheduler, step - 2)
    difference = (scheduler.model_outputs[-2] - m0) / rk
    rks = torch.stack([rk, torch.ones(())])
    phi_2 = terms.phi / terms.hh - 1
    phi_3 = phi_2 / terms.hh - 0.5
    right = torch.stack([phi_2 / terms.phi, phi_3 * 2 / terms.phi])
    earlier, latest = torch.linalg.solve(torch.stack([rks**0, rks]), right)
    return (x_t - terms.alpha * terms.phi * (earlier * difference + latest * change)).to(last_sample.dtype)


class _Terms(NamedTuple):
    """What an update from noise level s to t needs, named as in UniPC (arXiv 2302.04867): 0-dim tensors on the CPU.

    ratio: sigma_t / sigma_s. h, hh: difference of log-SNRs, and its negative. phi: e^hh - 1, in B(h) as well.
    """

    ratio: torch.Tensor
    alpha: torch.Tensor
    start: torch.Tensor
    h: torch.Tensor
    hh: torch.Tensor
    phi: torch.Tensor

    @classmethod
    def between(cls, scheduler: Any, s: int, t: int) -> _Terms:
        alpha, sigma, end = _noise_level(scheduler, t)
        _, sigma_s, start = _noise_level(scheduler, s)
        h = end - start
        return cls(sigma / sigma_s, alpha, start, h, -h, torch.expm1(-h))

    def distance(self, scheduler: Any, index: int) -> torch.Tensor:
        """r_k of the step at `index`, in units of h."""
        return (_noise_level(scheduler, index)[2] - self.start) / self.h


def _noise_level(scheduler: Any, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """alpha, sigma and log-SNR (of amplitudes) of the step at `index`."""
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
    return alpha, sigma, torch.log(alpha) - torch.log(sigma)
