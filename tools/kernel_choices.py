"""What three choices of the FP8 path are worth in error and time, as figures/choices.json:

- P.V moved into fp32 registers after every 128 keys (Sm90Config.promote), or left in the tensor core's sums;
- consumers that alternate at the tensor core (ping-pong, Sm90Config.pingpong), or do not;
- keys quantized without their mean (AttentionPlan.smooth_k), or as they are, where channels have a bias.

`python -m tools.kernel_choices` prints the file. Relative L2 errors are against fp64 softmax, of keys over the inputs
as given, else over the quantized inputs: what is left is P's cast and the sums.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from fpsgen.attention.op import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Size3
from fpsgen.bench.kernel_error import error_to_lists
from fpsgen.bench.provenance import provenance
from fpsgen.bench.shapes import Shape, plan_for
from fpsgen.bench.timing import measure
from tools.command_line import parser_of

COLUMNS = {"choice": "Choice", "data": "Data", "density": "Density", "error": "Relative error", "ms": "ms, median"}
LAUNCHES: dict[str, dict[str, bool]] = {
    "P.V in fp32 every 128 keys, ping-pong consumers": {},
    "P.V in the tensor core alone": {"promote": False},
    "consumers without ping-pong": {"pingpong": False},
}
BIASES = (0, 1, 4, 16)  # standard deviation of a channel's bias over that of keys


def run(grid: Size3, heads: int, device: torch.device, seconds: float = 0.3) -> list[dict[str, Any]]:
    """Rows for all choices at one shape, of keys alone where the GPU is no Hopper."""
    shape = Shape("", grid, heads)
    q, k, v = shape.inputs(device)
    base_row = provenance(device) | {"tokens": q.shape[1], "heads": heads}
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    rows = _launches(shape, q, k, v, seconds) if hopper else []
    return [{**base_row, **row} for row in rows + _smoothing(shape, q, k, v, seconds)]


def _launches(shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seconds: float) -> list:
    from fpsgen.attention.kernels import attention_kernel, choose

    rows = []
    for density in (1.0, 0.11):
        plan = plan_for(shape, "fps", density)
        tables, lists = plan.tables(q.device), plan.lists(q.device)
        chosen = choose(q, tables, True)
        for data, value in (("V normal", v), ("V normal + 1", v + 1)):
            for name, change in LAUNCHES.items():
                config = replace(chosen, **change)

                def call(value=value, config=config, tables=tables, lists=lists) -> torch.Tensor:
                    return cast(torch.Tensor, attention_kernel(q, k, value, tables, lists, True, config=config)[0])

                error = error_to_lists(call(), plan, (q, k, value), lists, True)
                rows.append(
                    _row(name, data, plan, error, statistics.median(measure(call, seconds, q.device).milliseconds))
                )
    return rows


def _smoothing(shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seconds: float) -> list:
    rows = []
    generator = torch.Generator(q.device).manual_seed(1)
    direction = torch.randn(shape.heads, shape.dim, generator=generator, device=q.device)
    base = plan_for(shape, "fps", 0.11)
    for bias in BIASES:
        biased = (k + bias * direction).to(k.dtype)
        for smooth, name in ((False, "keys as they are"), (True, "keys without their mean")):
            plan = AttentionPlan(base.grid, base.tile, base.window, smooth_k=smooth)

            def call(plan=plan, biased=biased) -> torch.Tensor:
                return cast(torch.Tensor, attend(q, biased, v, plan))

            error = error_to_lists(call(), plan, (q, biased, v), plan.lists(q.device), False)
            data = f"K normal + {bias} x channel bias" if bias else "K normal"
            rows.append(_row(name, data, plan, error, statistics.median(measure(call, seconds, q.device).milliseconds)))
    return rows


def _row(choice: str, data: str, plan: AttentionPlan, error: float, ms: float) -> dict[str, Any]:
    row = {
        "choice": choice,
        "data": data,
        "density": f"{plan.density:.1%}",
        "error": f"{error:.2e}",
        "ms": round(ms, 3),
    }
    return {"schema": "fpsgen.bench.choices/1"} | row


def main(arguments: Sequence[str] | None = None) -> None:
    parser_of("kernel_choices", __doc__).parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (21, 45, 80) if device.type == "cuda" else (5, 12, 16)
    print(json.dumps({"columns": COLUMNS, "rows": run(size, 12 if device.type == "cuda" else 2, device)}, indent=1))


if __name__ == "__main__":
    main()
