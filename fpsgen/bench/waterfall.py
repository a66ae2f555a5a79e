"""What each part of the acceleration is worth: they are added one after the other to diffusers as it comes.

Denoising: of each profile the median step, times its steps, so that a step in which something is compiled does not
count. Stages are interleaved in random order. A total is a sum of measured parts: denoising of this stage, the text
encoder's median, and the decoder that this stage has.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import Schedule
from fpsgen.bench.plan import BASELINE, EVERY_STEP, OURS, warm_steps
from fpsgen.bench.progress import Progress
from fpsgen.bench.provenance import provenance, spread
from fpsgen.bench.rows import setting_of
from fpsgen.bench.trajectory import mean_errors, recorded, step_errors
from fpsgen.models.patch.schedule_choice import no_schedule_warning
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import LoadedModel, dtype_name, load_model
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import mean_density, patched, render

SCHEMA = "fpsgen.bench.waterfall/1"


@dataclass(frozen=True)
class Stage:
    """One part more than the stage before. decoder: from here on the decoder is ours as well."""

    name: str
    method: str | None = None
    linear: str = "bf16"
    exact: bool = True
    ordered: bool = False

    def of(self, base: GenerateRequest) -> GenerateRequest:
        schedule = tile_order() if self.ordered else base.attention.schedule
        attention = {"method": self.method, "schedule": schedule, "strict": True}
        plain = {"linear": self.linear, "exact": self.exact, **EVERY_STEP}
        return base.replace(attention=attention).with_settings(**plain)


FP8_LINEAR, DECODER = "+ FP8 linear layers", "+ our VAE decoder"
STOCK = Stage("diffusers as it comes", method=BASELINE)
STAGES = (
    STOCK,
    Stage("+ tile order", ordered=True),
    Stage("+ fps attention"),
    Stage(FP8_LINEAR, linear="fp8"),
    Stage("+ fused passes", linear="fp8", exact=False),
)


def stages_on(device: torch.device) -> list[Stage]:
    """Those that a device can run: FP8 linear layers need a GPU that has them."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return list(STAGES)
    return [replace(stage, linear="bf16") for stage in STAGES if stage.name != FP8_LINEAR]


def tile_order() -> Schedule:
    """Dense bf16 attention, with tokens in the order of tiles: a tiled profile that no step ever runs by."""
    dense, tiled = Profile("dense", "bf16"), Profile("never", "fps")
    return Schedule("tile order alone", (dense, tiled), ((0.0, 1e-9, "never"), (1e-9, 1.0, "dense")))


def run(
    base: GenerateRequest, repeats: int, random_weights: bool, timing: Timing, command: str = ""
) -> list[dict[str, Any]]:
    """A row for each stage, in order, and one for the decoder where there are pictures. error: of the velocity on the
    dense trajectory (cosine, mse, snr_db), None with random weights. Raises as pipeline.run.run does.
    """
    model = load_model(base, timing, random_weights)
    stages = stages_on(model.device)
    if FP8_LINEAR not in [stage.name for stage in stages]:
        timing.warn(f"stage {FP8_LINEAR!r} is left out: no GPU of compute capability 8.9 or later runs it here")
    warm = [warm_steps(stage.method or OURS, base.sampling.steps, model.device.type) for stage in stages]
    found: dict[str, list[_Run]] = {stage.name: [] for stage in stages}
    progress = Progress(timing, sum(warm) + len(stages) * repeats * base.sampling.steps)
    order = stages * repeats
    random.Random(base.sampling.seed).shuffle(order)
    forwards: list[Any] = []
    with timing.stage("bench"):
        for stage, steps in zip(stages, warm, strict=True):
            _measure(model, stage, base.replace(sampling={"steps": steps}), progress)
        for stage in order:
            keep = stage.name == STOCK.name and not random_weights
            with recorded(model.pipe.transformer) as kept:
                found[stage.name].append(_measure(model, stage, base, progress))
                if keep:
                    forwards = list(kept)
        errors = {stage.name: _error(model, stage, base, forwards) for stage in stages if forwards}
    common = {"schema": SCHEMA, **provenance(model.device), "command": command, "random_weights": random_weights}
    common |= {**setting_of(base), "dtype": dtype_name(model.dtype), "repeats": repeats}
    return [{**common, **row} for row in _rows(stages, found, errors)]


@dataclass(frozen=True)
class _Run:
    """denoise: seconds, see the top. attention: seconds."""

    denoise: float
    attention: float
    stages: dict[str, float]
    density: float | None


def _measure(model: LoadedModel, stage: Stage, base: GenerateRequest, progress: Progress) -> _Run:
    timing = Timing(progress.named(stage.name))
    with no_schedule_warning(stage.ordered):
        made = render(model, stage.of(base), timing)
    times: dict[str, list[float]] = {}
    for step, seconds in zip(made.attention["steps"], timing.steps, strict=True):
        times.setdefault(step["profile"], []).append(seconds)
    denoise = sum(len(each) * statistics.median(each) for each in times.values())
    assert made.attention_s is not None
    return _Run(denoise, made.attention_s, dict(timing.stages), mean_density(made.attention))


def _error(model: LoadedModel, stage: Stage, base: GenerateRequest, forwards: Sequence[Any]) -> dict[str, float] | None:
    if stage.name == STOCK.name:
        return None
    with no_schedule_warning(stage.ordered), patched(model.pipe, stage.of(base)) as handle:
        steps = step_errors(model.pipe.transformer, handle, forwards, base.sampling.steps)
        return mean_errors([step.error for step in steps])


def _rows(
    stages: Sequence[Stage], found: dict[str, list[_Run]], errors: dict[str, dict[str, float] | None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    decode: dict[bool, list[float]] = {True: [], False: []}
    for stage in stages:
        decode[stage.exact] += [run.stages["vae"] for run in found[stage.name] if "vae" in run.stages]
    text = statistics.median(run.stages["text"] for runs in found.values() for run in runs)
    stock = statistics.median(decode[True]) if decode[True] else 0.0
    for stage in stages:
        runs = found[stage.name]
        rows.append(
            {
                "stage": stage.name,
                "denoise_s": spread([run.denoise for run in runs]),
                "attention_s": spread([run.attention for run in runs]),
                "density": runs[0].density,
                "vae_s": round(stock, 4) if decode[True] else None,
                "error": errors.get(stage.name),
            }
        )
    if decode[False]:
        rows.append(rows[-1] | {"stage": DECODER, "vae_s": round(statistics.median(decode[False]), 4), "error": None})
    for row in rows:
        row["total_s"] = round(text + row["denoise_s"]["median"] + (row["vae_s"] or 0.0), 4)
        row["faster_denoise"] = round(rows[0]["denoise_s"]["median"] / row["denoise_s"]["median"], 3)
        row["faster_total"] = round(rows[0]["total_s"] / row["total_s"], 3)
    return rows
