"""Sparse VideoGen: each head attends to near frames (spatial) or to near places of all frames (temporal), whichever
gives the smaller error on some sampled rows of this call.

What differs from the original: it lays the tokens of temporal heads out anew, place by place, so that both masks become
bands along the diagonal. Here all tokens stay in tile order and the masks are lists of key blocks: blocks of near
frames and every place, or of near places and every frame. Both also keep the blocks of the first frame. Near places are
near in both directions, where the original's band follows the rows of the picture. The sampled rows are drawn once for
each grid, so that a seed gives the same video again. Steps and layers that the original keeps dense
(first_times_fp, first_layers_fp) are the schedule's affair.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from fpsgen.attention.methods.base import Method, Selection
from fpsgen.attention.windows import axis_extents, window_density, window_start

if TYPE_CHECKING:
    import torch

    from fpsgen.attention.plan import AttentionPlan
    from fpsgen.attention.tiles import TileLists, Tiling
    from fpsgen.attention.windows import Size3


class _SpatialOrTemporal(Selection):
    online = True

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> TileLists:
        """Source: arXiv 2502.01776, section 4.1 (online profiling)."""
        from fpsgen.attention.tiles import TileLists

        fixed = plan.constant(both_lists, q.device)
        best = mask_errors(q, k, v, plan).argmin(0).flatten()  # [B*H], 0 spatial, 1 temporal
        return TileLists(fixed.indices[best], fixed.counts[best])


def mask_errors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Mean square error of the output of sampled rows as spatial (0) and as temporal (1) heads: fp32 [2, B, H]."""
    import torch

    rows, masks = plan.constant(sampled_masks, q.device)
    qk = torch.einsum("bnhd,blhd->bhnl", q[:, rows] * q.shape[-1] ** -0.5, k).float()  # n sampled rows
    p = qk.softmax(-1).to(v.dtype)
    kept = torch.stack((p, *(p * mask for mask in masks)), 2)  # [B, H, 3, n, L]: v is read once
    row_sum = kept.sum(-1, keepdim=True, dtype=torch.float32).clamp(min=1e-30)
    exact, *out = (torch.einsum("bhmnl,blhd->bhmnd", kept, v).float() / row_sum).unbind(2)
    return torch.stack([(each - exact).square().mean((2, 3)) for each in out])


def near_windows(tiling: Tiling, sparsity: float) -> tuple[TileLists, TileLists]:
    """Spatial and temporal lists (G = 1 each): the windows that, with the first frame's blocks, come nearest to the
    share `sparsity` of all pairs; of equally near ones the most even.
    """
    t, h, w = axis_extents(tiling.grid, tiling.tile, tiling.block)
    spatial = [(extent, h[-1], w[-1]) for extent in t]
    temporal = [(t[-1], *extents) for extents in product(h, w)]

    def nearest(windows: list[Size3]) -> TileLists:
        def cost(window: Size3) -> tuple[float, float]:
            shares = [side / n for side, n in zip(window[1:], tiling.unit_grid[1:], strict=True)]
            off = abs(_kept(tiling, window) / sparsity - 1)
            return round(off, 6), max(shares) / min(shares)

        return _with_first_frame(tiling, min(windows, key=cost))

    return nearest(spatial), nearest(temporal)


def _kept(tiling: Tiling, window: Size3) -> float:
    """Share of all pairs that a window keeps together with the first frame's blocks."""
    alone = window_density(tiling.grid, tiling.tile, tiling.block, window)
    frames, side = tiling.grid[0], (tiling.block or tiling.tile)[0]
    units, row = -(-frames // side), tiling.units_per_tile[0]
    seen = 0  # pairs of a query's frame with one of the first block of frames, where the window holds that block
    for first in range(0, units, row):
        last = min(first + row, units)
        if window_start(first, last, window[0], units) == 0:
            seen += (min(last * side, frames) - first * side) * min(side, frames)
    in_time = window_density((frames, 1, 1), (tiling.tile[0], 1, 1), (side, 1, 1), (window[0], 1, 1))
    return min(side, frames) / frames + alone - alone / in_time * seen / frames**2


def _with_first_frame(tiling: Tiling, window: Size3) -> TileLists:
    import torch

    from fpsgen.attention.tiles import lists_from_mask, window_lists

    lists = window_lists(tiling, window)
    mask = torch.zeros(1, tiling.num_tiles, len(tiling.unit_order()), dtype=torch.bool)
    mask.scatter_(-1, lists.indices.long(), True)
    _, rows, columns = tiling.unit_grid
    mask[:, :, tiling.unit_order() < rows * columns] = True
    return lists_from_mask(mask)


def both_lists(plan: AttentionPlan, device: torch.device) -> TileLists:
    """The spatial (0) and the temporal (1) lists of a plan's grid on a device, G = 2."""
    from fpsgen.attention.tiles import TileLists, concatenate

    both = concatenate(list(near_windows(plan.tiling, float(plan.option("sparsity")))))
    return TileLists(both.indices.to(device), both.counts.to(device))


def sampled_masks(plan: AttentionPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled tokens int64 [n], and which keys they see as spatial and as temporal heads: bool [2, n, L]."""
    import torch

    layout, both = plan.layout, plan.constant(both_lists, "cpu")
    order = torch.randperm(plan.num_tokens, generator=torch.Generator().manual_seed(0))
    rows = order[: max(1, int(plan.option("num_sampled_rows")))].sort().values
    indices = both.indices[:, layout.block_tile[layout.token_block[rows]]].long()
    units = torch.zeros(2, len(rows), layout.num_units + 1, dtype=torch.bool)
    units.scatter_(-1, torch.where(indices < 0, layout.num_units, indices), True)
    masks = units[:, :, layout.block_unit[layout.token_block]]
    return rows.to(device), masks.to(device)


METHOD = Method(
    name="svg",
    summary="each head sees near frames or near places, whichever errs less on sampled rows, in 16 bits",
    citation="Sparse VideoGen, arXiv 2502.01776",
    colour="#0891b2",
    selection=_SpatialOrTemporal(),
    # of the authors' replace_sparse_forward for Wan, with its defaults; `sparsity` is the share that is kept
    options={"num_sampled_rows": 64, "sparsity": 0.25},
    allowed={"num_sampled_rows": (1, 4096), "sparsity": (0.01, 1.0)},
)
