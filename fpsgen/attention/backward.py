"""Straight-through gradient of attention over lists of key blocks: every cast counts as the identity, so it is that of
exact softmax attention at the de-quantized q, k, v.

On GPUs the kernels of kernels/backward_portable.py compute it from the saved output and LSE. Elsewhere torch does, by
recomputing: query tiles with equal lists are one dense SDPA over their gathered keys.

Legend: B batch, L tokens (tile order), H heads, D head dim.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from fpsgen.attention.plan import GPU_KERNELS, AttentionPlan, BlockLists
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.sparse_sdpa import Rows, TokenGroups, served_by, token_groups
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
    if plan.kernel(q.device, listed=True) in GPU_KERNELS:
        from fpsgen.attention.kernels.backward_portable import attention_backward

        given = (grad, q, k, v, out, lse, plan.tables(q.device), lists)
        grads = attention_backward(*given, plan.fp8, plan.granularity, None, _query_blocks(plan, lists), plan.int8_qk)
    else:
        groups = token_groups(plan.layout, *lists)
        grads = gathered_gradient(
            grad, q, k, v, plan.layout, groups, plan.fp8, plan.granularity, plan.int8_qk, plan.scale
        )
    dq, dk, dv = (g.to(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def _query_blocks(plan: AttentionPlan, lists: BlockLists) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The transposed lists where these are the plan's own and so need it once; None for those of a single call."""
    if plan.rule.online or lists is not plan.lists(lists.list_index.device):
        return None
    return _transposed(plan, lists.list_index.device)


@lru_cache(maxsize=64)
def _transposed(plan: AttentionPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    from fpsgen.attention.kernels.backward_lists import transpose_lists

    return transpose_lists(*plan.lists(device), plan.tables(device).block_tile)


def gathered_gradient(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    groups: TokenGroups,
    fp8: bool,
    granularity: int = 1,
    int8_qk: bool = False,
    scale_of: str = "tile",
) -> Gradients:
    """attention_gradient in plain torch; results in fp32, fp64 for fp64."""
    if fp8:
        q, k, v = (
            x.to(q.dtype) for x in fake_quantize(q, k, v, layout, granularity, int8_qk=int8_qk, scale_of=scale_of)
        )
    heads = q.shape[2]
    inputs = (grad.to(q.dtype), q, k, v)
    grads = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
    for g, lists in enumerate(groups):
        line, head = served_by(g, len(groups), heads)
        for rows, keys in lists:
            places: tuple[Rows, ...] = (rows, rows, keys, keys)
            part = _sdpa_gradient(*(x[line, place, head] for x, place in zip(inputs, places, strict=True)))
            for total, place, some in zip(grads, places[1:], part, strict=True):
                total[line, place, head] += some
    return grads[0], grads[1], grads[2]


def _sdpa_gradient(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Gradients:
    """Gradients of dense attention of [B, rows, H, D] over [B, keys, H, D]; torch.func, since autograd.grad sees
    nothing inside an operator.
    """

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return torch.func.vjp(attend, q, k, v)[1](grad)
