"""Attention alone: time and rate of every method at one shape, each checked against fp64 before it is timed.

Rates count 4 x D floating-point operations for each pair of real tokens that the window keeps; padding inside kernel
blocks does not count. What is timed is the whole operator (quantization and attention), as a model calls it: one call
queued behind another; an online method chooses its keys within it. host_us is what such a call costs the CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from fpsgen.attention.methods import METHODS
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.op import attend, kept_density, select_lists
from fpsgen.attention.plan import AttentionPlan, BlockLists
from fpsgen.attention.profile import Profile
from fpsgen.attention.tiles import Size3
from fpsgen.bench.baselines import Attention, fa3_fp8_alone, flex, peers
from fpsgen.bench.kernel_error import Inputs, error_to_dense, error_to_lists
from fpsgen.bench.provenance import provenance
from fpsgen.bench.timing import captured, measure, quantile
from fpsgen.errors import BAD_INPUT, NUMERIC, FpsgenError
from fpsgen.pipeline.capture import captured_files, read_capture

SCHEMA = "fpsgen.bench.kernel/1"
FP8_GATE, GATE = 4e-2, 1e-2  # relative L2: P's cast to E4M3 alone is 1.7e-2, bf16 4e-3
LOOSE_GATE = 0.15  # against inputs that are not quantized alike; this only catches wrong answers


@dataclass(frozen=True)
class Shape:
    """grid: (T, H, W) tokens. tile: of windowed methods and of fp8. source: a capture that the inputs are read from."""

    name: str
    grid: Size3
    heads: int
    dim: int = 128
    batch: int = 1
    tile: str | Size3 = "fit"
    source: Path | None = None

    def inputs(self, device: torch.device) -> Inputs:
        """q, k, v [B, L, H, D] in bf16, raster order: captured, or normal and drawn on the device."""
        if self.source is not None:
            found = read_capture(self.source)
            return cast(Inputs, tuple(x.to(device, torch.bfloat16) for x in (found.q, found.k, found.v)))
        generator = torch.Generator(device).manual_seed(0)
        size = (self.batch, self.grid[0] * self.grid[1] * self.grid[2], self.heads, self.dim)
        drawn = (torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(3))
        return cast(Inputs, tuple(drawn))


def captured_shapes(folder: Path, tiles: Sequence[str | Size3]) -> list[Shape]:
    """A shape for each capture in a folder and each tile. Raises FpsgenError BAD_INPUT."""
    files = captured_files(folder)
    if not files:
        raise FpsgenError(f"{folder} holds no captures", "make some: fpsgen generate --capture FOLDER", BAD_INPUT)
    shapes = []
    for path in files:
        found = read_capture(path)
        heads, dim = found.q.shape[2:]
        shapes += [Shape(found.name, found.grid, heads, dim, 1, tile, path) for tile in tiles]
    return shapes


def run(
    shapes: list[Shape], methods: list[str], densities: list[float], seconds: float, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Rows for every shape as they come: peers first, then methods, the windowed ones at each density.

    seconds: time given to each row's repeats. Raises FpsgenError NUMERIC where a result is wrong.
    """
    facts = provenance(device)
    others, missing = peers(device)
    seen: set[Any] = set()  # inputs that peers had: tiles mean nothing to them
    compiled: set[Size3] = set()  # grids that FlexAttention was compiled for: it takes long
    for shape in shapes:
        inputs = shape.inputs(device)
        common = {"schema": SCHEMA, **facts, "shape": shape.name, "tokens": inputs[0].shape[1], "heads": shape.heads}
        common |= {"head_dim": shape.dim, "batch": shape.batch, "tiles": shape.tile, "captured": bool(shape.source)}
        case = (shape.grid, shape.heads, shape.dim, shape.batch, shape.source)
        if case not in seen:
            seen.add(case)
            yield from _peer_rows(shape, inputs, others, missing, common, seconds)
        if device.type == "cuda" and shape.grid not in compiled and shape.source is None:
            compiled.add(shape.grid)
            yield from _flex_rows(shape, inputs, densities, common, seconds)
        for name in methods:
            for plan in _plans(shape, name, densities if METHODS[name].windowed else [1.0]):
                yield common | _method_row(shape, plan, inputs, seconds)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _peer_rows(
    shape: Shape,
    inputs: Inputs,
    others: dict[str, Attention],
    missing: dict[str, str],
    common: dict[str, Any],
    seconds: float,
) -> Iterator[dict[str, Any]]:
    full, device = AttentionPlan(shape.grid), inputs[0].device
    for name, function in others.items():
        row = {**common, "method": name, "peer": True, "density": 1.0, "tile": None, "window": None}
        row |= _timed(function, full, inputs, full.lists("cpu"), seconds, LOOSE_GATE, False)
        if name == "fa3-fp8":
            alone = _rate(measure(fa3_fp8_alone(*inputs), seconds, device).milliseconds, 1.0, inputs[0])
            row |= {f"attend_{key}": value for key, value in alone.items()}
        yield row
    for name, why in missing.items():
        yield {**common, "method": name, "peer": True, "missing": why}


