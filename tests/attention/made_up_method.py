"""A method in one file, as a test of how little a new one needs: each head keeps the blocks that a pooled score ranks
first. Online, E4M3.
"""

from __future__ import annotations

import torch

from fpsgen.attention import AttentionPlan, Method, Precision, Selection, TileLists


class PooledTop(Selection):
    online = True

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> TileLists:
        layout = plan.layout
        tile, unit = layout.block_tile[layout.token_block], layout.token_block  # a small grid's blocks are its units
        pooled_q, pooled_k = pooled(q, tile, layout.num_tiles), pooled(k, unit, layout.num_units)
        score = torch.einsum("bmhd,buhd->bhmu", pooled_q, pooled_k).flatten(0, 1)  # [B*H, M, U]
        keep = max(1, round(float(plan.option("topk")) * layout.num_units))
        index = score.topk(keep, -1).indices.int()
        return TileLists(index, torch.full(index.shape[:2], keep, dtype=torch.int32, device=q.device))


def pooled(x: torch.Tensor, piece: torch.Tensor, pieces: int) -> torch.Tensor:
    """Mean [B, pieces, H, D] of the tokens [B, L, H, D] of each piece."""
    piece = piece.to(x.device)
    number = torch.zeros(pieces, device=x.device).index_add(0, piece, torch.ones(x.shape[1], device=x.device))
    total = torch.zeros(x.shape[0], pieces, *x.shape[2:], device=x.device).index_add(1, piece, x.float())
    return total / number[:, None, None]


METHOD = Method(
    name="pooled-top",
    summary="blocks that a pooled score ranks first, per batch and head",
    citation="made up",
    colour="#123456",
    selection=PooledTop(),
    qk=Precision.E4M3,
    pv=Precision.E4M3,
    options={"topk": 0.25},
)
