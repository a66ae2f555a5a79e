"""Attention alone: time and rate of every method at one shape, each checked against fp32 before it is timed.

Rates count 4 x D floating-point operations for each pair of real tokens that the window keeps; padding inside kernel
blocks does not count. What is timed is the whole operator (quantization and attention), as a model calls it: one call
queued behind another. host_us is what such a call costs the CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch

from fpsgen.attention.methods import METHODS
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.op import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.profile import Profile
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import Size3
from fpsgen.bench.baselines import Attention, fa3_fp8_alone, flex, peers
from fpsgen.bench.provenance import provenance
from fpsgen.errors import NUMERIC, FpsgenError

SCHEMA = "fpsgen.bench.kernel/1"
GATE = {True: 4e-2, False: 1e-2}  # relative L2 by FP8 or not: P's cast to E4M3 alone is 1.7e-2, bf16 4e-3
PEER_GATE = 0.15  # peers with one scale per head are coarser; this only catches wrong answers


@dataclass(frozen=True)
class Shape:
    """grid: (T, H, W) tokens. tile: of windowed methods and of fp8."""

    name: str
    grid: Size3
    heads: int
    dim: int = 128
    batch: int = 1
    tile: str | Size3 = "fit"

    def inputs(self, device: torch.device) -> list[torch.Tensor]:
        """q, k, v [B, L, H, D] in bf16, normal; drawn on the device."""
        generator = torch.Generator(device).manual_seed(0)
        size = (self.batch, self.grid[0] * self.grid[1] * self.grid[2], self.heads, self.dim)
        return [torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(3)]


def run(
    shapes: list[Shape], methods: list[str], densities: list[float], seconds: float, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Rows for every shape as they come: peers first, then methods, the windowed ones at each density.

    seconds: time given to each row's repeats. Raises FpsgenError NUMERIC where a result is wrong.
    """
    facts = provenance(device)
    others, missing = peers(device)
    for shape in shapes:
        q, k, v = shape.inputs(device)
        full = AttentionPlan(shape.grid)
        common = {"schema": SCHEMA, **facts, "shape": shape.name, "tokens": q.shape[1], "heads": shape.heads}
        common |= {"head_dim": shape.dim, "batch": shape.batch, "tiles": shape.tile}
        alike = shape.tile == shapes[0].tile  # peers do not depend on tiles, but for flex
        for name, function in others.items() if alike else ():
            row = {**common, "method": name, "peer": True, "density": 1.0, "tile": None, "window": None}
            row |= _timed(function, full, (q, k, v), seconds, PEER_GATE, False)
            if name == "fa3-fp8":
                alone = _rate(measure(fa3_fp8_alone(q, k, v), seconds, device).milliseconds, full, q)
                row |= {f"attend_{key}": value for key, value in alone.items()}
            yield row
        for name, why in missing.items() if alike else ():
            yield {**common, "method": name, "peer": True, "missing": why}
        once = alike and (shape.heads, shape.batch) == (shapes[0].heads, shapes[0].batch)  # flex compiles for long
        for plan in _plans(shape, "sta", densities) if once and device.type == "cuda" else ():
            row = {**common, "method": "flex", "peer": True, "density": round(density_of(plan), 4)}
            row |= {"tile": list(plan.tile), "window": list(plan.window)}
            yield row | _flex(plan, (q, k, v), seconds)
        for name in methods:
            for plan in _plans(shape, name, densities if METHODS[name].windowed else [1.0]):
                row = {**common, "method": name, "peer": False, "density": round(density_of(plan), 4)}
                row |= {"tile": list(plan.tile), "window": list(plan.window), "kernel": plan.kernel(device, shape.dim)}
                function = cast(Attention, partial(attend, plan=plan))
                row |= _timed(function, plan, (q, k, v), seconds, GATE[plan.fp8], plan.fp8)
                yield row | _parts(plan, (q, k, v), seconds) if row["kernel"] == "hopper" else row
        torch.cuda.empty_cache()


def _flex(plan: AttentionPlan, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], seconds: float) -> dict:
    try:
        function = flex(plan, inputs[0].device)
        function(*inputs)
    except Exception as error:  # a peer's failure is a row, not the end of the bench
        return {"missing": f"failed: {type(error).__name__}"}
    return _timed(function, plan, inputs, seconds, PEER_GATE, False)