def _flex_rows(
    shape: Shape, inputs: Inputs, densities: list[float], common: dict[str, Any], seconds: float
) -> Iterator[dict[str, Any]]:
    for plan in _plans(shape, "sta", densities):
        row = {**common, "method": "flex", "peer": True, "density": round(density_of(plan), 4)}
        row |= {"tile": list(plan.tile), "window": list(plan.window)}
        yield row | _flex(plan, in_order(inputs, plan), seconds)


def _method_row(shape: Shape, plan: AttentionPlan, raster: Inputs, seconds: float) -> dict[str, Any]:
    """What was measured of one of our methods; the density is what its lists hold."""
    inputs = in_order(raster, plan)
    lists = select_lists(*inputs, plan)
    density = float(kept_density(lists, plan))
    row = {"method": plan.method, "peer": False, "density": round(density, 4), "online": plan.rule.online}
    row |= {"tile": list(plan.tile), "window": list(plan.window), "kernel": plan.kernel(raster[0].device, shape.dim)}
    gate = FP8_GATE if plan.fp8 else GATE
    row |= _timed(cast(Attention, partial(attend, plan=plan)), plan, inputs, lists, seconds, gate, plan.fp8)
    return row | _parts(plan, inputs, lists, seconds) if row["kernel"] == "hopper" else row


def in_order(inputs: Inputs, plan: AttentionPlan) -> Inputs:
    """q, k, v [B, L, H, D] from raster order in the plan's."""
    if not plan.needs_order:
        return inputs
    order = plan.tables(inputs[0].device).order
    return cast(Inputs, tuple(x.index_select(1, order) for x in inputs))


def _flex(plan: AttentionPlan, inputs: Inputs, seconds: float) -> dict:
    try:
        function = flex(plan, inputs[0].device)
        function(*inputs)
    except Exception as error:  # a peer's failure is a row, not the end of the bench
        return {"missing": f"failed: {type(error).__name__}"}
    return _timed(function, plan, inputs, plan.lists("cpu"), seconds, LOOSE_GATE, False)


def attend_alone(
    plan: AttentionPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lists: BlockLists | None = None
) -> Callable[[], object]:
    """A plan's Hopper kernel on inputs that are prepared here (16 bit: on q, k, v themselves); a Hopper GPU alone.
    lists: instead of the plan's.
    """
    from fpsgen.attention.kernels import choose, launch, quantize

    batch, length, heads, dim = q.shape
    tables = plan.tables(q.device)
    config = choose(q, tables, plan.fp8, plan.pv_threshold)
    quantized = quantize(q, k, v, tables, plan.granularity, True, int8_qk=plan.int8_qk) if plan.fp8 else None
    out, lse = torch.empty_like(q), torch.empty(batch, heads, length, device=q.device)
    return partial(launch, config, (q, k, v), quantized, tables, lists or plan.lists(q.device), out, lse, dim**-0.5)


def _parts(plan: AttentionPlan, inputs: Inputs, lists: BlockLists, seconds: float) -> dict[str, Any]:
    """The operator's two halves on their own, quantization from a CUDA graph, so that the CPU does not set the pace.
    attend_block_tflops counts padding as work, attend_tflops does not.
    """
    from fpsgen.attention.kernels import quantize

    q, k, v = inputs
    batch, _, heads, dim = q.shape
    layout = plan.tables("cpu").layout
    row: dict[str, Any] = {}
    if plan.fp8:
        means = (bool(plan.smooth_k), plan.smooth_v, plan.int8_qk)
        for key, fused in (("prepare_ms", None), ("prepare_norm_rope_ms", norm_rope(q))):
            if plan.int8_qk and fused is not None:
                continue  # norms come before it
            prepare = captured(partial(quantize, q, k, v, plan.tables(q.device), plan.granularity, True, fused, *means))
            row[key] = round(statistics.median(measure(prepare, seconds, q.device).milliseconds), 4)
    times = measure(attend_alone(plan, q, k, v, lists), seconds, q.device).milliseconds
    first = layout.tile_first_block.long()
    blocks = (first[1:] - first[:-1]) * lists.list_count.cpu().double().mean(0)
    whole = 4 * dim * batch * heads * float(blocks.sum()) * layout.block**2
    density = float(kept_density(lists, plan))
    row |= {f"attend_{key}": value for key, value in _rate(times, density, q).items()}
    return row | {"attend_block_tflops": round(whole / statistics.median(times) / 1e9, 1)}


