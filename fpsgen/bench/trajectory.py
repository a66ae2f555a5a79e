"""The dense trajectory: what the transformer was given and what it predicted, so that other attention can be measured
on the very same inputs. Errors of single steps do not add up then (the form of arXiv 2506.04648, figure 4).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Forward(NamedTuple):
    """One forward. inputs: keyword arguments of the transformer. velocity: [B, C, T, H, W]."""

    inputs: dict[str, Any]
    velocity: torch.Tensor


class StepError(NamedTuple):
    """One denoising step: its index, what ran (Handle.latest_step, with the density that it had), and cosine, mse and
    snr_db of the velocity.
    """

    index: int
    ran: dict[str, Any]
    error: dict[str, float]


@contextmanager
def recorded(transformer: torch.nn.Module) -> Iterator[list[Forward]]:
    """Every forward of the transformer within the block, in order."""
    forwards: list[Forward] = []

    def keep(_module: Any, _args: tuple, inputs: dict[str, Any], output: Any) -> None:
        copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        forwards.append(Forward(copies, output[0].clone()))

    hook = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        yield forwards
    finally:
        hook.remove()


@torch.no_grad()
def step_errors(
    transformer: torch.nn.Module, handle: Any, forwards: Sequence[Forward], steps: int, every: int = 1
) -> Iterator[StepError]:
    """The error of each step, or of each `every`-th, as means over its forwards.

    transformer: patched, `handle` is of it. forwards: of one loop of `steps` steps, as many to each.
    """
    per_step = len(forwards) // steps
    for index in range(0, steps, every):
        group = forwards[index * per_step : (index + 1) * per_step]
        errors = [velocity_error(transformer(**each.inputs)[0], each.velocity) for each in group]
        ran = handle.latest_step()
        assert ran is not None
        if ran["density"] is None:  # chosen at each call: known once it has run
            ran = ran | {"density": handle.report()["steps"][-1]["density"]}
        yield StepError(index, ran, mean_errors(errors))


def velocity_error(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """cosine; mse; snr_db = 10 log10(|wanted|^2 / |found - wanted|^2), all in fp64 over the whole tensor."""
    x, y = found.double().flatten(), wanted.double().flatten()
    noise = (x - y).square().sum().clamp(min=1e-300)
    return {
        "cosine": float(torch.dot(x, y) / (x.norm() * y.norm()).clamp(min=1e-300)),
        "mse": float((x - y).square().mean()),
        "snr_db": float(10 * torch.log10(y.square().sum().clamp(min=1e-300) / noise)),
    }


def mean_errors(errors: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure, to six digits."""
    return {key: float(f"{statistics.mean(error[key] for error in errors):.6g}") for key in errors[0]}
