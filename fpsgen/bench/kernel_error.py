"""How far attention is from fp64, on some of its query tiles. Two questions, two errors.

Is the kernel right? Against fp64 over the same lists of keys, for quantized methods on inputs that are quantized alike,
so that what is left is P's cast and rounding. What does the method cost? Against dense fp64 attention on the inputs as
they are: that says something on real q, k, v alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fpsgen.attention.plan import AttentionPlan, BlockLists

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def error_to_lists(
    out: torch.Tensor, plan: AttentionPlan, inputs: Inputs, lists: BlockLists, quantized: bool, tiles: int = 3
) -> float:
    """Relative L2 error of `out` [B, L, H, D] against fp64 softmax over the keys in `lists`.

    inputs: q, k, v in the plan's order. quantized: they are rounded as the plan's kernel does first.
    """
    q, k, v = plan.quantized(*inputs) if quantized else inputs
    layout = plan.layout
    start, length = layout.block_start.tolist(), layout.block_len.tolist()
    index, count = (x.cpu() for x in lists)
    batch, _, heads, _ = q.shape
    wrong = size = 0.0
    for tile in _some(layout.num_tiles, tiles):
        rows = _rows(plan, tile)
        for b in range(batch):
            for h in range(heads):
                group = (b * heads + h) % len(count)
                blocks = index[group, tile, : int(count[group, tile])].tolist()
                pieces = [torch.arange(start[n], start[n] + length[n]) for n in blocks]
                keys = torch.cat(pieces).to(q.device) if pieces else torch.zeros(0, dtype=torch.long, device=q.device)
                pair = _squares(out[b, rows, h], q[b, rows, h], k[b, keys, h], v[b, keys, h])
                wrong, size = wrong + pair[0], size + pair[1]
    return (wrong / max(size, 1e-30)) ** 0.5


def error_to_dense(out: torch.Tensor, plan: AttentionPlan, inputs: Inputs, tiles: int = 3) -> float:
    """Relative L2 error of `out` [B, L, H, D] against dense fp64 attention of the inputs, all in the plan's order."""
    q, k, v = inputs
    wrong = size = 0.0
    for tile in _some(plan.layout.num_tiles, tiles):
        rows = _rows(plan, tile)
        for b in range(q.shape[0]):
            for h in range(q.shape[2]):
                pair = _squares(out[b, rows, h], q[b, rows, h], k[b, :, h], v[b, :, h])
                wrong, size = wrong + pair[0], size + pair[1]
    return (wrong / max(size, 1e-30)) ** 0.5


def _squares(out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[float, float]:
    """|out - wanted|^2 and |wanted|^2 of one head's rows [R, D] over its keys [S, D]; rows without keys are 0."""
    if len(key):
        scores = query.double() @ key.double().mT * query.shape[-1] ** -0.5
        wanted = torch.softmax(scores, -1) @ value.double()
    else:
        wanted = torch.zeros_like(out, dtype=torch.float64)
    return float((out.double() - wanted).square().sum()), float(wanted.square().sum())


def _some(count: int, wanted: int) -> Sequence[int]:
    """Evenly spaced numbers below `count`, its ends among them."""
    return sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)})


def _rows(plan: AttentionPlan, tile: int) -> slice:
    ends = [0, *plan.layout.tile_sizes.cumsum(0).tolist()]
    return slice(ends[tile], ends[tile + 1])
