"""figures/precision.json: what E4M3 and INT8 queries and keys cost in error, at equal windows and with equal P.V.

    fpsgen generate "a red ball moving right" -m nano --method bf16 --steps 10 --capture CAPTURES \
        --capture-layers 0,1,2,3,4,5 --capture-steps 3,9
    python -m tools.precision CAPTURES > figures/precision.json

Errors are relative L2, in percent, of the exact reference (P in E4M3 as the kernels have it) against fp32 softmax over
the same keys and the inputs as they are. Data: q, k, v of a dense generation, and normal numbers with what real keys
and values have been found to have: a bias of channels, and a few channels that are larger than the others.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.profile import Profile
from fpsgen.attention.reference import attention_reference
from fpsgen.bench.provenance import provenance
from fpsgen.pipeline.capture import captured_files, read_capture
from tools.command_line import parser_of

DENSITY = 0.35  # of schedule `balanced`, middle steps
GRID = (9, 10, 16)
COLUMNS = {
    "data": "Data",
    "keys": "Keys",
    "values": "Values",
    "e4m3": "Q, K in E4M3, %",
    "int8": "Q, K in INT8, %",
    "v": "V in E4M3 alone, %",
}
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def made() -> Iterator[tuple[str, Inputs]]:
    """Inputs [1, L, 4, 128] by name."""
    random = torch.Generator().manual_seed(0)
    shape = (1, GRID[0] * GRID[1] * GRID[2], 4, 128)
    q, k, v = (torch.randn(shape, generator=random) for _ in range(3))
    bias = torch.randn(4, 128, generator=random)
    large = torch.ones(4, 128)
    large[:, ::32] = 12.0
    yield "normal", (q, k, v)
    yield "keys with a channel bias of 4", (q, k + 4 * bias, v)
    yield "4 of 128 channels of keys and queries 12 times as large", (q * large**0.5 / 2, k * large**0.5 / 2, v)
    yield "both", (q * large**0.5 / 2, (k + 4 * bias) * large**0.5 / 2, v)
    yield "values with a channel bias of 4", (q, k, v + 4 * bias)


def errors(inputs: Inputs, plan: AttentionPlan, smooth: bool, centre: bool) -> dict[str, float]:
    """Percent, by what Q and K are rounded to: "e4m3", "int8"; "v" leaves them and P as they are, V is in
    E4M3."""
    q, k, v = (x.float() for x in inputs)
    exact, _ = attention_reference(q, k, v, plan.layout, plan.tile_lists(), False)
    key = k - k.mean(1, keepdim=True) if smooth else k
    mean = v.mean(1, keepdim=True) if centre else torch.zeros(())
    out = {}
    for name, int8 in (("e4m3", False), ("int8", True)):
        got, _ = attention_reference(q, key, v - mean, plan.layout, plan.tile_lists(), True, int8_qk=int8)
        out[name] = float((got + mean - exact).norm() / exact.norm())
    plain, _ = attention_reference(
        q, k, plan.quantized(q, k, v - mean)[2] + mean, plan.layout, plan.tile_lists(), False
    )
    out["v"] = float((plain - exact).norm() / exact.norm())
    return {name: 100 * error for name, error in out.items()}


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """For each kind of data the four combinations; of captures the mean over all, and each layer's."""
    base_row = provenance(torch.device("cpu"))
    settings = [(smooth, centre) for smooth in (False, True) for centre in (False, True)]
    found: dict[str, list[dict[tuple[bool, bool], dict[str, float]]]] = {}

    def measure(names: tuple[str, ...], inputs: Inputs, plan: AttentionPlan) -> None:
        own = {setting: errors(inputs, plan, *setting) for setting in settings}
        for name in names:
            found.setdefault(name, []).append(own)

    for name, inputs in made():
        measure((name,), inputs, AttentionPlan.of(Profile("p", "fps", density=DENSITY), GRID))
    for path in captured_files(folder):
        one = read_capture(path)
        plan = AttentionPlan.of(Profile("p", "fps", density=DENSITY), one.grid)
        order = plan.tables("cpu").order
        names = ("nano, all layers", f"nano, layer {one.metadata['layer']}")
        measure(names, (one.q[:, order], one.k[:, order], one.v[:, order]), plan)
    for name, some in found.items():
        for smooth, centre in [(True, False)] if ", layer " in name else settings:
            row = {"data": name, "keys": "less their mean" if smooth else "as they are"}
            row |= {"values": "less their mean" if centre else "as they are", "density": DENSITY, "calls": len(some)}
            for key in ("e4m3", "int8", "v"):
                row[key] = round(statistics.mean(one[smooth, centre][key] for one in some), 3)
            yield base_row | {"schema": "fpsgen.precision/1", **row}


def main() -> int:
    parser = parser_of("precision", __doc__)
    parser.add_argument("captures", type=Path, help="folder of fpsgen generate --capture")
    folder = parser.parse_args().captures
    if not captured_files(folder):
        print(f"{folder} holds no captures\nmake some as this file says", file=sys.stderr)
        return 4
    print(json.dumps({"columns": COLUMNS, "rows": list(rows(folder))}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
