"""Attention alone: time and rate of every method at one shape, each checked against fp64 before it is timed.

Rates count 4 x D floating-point operations for each pair of real tokens that the window keeps; padding inside kernel
blocks does not count. What is timed is the whole operator (quantization and attention), as a model calls it: one call
queued behind another; an online method chooses its keys within it. host_us is what such a call costs the CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch

from fpsgen.attention.methods import METHODS
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.op import attend, kept_density, select_lists
from fpsgen.attention.plan import AttentionPlan, BlockLists
from fpsgen.attention.tiles import Size3
from fpsgen.bench.baselines import Attention, baselines, fa3_fp8_alone, flex
from fpsgen.bench.kernel_error import Inputs, error_to_dense, error_to_lists
from fpsgen.bench.provenance import provenance
from fpsgen.bench.shapes import Shape, plans_for
from fpsgen.bench.timing import captured, measure, quantile
from fpsgen.errors import NUMERIC, FpsgenError

SCHEMA = "fpsgen.bench.kernel/1"
FP8_GATE, GATE = 4e-2, 1e-2  # relative L2: P's cast to E4M3 alone is 1.7e-2, bf16 4e-3
LOOSE_GATE = 0.15  # against inputs that are not quantized alike; this only catches wrong answers


def run(
    shapes: list[Shape],
    methods: list[str],
    densities: list[float],
    seconds: float,
    device: torch.device,
    command: str = "",
) -> Iterator[dict[str, Any]]:
    """Rows for every shape as they come: baselines first, then methods, the windowed ones at each density.

    seconds: time given to each row's repeats. command: the line that was typed, kept in the rows. Raises FpsgenError
    NUMERIC where a result is wrong.
    """
    # kernels on their own, events and graphs go by the current device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        base_row = {"schema": SCHEMA, **provenance(device), "command": command}
        yield from _rows(shapes, methods, densities, seconds, device, base_row)


def _rows(
    shapes: list[Shape],
    methods: list[str],
    densities: list[float],
    seconds: float,
    device: torch.device,
    base_row: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    others, missing = baselines(device)
    seen: set[Any] = set()  # inputs that baselines had: tiles mean nothing to them
    compiled: set[Size3] = set()  # grids that FlexAttention was compiled for: it takes long
    for shape in shapes:
        inputs = shape.inputs(device)
        common = {**base_row, "shape": shape.name, "tokens": inputs[0].shape[1], "heads": shape.heads}
        common |= {"head_dim": shape.dim, "batch": shape.batch, "tiles": shape.tile, "captured": bool(shape.source)}
        case = (shape.grid, shape.heads, shape.dim, shape.batch, shape.source)
        if case not in seen:
            seen.add(case)
            yield from _peer_rows(shape, inputs, others, missing, common, seconds)
        if device.type == "cuda" and shape.grid not in compiled and shape.source is None:
            compiled.add(shape.grid)
            yield from _flex_rows(shape, inputs, densities, common, seconds)
        for name in methods:
            for plan in plans_for(shape, name, densities if METHODS[name].windowed else [1.0]):
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
        try:
            function(*inputs)
        except Exception as error:  # a peer's failure is a row, not the end of the bench
            yield {**common, "method": name, "peer": True, "missing": f"failed: {type(error).__name__}"}
            continue
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
    for plan in plans_for(shape, "sta", densities):
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
            if fused is not None and not plan.fuses_norm_rope(q.device, dim):
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


def operations(density: float, q: torch.Tensor) -> float:
    """Floating-point operations of this share of all pairs of real tokens."""
    batch, length, heads, dim = q.shape
    return 4 * dim * batch * heads * density * length**2


def _rate(times: list[float], density: float, q: torch.Tensor) -> dict[str, float]:
    median = statistics.median(times)
    return {
        "ms": round(median, 4),
        "p10_ms": round(quantile(times, 0.1), 4),
        "p90_ms": round(quantile(times, 0.9), 4),
        "tflops": round(operations(density, q) / median / 1e9, 1),
    }


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
