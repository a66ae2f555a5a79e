"""Error of every denoising step: what each method makes of the very inputs that dense bf16 attention saw.

The dense trajectory is kept: the baseline denoises once, and the inputs and the velocity of each forward are recorded.
Each method then predicts the velocity from the same inputs, see trajectory.py.
"""

from __future__ import annotations

from typing import Any

from fpsgen.bench.plan import BASELINE, EVERY_STEP, OURS, methods_to_run
from fpsgen.bench.provenance import provenance
from fpsgen.bench.rows import linear_of, setting_of
from fpsgen.bench.trajectory import recorded, step_errors
from fpsgen.models.patch.apply import apply
from fpsgen.models.wan.scheduler import with_shift
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import load_model
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import denoise, encode, patched

SCHEMA = "fpsgen.bench.steps/1"


def run(base: GenerateRequest, compare: tuple[str, ...], timing: Timing, command: str = "") -> list[dict[str, Any]]:
    """A row per method and step: index, sigma, profile, density, and the velocity's cosine, MSE and SNR in dB against
    dense bf16, means over the step's forwards. Raises as pipeline.run.run does.
    """
    base = base.with_settings(**EVERY_STEP, exact=True)  # as many forwards to each step, each of one branch
    model = load_model(base, timing, False)
    pipe = model.pipe
    methods = [name for name in methods_to_run(compare) if name != BASELINE]
    common = {"schema": SCHEMA, **provenance(model.device), "command": command, **setting_of(base)}
    pipe.scheduler = with_shift(pipe.scheduler, base.sampling.shift)
    with apply(pipe, method=BASELINE, strict=True, linear="bf16", exact=True) as handle:
        with timing.stage("text"):
            embeds = encode(pipe, base, timing)
        with timing.stage("denoise"), recorded(pipe.transformer) as forwards:
            denoise(pipe, handle, base, embeds, timing)  # a forward for each branch
    rows = []
    for name in methods:
        with timing.stage(name), _method(pipe, base, name) as handle:
            for step in step_errors(pipe.transformer, handle, forwards, base.sampling.steps):
                timing.step(step.index, base.sampling.steps, name)
                ran = {"method": name, "linear": linear_of(handle.report()), "step": step.index, **_ran(step.ran)}
                rows.append({**common, **ran, **step.error})
    return rows


def _method(pipe: Any, base: GenerateRequest, name: str) -> Any:
    """Attention alone differs, nothing is fused: linear layers are in bf16 unless --linear says otherwise."""
    attention = {"method": None if name == OURS else name, "strict": True}
    return patched(pipe, base.replace(attention=attention).with_settings(linear=base.values()["linear"] or "bf16"))


def _ran(step: dict[str, Any]) -> dict[str, Any]:
    density = step["density"]
    return {
        "sigma": round(step["sigma"], 6),
        "profile": step["profile"],
        "profile_method": step["method"],
        "density": None if density is None else round(density, 4),
    }
