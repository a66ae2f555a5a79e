"""figures/precision-speed.json: what INT8 queries and keys cost in time against E4M3, at equal windows, on one GPU.

    python -m tools.precision_speed > figures/precision-speed.json

Both are timed alternately, three rounds each: attention alone, and the operator as a model calls it (norm, rotary
embedding, casts, attention), keys without their mean. Inputs are normal numbers.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from fpsgen.attention.op import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.profile import Profile
from fpsgen.bench.kernel import attend_alone, norm_rope
from fpsgen.bench.provenance import provenance
from fpsgen.bench.shapes import Shape
from fpsgen.bench.timing import measure
from tools.command_line import parse_on_gpu, parser_of

GRIDS = {"480p": (21, 30, 52), "720p": (21, 45, 80)}
HEADS = 12
DENSITIES = (0.2, 0.35, 0.45, 1.0)
ROUNDS = 3
COLUMNS = {
    "what": "Shape",
    "kept": "Density",
    "attend_e4m3": "Attention alone, E4M3, ms",
    "attend_int8": "INT8, ms",
    "attend": "INT8 / E4M3",
    "whole_e4m3": "With norm, RoPE, casts: E4M3, ms",
    "whole_int8": "INT8, ms ",
    "whole": "INT8 / E4M3 ",
}


def rows(device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each grid and density. seconds: of each measurement."""
    base_row = provenance(device)
    for name, grid in GRIDS.items():
        inputs = Shape(name, grid, HEADS).inputs(device)
        for density in DENSITIES:
            calls = {}
            for qk in ("e4m3", "int8"):
                profile = Profile(qk, "fps", density=density, smooth_k=True, options={"qk": qk})
                plan = AttentionPlan.of(profile, grid)
                calls[f"whole_{qk}"] = partial(attend, *inputs, plan, norm_rope=norm_rope(inputs[0]))
                if plan.kernel(device, 128) == "hopper":
                    calls[f"attend_{qk}"] = attend_alone(plan, *inputs)
            times = alternately(calls, seconds, device)
            row = {**base_row, "what": f"{name}, {HEADS} heads", "kept": f"{plan.density:.1%}"}
            for kind in ("attend", "whole"):
                if f"{kind}_int8" in times:
                    row |= {f"{kind}_{qk}": f"{times[f'{kind}_{qk}']:.3f}" for qk in ("e4m3", "int8")}
                    row[kind] = f"{times[f'{kind}_int8'] / times[f'{kind}_e4m3']:.3f}"
            yield row


def alternately(calls: dict[str, Any], seconds: float, device: torch.device) -> dict[str, float]:
    """Milliseconds of each call, medians over rounds in which all take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(statistics.median(measure(call, seconds, device).milliseconds))
    return {name: statistics.median(times) for name, times in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parse_on_gpu(parser_of("precision_speed", __doc__), arguments)
    print(json.dumps({"columns": COLUMNS, "rows": list(rows(torch.device("cuda"), 0.1))}, indent=1))


if __name__ == "__main__":
    main()
