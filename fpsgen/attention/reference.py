"""Tile-sparse attention in plain torch: what the kernels must compute, exactly and slowly.

Softmax runs in base 2: x = q.k * D^-0.5 * log2(e). With FP8, m = ceil(max x) over the row's keys, P = 2^(x - m) * 448
(so at most 448) rounded to E4M3, and the row sum adds the *rounded* P, so V = 1 gives O = 1. An integer m makes the
rescaling of a running maximum an exact shift of the exponent, so P's rounding does not depend on the order in which
keys are visited (but for values that underflow), and kernel and reference agree far below E4M3's own error.
Everything else is fp32.

Legend: B batch, L tokens (tile order), H heads, D head dim, R query rows, S key rows. Source: arXiv 2506.04648,
section 3.
"""

from __future__ import annotations

import math

import torch

from fpsgen.attention.quantize import E4M3_MAX, fake_quantize, round_e4m3
from fpsgen.attention.sparse_sdpa import token_groups
from fpsgen.attention.tiles import BlockLayout, TileLists

BlockLists = tuple[torch.Tensor, torch.Tensor]  # plan.BlockLists

LOG2_E = math.log2(math.e)
CHUNK = 3 << 17  # scores held at once; a few hundred thousand stay in a CPU's cache


def _rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of rows [n, R, D] over keys [n, S, D]; query carries the softmax scale. Returns out, LSE (base 2)."""
    qk = torch.bmm(query, key.mT)  # [n, R, S]
    m_i = qk.amax(-1, keepdim=True)
    if fp8:
        m_i.ceil_()
    m_i.masked_fill_(m_i == -math.inf, 0.0)
    shift = math.log2(E4M3_MAX) if fp8 else 0.0
    p = qk.sub_(m_i - shift).exp2_()
    if fp8:
        p = round_e4m3(p.clamp_(max=E4M3_MAX))
    l_i = p.sum(-1, keepdim=True)
    out = torch.bmm(p, value).div_(l_i.clamp(min=torch.finfo(l_i.dtype).tiny))
    return out, (l_i.log2() + m_i - shift).squeeze(-1)


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    lists: TileLists | BlockLists,
    fp8: bool,
    granularity: int = 1,
    int8_qk: bool = False,
    scale_of: str = "tile",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q, k, v [B, L, H, D] (tile order) over `lists`: units of the layout (TileLists) or kernel blocks
    (list index int32 [G, M, K] and list count int32 [G, M]).

    Returns out [B, L, H, D] in q's dtype and LSE fp32 [B, H, L] (natural logarithm). Rows without a key: out 0, LSE
    -inf. fp8: quantize as quantize.py says, `granularity` blocks to a scale, Q and K in INT8 with int8_qk; scale_of:
    see there. Query tiles with equal lists are computed together.
    """
    batch, length, heads, dim = q.shape
    if length != layout.num_tokens or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k, v are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} for the grid {layout.tiling.grid}.\n"
            "Give three tensors [B, L, H, D] of one shape with L = T*H*W."
        )
    full: tuple[torch.Tensor, ...] = (q.float(), k.float(), v.float())
    if fp8:
        full = fake_quantize(q, k, v, layout, granularity, int8_qk=int8_qk, scale_of=scale_of)
    query, key, value = (x.transpose(1, 2).reshape(batch * heads, length, dim) for x in full)
    query = query * (dim**-0.5 * LOG2_E)
    out = query.new_zeros(batch * heads, length, dim)
    lse = query.new_full((batch * heads, length), -math.inf)
    index, count = lists.blocks(layout) if isinstance(lists, TileLists) else lists
    share = len(count)
    if share not in (1, heads, batch * heads):
        raise ValueError(f"lists have {share} groups.\nGive 1, {heads} (heads) or {batch * heads} (batch x heads).")
    for g, groups in enumerate(token_groups(layout, index, count)):
        pick = slice(None) if share == 1 else slice(g, None, share)  # B*H rows are batch-major: head g is every H-th
        for rows, columns in groups:
            some_key, some_value = key[pick, columns], value[pick, columns]
            rows = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            step = max(16, CHUNK // (some_key.shape[0] * some_key.shape[1]))
            for part in rows.split(step):
                whole = int(part[-1] - part[0]) + 1 == len(part)
                chosen = slice(int(part[0]), int(part[-1]) + 1) if whole else part
                out[pick, chosen], lse[pick, chosen] = _rows(query[pick, chosen], some_key, some_value, fp8)
    out = out.view(batch, heads, length, dim).transpose(1, 2).to(q.dtype).contiguous()
    return out, lse.view(batch, heads, length).mul_(math.log(2.0))