def norm_rope(q: torch.Tensor) -> NormRope:
    """Random weights and angles for q [B, L, H, D]."""
    _, length, heads, dim = q.shape
    norm_q, norm_k = torch.randn(2, heads * dim, device=q.device, dtype=q.dtype)
    return NormRope(norm_q, norm_k, torch.randn(length, dim, device=q.device), 1e-6)


def density_of(plan: AttentionPlan) -> float:
    """Kept share of the pairs. Raises ValueError for methods that choose their keys at each call."""
    if plan.density is None:
        raise ValueError(f"method {plan.method} has no density of its own.\nMeasure methods with fixed lists.")
    return plan.density


def operations(plan: AttentionPlan, q: torch.Tensor) -> float:
    """Floating-point operations of all pairs of real tokens that the plan keeps."""
    return _operations(density_of(plan), q)


def _operations(density: float, q: torch.Tensor) -> float:
    batch, length, heads, dim = q.shape
    return 4 * dim * batch * heads * density * length**2


def _rate(times: list[float], density: float, q: torch.Tensor) -> dict[str, float]:
    median = statistics.median(times)
    return {
        "ms": round(median, 4),
        "p10_ms": round(quantile(times, 0.1), 4),
        "p90_ms": round(quantile(times, 0.9), 4),
        "tflops": round(_operations(density, q) / median / 1e9, 1),
    }


def _plans(shape: Shape, method: str, densities: list[float]) -> list[AttentionPlan]:
    return list(dict.fromkeys(plan_for(shape, method, density) for density in densities))


def plan_for(shape: Shape, method: str, density: float) -> AttentionPlan:
    """The plan whose window of equal sides comes nearest to `density`."""
    if not METHODS[method].windowed or density >= 1:
        return AttentionPlan(shape.grid, METHODS[method].tile or shape.tile, method=method)
    if shape.tile == "blocks":
        return AttentionPlan.of(Profile("bench", method, shape.tile, density=density), shape.grid)
    tiles = AttentionPlan(shape.grid, shape.tile).tiling.tile_grid
    sides = [sorted({*range(1, n, 2), n}) for n in tiles]
    plans = {
        (t, h, w): AttentionPlan(shape.grid, shape.tile, (t, h, w), method=method)
        for t in sides[0]
        for h in sides[1]
        for w in sides[2]
        if abs(t * h * w / (tiles[0] * tiles[1] * tiles[2]) - density) < 0.5 * density
    }
    if not plans:
        return AttentionPlan(shape.grid, shape.tile, (1, 1, 1), method=method)

    def cost(window: Size3) -> float:
        share = [w / n for w, n in zip(window, tiles, strict=True)]
        return abs(share[0] * share[1] * share[2] / density - 1) + 0.1 * (max(share) / min(share) - 1)

    return plans[min(plans, key=cost)]


def _timed(
    function: Attention,
    plan: AttentionPlan,
    inputs: Inputs,
    lists: BlockLists,
    seconds: float,
    gate: float,
    quantized: bool,
) -> dict[str, Any]:
    """Checked first: relative_error is to fp64 over the same lists, see kernel_error.py; error_to_dense to all keys."""

    def call() -> torch.Tensor:
        return function(*inputs)

    q, out = inputs[0], call()
    error = error_to_lists(out, plan, inputs, lists, quantized)
    if not error <= gate:
        raise FpsgenError(
            f"attention {plan.method} at {q.shape[1]} tokens is wrong: relative error {error:.3g}, allowed {gate:g}",
            "run fpsgen doctor, and report what it prints",
            NUMERIC,
        )
    times, host_us = measure(call, seconds, q.device)
    rate = _rate(times, float(kept_density(lists, plan)), q)
    return {
        "median_ms": rate.pop("ms"),
        **rate,
        "host_us": host_us and round(host_us, 1),
        "repeats": len(times),
        "relative_error": float(f"{error:.3g}"),
        "error_to_dense": float(f"{error_to_dense(out, plan, inputs):.3g}"),
    }
