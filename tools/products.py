"""FP8 matrix products of a Wan2.1-14B layer at 720p, by how their operands are scaled, as figures/products.json.

`python -m tools.products` prints the file, on a GPU with FP8 tensor cores. Kinds take turns, each for so long that a
GPU comes to its limit of power; clock and power are medians of the samples of nvidia-smi meanwhile.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fpsgen.bench.provenance import provenance
from fpsgen.fused import fp8_linear, fp8_product, quantize_rows, quantize_weight
from tools.command_line import parse_on_gpu, parser_of
from tools.power import repeat

COLUMNS = {
    "what": "14B, 720p: product",
    "kind": "Scales",
    "ms_cell": "ms, median",
    "range": "smallest-largest",
    "tflops": "TFLOP/s",
    "mhz": "SM clock, MHz",
    "watt": "Power, W",
}
SHAPES = {
    "attention's projections": (5120, 5120),
    "feed-forward, up": (13824, 5120),
    "feed-forward, down": (5120, 13824),
}
ROWS, ONE, LATER = "one per row, of activations", "one for all rows", "one per row, left to the pass that follows"


def run(tokens: int, device: torch.device, seconds: float = 0.5, rounds: int = 3) -> list[dict[str, Any]]:
    """Rows for products of `tokens` activations with each of SHAPES (outputs, inputs)."""
    base = {"schema": "fpsgen.bench.products/1", **provenance(device), "tokens": tokens}
    rows = []
    for what, (outputs, inputs) in SHAPES.items():
        samples: dict[str, list] = {}
        calls = products(tokens, outputs, inputs, device)
        for _ in range(rounds):
            for kind, call in calls.items():
                samples.setdefault(kind, []).append(repeat(call, device, seconds))
        for kind, found in samples.items():
            times = [statistics.median(milliseconds) for _, milliseconds in found]
            median = statistics.median(times)
            row = {"what": what, "kind": kind, "outputs": outputs, "inputs": inputs, "ms": times}
            row |= {"ms_cell": f"{median:.3f}", "range": f"{min(times):.3f}-{max(times):.3f}"}
            row |= {"tflops": f"{2e-9 * tokens * outputs * inputs / median:.0f}"}
            for key in ("mhz", "watt"):
                known = [smi[key] for smi, _ in found if key in smi]
                row[key] = f"{statistics.median(known):.0f}" if known else ""
            rows.append(base | row)
    return rows


def products(tokens: int, outputs: int, inputs: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Calls by kind of scales."""
    generator = torch.Generator(device).manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, generator=generator, device=device).bfloat16()
        for size in ((tokens, inputs), (outputs, inputs), (outputs,))
    )
    rows, one = quantize_rows(x), quantize_rows(x, peaks=x.abs().amax(0).float())
    quantized = quantize_weight(weight * inputs**-0.5)
    return {
        ROWS: lambda: fp8_linear(rows, quantized, bias),
        ONE: lambda: fp8_linear(one, quantized, bias),
        LATER: lambda: fp8_product(rows, quantized, bias),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parse_on_gpu(parser_of("products", __doc__), arguments)
    print(json.dumps({"columns": COLUMNS, "rows": run(75_600, torch.device("cuda"))}, indent=1))


if __name__ == "__main__":
    main()
