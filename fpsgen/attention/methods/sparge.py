"""SpargeAttn: each block of queries keeps the key blocks that hold most of a pooled softmax, in INT8 and E4M3.

A block stands for its tokens by their mean, if they are alike: if the mean cosine of all their pairs exceeds
`simthreshd1`. Softmax over the means ranks the key blocks; the first of them are kept, as many as together stay within
`cdfthreshd`, one at least. Blocks whose tokens are not alike see all and are seen by all. In the kernel, a key block
whose scores all lie `pvthreshd` (base 2) below the row maxima so far is left out.

What differs from the original: blocks are kernel blocks in tile order, up to 128 tokens, for queries and keys; a query
tile keeps what any of its blocks keeps; there are no hyper-parameters per head and layer, which the original tunes on
samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpsgen.attention.methods.base import Method, Precision, Selection

if TYPE_CHECKING:
    import torch

    from fpsgen.attention.plan import AttentionPlan
    from fpsgen.attention.tiles import TileLists


class _PooledMass(Selection):
    online = True

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> TileLists:
        """Source: arXiv 2502.18137, section 3.3, and get_block_map_meansim of the authors' code."""
        import torch

        from fpsgen.attention.tiles import lists_from_mask

        layout, tables = plan.layout, plan.tables(q.device)
        least = float(plan.option("simthreshd1"))
        if plan.smooth_k:
            k = k - k.mean(1, keepdim=True, dtype=torch.float32)
        pooled_q, alike_q = _pooled(q, plan, least)
        pooled_k, alike_k = _pooled(k, plan, least)
        qk = torch.einsum("bqhd,bkhd->bhqk", pooled_q, pooled_k) * q.shape[-1] ** -0.5
        alike_q, alike_k = alike_q.mT[..., None], alike_k.mT[:, :, None]
        p = qk.masked_fill(~alike_k, -torch.inf).softmax(-1).sort(-1, descending=True)
        kept = (p.values.cumsum(-1) <= float(plan.option("cdfthreshd"))).sum(-1, keepdim=True).clamp(min=1)
        ranks = torch.arange(layout.num_blocks, device=q.device)
        mask = torch.zeros_like(qk, dtype=torch.bool).scatter(-1, p.indices, ranks < kept)
        mask = (mask | ~alike_k | ~alike_q).flatten(0, 1)  # [B*H, N, N]
        unit = tables.block_unit if layout.num_units < layout.num_blocks else None
        tiles = mask.new_zeros(len(mask), layout.num_tiles, layout.num_blocks, dtype=torch.int32)
        tiles = tiles.index_add(1, tables.block_tile, mask.int())
        if unit is not None:
            units = tiles.new_zeros(len(mask), layout.num_tiles, layout.num_units)
            tiles = units.index_add(2, unit, tiles)
        return lists_from_mask(tiles > 0, layout.num_units)


def _pooled(x: torch.Tensor, plan: AttentionPlan, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the tokens of each kernel block, fp32 [B, N, H, D], and whether they are alike, bool [B, N, H]."""
    import torch

    def mean(x: torch.Tensor) -> torch.Tensor:
        if size := plan.layout.uniform:
            return x.unflatten(1, (-1, size)).mean(2)
        rows, share = plan.constant(_rows, x.device)
        return (x[:, rows] * share[..., None, None]).sum(2)

    x = x.float()
    # the mean of all pairs' cosines is the squared length of the mean of the tokens' directions
    direction = mean(torch.nn.functional.normalize(x, dim=-1))
    return mean(x), direction.square().sum(-1) > least


def _rows(plan: AttentionPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token of each row of each kernel block, int64 [N, rows], and its share in the block's mean, 0 for padding."""
    import torch

    layout = plan.layout
    real = torch.arange(layout.block) < layout.block_len[:, None]
    return layout.rows.to(device), (real / layout.block_len[:, None]).to(device)


METHOD = Method(
    name="sparge",
    summary="key blocks chosen at each call by a pooled softmax's mass, Q and K in INT8, V and P in E4M3",
    citation="SpargeAttn, arXiv 2502.18137",
    colour="#db2777",
    selection=_PooledMass(),
    qk=Precision.INT8,
    pv=Precision.E4M3,
    smooth_k=True,
    per_block_scales=True,
    # of spas_sage2_attn_meansim_cuda, with its defaults
    options={"simthreshd1": 0.6, "cdfthreshd": 0.98, "pvthreshd": 50.0},
    allowed={"simthreshd1": (-1.0, 1.0), "cdfthreshd": (0.0, 1.0), "pvthreshd": (0.0, 1e6)},
)
