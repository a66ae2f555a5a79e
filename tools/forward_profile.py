"""Where a forward of a Wan transformer at full size spends its time, kernel by kernel, as figures/profile.json.

`python -m tools.forward_profile [MODEL RES]` prints the file, on a GPU: random weights, the schedule `paper` with its
FP8 linear layers, patched as `generate` does. Eight of the model's layers are there; what runs once a forward counts to
the parts of all layers.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fpsgen.attention.schedule import Schedule
from fpsgen.bench.provenance import provenance
from fpsgen.models.catalog.registry import find_spec
from fpsgen.models.patch.apply import apply
from fpsgen.models.wan.random_weights import random_embeds, random_pipeline
from tools.command_line import parse_on_gpu, parser_of
from tools.density_table import SIZES
from tools.power import repeat

LAYERS, FRAMES = 8, 81
# the first that is found in a kernel's name
PARTS = {
    "attention": "attend_",
    "FP8 matrix products": "nvjet_.*qq|e4m3|f8f8",
    "LayerNorm, modulation, residual, cast to FP8": "^norm_kernel",
    "casts to FP8: GELU, weights behind attention": "^quantize_kernel",
    "norm and RoPE of Q and K, cast": "norm_rope_quantize|measure_kv",
    "cross-attention": "cross_attention_kernel|inverse_rms",
    "cast of V": "quantize_qkv",
    "all else (embeddings, head: once a forward)": "",
}


class Kernel(NamedTuple):
    """A kernel that ran, times in microseconds."""

    name: str
    start: float
    end: float


def by_part(kernels: Iterable[Kernel], layers: int, of: int) -> dict[str, float]:
    """Milliseconds of each of `of` layers by PARTS, from a forward of `layers` of them."""
    named: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        named[kernel.name].append(kernel.end - kernel.start)
    parts = dict.fromkeys(PARTS, 0.0)
    for name, times in named.items():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        each, once = divmod(len(times), layers)
        parts[part] += statistics.mean(times) * (each + once / of) / 1e3
    return parts


def busy(kernels: Iterable[Kernel]) -> float:
    """The share of the time from the first kernel's start to the last one's end in which one runs."""
    spans = sorted((kernel.start, kernel.end) for kernel in kernels)
    covered, reached = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - spans[0][0])


def traced(call: Callable[[], object]) -> list[Kernel]:
    """What a call runs on the GPU; copies and fills too."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        call()
        torch.cuda.synchronize()
    events: Any = prof.events()
    found = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return [Kernel(event.name, event.time_range.start, event.time_range.end) for event in found]


@torch.no_grad()
def run(model: str, res: str, device: torch.device, seconds: float = 2.0) -> dict[str, Any]:
    """columns and rows."""
    spec, (width, height) = find_spec(model), SIZES[res]
    of = int(dict(spec.transformer)["num_layers"])
    pipe = random_pipeline(
        replace(spec, transformer={**spec.transformer, "num_layers": LAYERS}), device, torch.bfloat16
    )
    embeds = random_embeds(pipe, 512, device, torch.bfloat16)
    latents = pipe.prepare_latents(1, 16, height, width, FRAMES, torch.bfloat16, device)
    columns, cells = {"what": f"{spec.name}, {res}: ms for each of {of} layers"}, defaultdict(dict)
    with apply(pipe, schedule="paper", strict=True) as handle:
        for name, sigma in profiles(handle.schedule):

            def call(sigma=sigma) -> None:
                inputs = {"hidden_states": latents, "timestep": torch.tensor([1000.0 * sigma], device=device)}
                with handle.fixed_sigma(sigma):
                    pipe.transformer(**inputs, encoder_hidden_states=embeds, return_dict=False)

            call()
            smi, _ = repeat(call, device, seconds)
            kernels = traced(call)
            columns[name] = name
            for part, ms in by_part(kernels, LAYERS, of).items():
                cells[part][name] = f"{ms:.2f}"
            cells["a kernel runs, % of the time"][name] = f"{busy(kernels):.1%}"
            cells["clock, MHz; power, W"][name] = f"{smi['mhz']:.0f}; {smi['watt']:.0f}" if smi else ""
    base = {"schema": "fpsgen.bench.profile/1", **provenance(device), "model": spec.name, "res": res}
    return {"columns": columns, "rows": [base | {"what": what} | row for what, row in cells.items()]}


def profiles(schedule: Schedule) -> list[tuple[str, float]]:
    """Each profile and a sigma at which it runs, in the order of denoising."""
    return [(name, (low + high) / 2) for low, high, name in sorted(schedule.windows, reverse=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("forward_profile", __doc__)
    parser.add_argument("model", nargs="?", default="wan2.1-14b")
    parser.add_argument("res", nargs="?", default="720p", choices=SIZES)
    found = parse_on_gpu(parser, arguments)
    print(json.dumps(run(found.model, found.res, torch.device("cuda")), indent=1))


if __name__ == "__main__":
    main()
