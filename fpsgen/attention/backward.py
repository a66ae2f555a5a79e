"""Straight-through gradient of attention over lists of key blocks: every cast counts as the identity, so it is that of
exact softmax attention at the de-quantized q, k, v.

On GPUs the kernels of kernels/backward_portable.py compute it from the saved output and LSE. Elsewhere torch does, list
by list: query tiles with equal lists are one dense SDPA over their gathered keys, and no matrix of all pairs is held.

Legend: B batch, L tokens (tile order), H heads, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fpsgen.attention.plan import AttentionPlan, BlockLists
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import BlockLayout

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attention_gradient(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plan: AttentionPlan,
    lists: BlockLists,
) -> Gradients:
    """Gradients of q, k, v for the gradient of the output, contiguous and each in its input's dtype.

    q, k, v, out [B, L, H, D] in tile order and lse fp32 [B, H, L] (natural logarithm) are those of the forward. lists:
    on q's device. The choice of keys has no gradient.
    """
    layout = plan.tables(q.device).layout
    if plan.kernel(q.device) in ("triton", "hopper"):
        from fpsgen.attention.kernels.backward_portable import attention_backward

        given = (grad, q, k, v, out, lse, plan.tables(q.device), lists)
        grads = attention_backward(*given, plan.fp8, plan.granularity)
    else:
        grads = gathered_gradient(grad, q, k, v, layout, lists, plan.fp8, plan.granularity)
    dq, dk, dv = (g.to(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def gathered_gradient(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    lists: BlockLists,
    fp8: bool,
    granularity: int = 1,
) -> Gradients:
    """attention_gradient in plain torch, by recomputing the forward; dk and dv are summed in fp32 (fp64 for fp64)."""
    if fp8:
        q, k, v = (x.to(q.dtype) for x in fake_quantize(q, k, v, layout, granularity))
    heads = q.shape[2]
    sums = torch.float64 if q.dtype == torch.float64 else torch.float32
    grads = [torch.zeros(x.shape, dtype=sums, device=x.device) for x in (q, k, v)]
    groups = lists.list_count.shape[0]
    for g, members in enumerate(_equal_lists(layout, lists)):
        line = slice(None) if groups <= heads else slice(g // heads, g // heads + 1)
        head = slice(None) if groups == 1 else slice(g % heads, g % heads + 1)
        some = [x[line, :, head] for x in (grad.to(q.dtype), q, k, v)]
        for rows, keys in members:
            rows, keys = rows.to(q.device), keys.to(q.device)
            places = (rows, rows, keys, keys)
            parts = _sdpa_gradient(*(x[:, place] for x, place in zip(some, places, strict=True)))
            for total, place, part in zip(grads, places[1:], parts, strict=True):
                total[line, :, head].index_add_(1, place, part.to(sums))
    return grads[0], grads[1], grads[2]


def _sdpa_gradient(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Gradients:
    """Gradients of dense attention of [B, rows, H, D] over [B, keys, H, D]; torch.func, since autograd.grad sees
    nothing inside an operator.
    """

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return torch.func.vjp(attend, q, k, v)[1](grad)


def _equal_lists(layout: BlockLayout, lists: BlockLists) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Per list group: tokens of the query tiles with equal lists and tokens of their keys, int64; tiles that see
    nothing are left out.
    """
    start, length = layout.block_start.tolist(), layout.block_len.tolist()
    first = layout.tile_first_block.tolist()
    spans = [torch.arange(begin, begin + n) for begin, n in zip(start, length, strict=True)]
    out = []
    for rows, counts in zip(lists.list_index.tolist(), lists.list_count.tolist(), strict=True):
        found: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for tile, (row, n) in enumerate(zip(rows, counts, strict=True)):
            found.setdefault(tuple(sorted(row[:n])), []).extend(spans[first[tile] : first[tile + 1]])
        members = [(torch.cat(queries), torch.cat([spans[n] for n in keys])) for keys, queries in found.items() if keys]
        out.append(members)
    return out
