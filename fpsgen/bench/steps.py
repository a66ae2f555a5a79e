"""Error of every denoising step: what each method makes of the very inputs that dense bf16 attention saw.

The dense trajectory is kept: the baseline denoises once, and the inputs and the velocity of each forward are recorded.
Each method then predicts the velocity from the same inputs. So errors do not add up over the steps (the form of
arXiv 2506.04648, figure 4).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fpsgen.bench.plan import BASELINE, methods_to_run
from fpsgen.bench.provenance import provenance
from fpsgen.bench.rows import setting_of
from fpsgen.models.patch.apply import apply
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import load_model, set_shift
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import denoise, encode

SCHEMA = "fpsgen.bench.steps/1"


class Forward(NamedTuple):
    """One forward on the dense trajectory. inputs: keyword arguments of the transformer. velocity: [B, C, T, H, W]."""

    inputs: dict[str, Any]
    velocity: torch.Tensor


def run(base: GenerateRequest, compare: tuple[str, ...], timing: Timing, command: str = "") -> list[dict[str, Any]]:
    """A row per method and step: index, sigma, profile, density, and the velocity's cosine, MSE and SNR in dB against
    dense bf16, means over the step's forwards. Raises as pipeline.run.run does.
    """
    model = load_model(base, timing, False)
    pipe = model.pipe
    methods = [name for name in methods_to_run(compare) if name != BASELINE]
    facts = {"schema": SCHEMA, **provenance(model.device), "command": command, **setting_of(base)}
    set_shift(pipe, base.sampling.shift)
    with apply(pipe, method=BASELINE, strict=True, exact=True) as handle:
        with timing.stage("text"):
            embeds = encode(pipe, base, timing)
        with timing.stage("denoise"), _recorded(pipe.transformer) as forwards:
            denoise(pipe, handle, base, embeds, timing)
    per_step = len(forwards) // base.sampling.steps
    rows = []
    for name in methods:
        with timing.stage(name), _method(pipe, base, name) as handle, torch.no_grad():
            for step in range(base.sampling.steps):
                group = forwards[step * per_step : (step + 1) * per_step]
                errors = [velocity_error(pipe.transformer(**f.inputs)[0], f.velocity) for f in group]
                ran = handle.latest_step()
                timing.step(step, base.sampling.steps, name)
                rows.append({**facts, "method": name, "step": step, **_ran(ran), **_mean(errors)})
    return rows


def velocity_error(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """cosine; mse; snr_db = 10 log10(|wanted|^2 / |found - wanted|^2), all in fp64 over the whole tensor."""
    x, y = found.double().flatten(), wanted.double().flatten()
    noise = (x - y).square().sum().clamp(min=1e-300)
    return {
        "cosine": float(torch.dot(x, y) / (x.norm() * y.norm()).clamp(min=1e-300)),
        "mse": float((x - y).square().mean()),
        "snr_db": float(10 * torch.log10(y.square().sum().clamp(min=1e-300) / noise)),
    }


@contextmanager
def _recorded(transformer: torch.nn.Module) -> Iterator[list[Forward]]:
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


def _method(pipe: Any, base: GenerateRequest, name: str) -> Any:
    return apply(pipe, schedule=base.attention.schedule, method=None if name == "fps" else name, strict=True)


def _ran(step: dict[str, Any] | None) -> dict[str, Any]:
    assert step is not None
    density = step["density"]
    return {
        "sigma": round(step["sigma"], 6),
        "profile": step["profile"],
        "profile_method": step["method"],
        "density": None if density is None else round(density, 4),
    }


def _mean(errors: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(f"{statistics.mean(error[key] for error in errors):.6g}") for key in errors[0]}