def attend_alone(plan: AttentionPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    """A plan's Hopper kernel on inputs that are prepared here (16 bit: on q, k, v themselves); a Hopper GPU alone."""
    from fpsgen.attention.kernels import choose, launch, quantize

    batch, length, heads, dim = q.shape
    tables = plan.tables(q.device)
    config = choose(q, tables, plan.fp8)
    quantized = quantize(q, k, v, tables, plan.granularity, True) if plan.fp8 else None
    out, lse = torch.empty_like(q), torch.empty(batch, heads, length, device=q.device)
    return partial(launch, config, (q, k, v), quantized, tables, plan.lists(q.device), out, lse, dim**-0.5)


def _parts(
    plan: AttentionPlan, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], seconds: float
) -> dict[str, Any]:
    """The operator's two halves on their own, quantization from a CUDA graph, so that the CPU does not set the pace.
    attend_block_tflops counts padding as work, attend_tflops does not.
    """
    from fpsgen.attention.kernels import quantize

    q, k, v = inputs
    batch, _, heads, dim = q.shape
    layout = plan.tables("cpu").layout
    row: dict[str, Any] = {}
    if plan.fp8:
        for key, fused in (("prepare_ms", None), ("prepare_norm_rope_ms", norm_rope(q))):
            prepare = captured(partial(quantize, q, k, v, plan.tables(q.device), plan.granularity, True, fused))
            row[key] = round(statistics.median(measure(prepare, seconds, q.device).milliseconds), 4)
    times = measure(attend_alone(plan, q, k, v), seconds, q.device).milliseconds
    first = layout.tile_first_block.long()
    blocks = (first[1:] - first[:-1]) * plan.lists("cpu").list_count.double().mean(0)
    whole = 4 * dim * batch * heads * float(blocks.sum()) * layout.block**2
    row |= {f"attend_{key}": value for key, value in _rate(times, plan, q).items()}
    return row | {"attend_block_tflops": round(whole / statistics.median(times) / 1e9, 1)}


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph, which costs the CPU one launch."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


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
    batch, length, heads, dim = q.shape
    return 4 * dim * batch * heads * density_of(plan) * length**2


def _rate(times: list[float], plan: AttentionPlan, q: torch.Tensor) -> dict[str, float]:
    median = statistics.median(times)
    return {
        "ms": round(median, 4),
        "p10_ms": round(_quantile(times, 0.1), 4),
        "p90_ms": round(_quantile(times, 0.9), 4),
        "tflops": round(operations(plan, q) / median / 1e9, 1),
    }


def _plans(shape: Shape, method: str, densities: list[float]) -> list[AttentionPlan]:
    return list(dict.fromkeys(plan_for(shape, method, density) for density in densities))


def plan_for(shape: Shape, method: str, density: float) -> AttentionPlan:
    """The plan whose window of equal sides comes nearest to `density`."""
    if not METHODS[method].windowed or density >= 1:
        return AttentionPlan(shape.grid, shape.tile, method=method)
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
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    seconds: float,
    gate: float,
    fp8: bool,
) -> dict[str, Any]:
    def call() -> torch.Tensor:
        return function(*inputs)

    q = inputs[0]
    error = check(call(), plan, *inputs, fp8)
    if not error <= gate:
        raise FpsgenError(
            f"attention {plan.method} at {q.shape[1]} tokens is wrong: relative error {error:.3g}, allowed {gate:g}",
            "run fpsgen doctor, and report what it prints",
            NUMERIC,
        )
    times, host_us = measure(call, seconds, q.device)
    rate = _rate(times, plan, q)
    return {
        "median_ms": rate.pop("ms"),
        **rate,
        "host_us": host_us and round(host_us, 1),
        "repeats": len(times),
        "relative_error": float(f"{error:.3g}"),
    }


def check(
    out: torch.Tensor,
    plan: AttentionPlan,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    fp8: bool,
    tiles: int = 3,
) -> float:
    """Relative L2 error of some query tiles of `out` against fp32 softmax over the same inputs and key tiles.

    With fp8, inputs are quantized alike first, so that what is left is the kernel's own error and P's cast.
    """
    lists = plan.tile_lists()
    start, unit = ([0, *sizes.cumsum(0).tolist()] for sizes in (plan.layout.tile_sizes, plan.layout.unit_sizes))
    if fp8:
        q, k, v = fake_quantize(q, k, v, plan.tables("cpu").layout, plan.granularity)
    last = len(start) - 2
    wrong, size = 0.0, 0.0
    for tile in sorted({round(i * last / max(1, tiles - 1)) for i in range(tiles)}):
        rows = slice(start[tile], start[tile + 1])
        seen = lists.indices[0, tile, : int(lists.counts[0, tile])].tolist()
        keys = torch.cat([torch.arange(unit[u], unit[u + 1]) for u in seen]).to(q.device)
        query, key, value = (x.transpose(1, 2).float() for x in (q[:, rows], k[:, keys], v[:, keys]))
        wanted = torch.softmax(query @ key.mT * q.shape[-1] ** -0.5, -1) @ value
        got = out[:, rows].transpose(1, 2).float()
        wrong += float((got - wanted).square().sum())
        size += float(wanted.square().sum())
    return (wrong / max(size, 1e-30)) ** 0.5


class Timings(NamedTuple):
    """milliseconds of single calls; host_us: median time that the CPU needs for one, None where it does the work."""

    milliseconds: list[float]
    host_us: float | None


def measure(call: Callable[[], object], seconds: float, device: torch.device) -> Timings:
    """At least three calls, for about `seconds`; warmed up before.

    On a GPU they are queued behind each other in runs of about 10 ms; before a run of short ones go two that do not
    count, for they wait for the CPU.
    """
    times: list[float] = []
    if device.type != "cuda":
        call()
        limit = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < limit:
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
        return Timings(times, None)
    call()
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    once = time.perf_counter() - begin
    run = min(32, max(1, round(0.01 / once)))
    lead = 2 if once < 0.02 else 0
    host: list[float] = []
    limit = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < limit:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(run + 1)]
        for _ in range(lead):
            call()
        begin = time.perf_counter()
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        host.append((time.perf_counter() - begin) / run * 1e6)
        torch.cuda.synchronize(device)
        times += [a.elapsed_time(b) for a, b in pairwise(events)]
    return Timings(times, statistics.median(host))


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
