"""Straight-through gradient of tile-sparse attention, recomputed in torch (any device): query tiles with equal lists
are a dense SDPA over their keys, one at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fpsgen.attention.plan import AttentionPlan, BlockLists
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.sparse_sdpa import token_groups


def _sdpa_gradient(grad, q, k, v):
    """Gradients of softmax attention, all [B, H, L, D]; torch.func, since autograd.grad sees nothing in an operator."""
    return torch.func.vjp(F.scaled_dot_product_attention, q, k, v)[1](grad)


def attention_gradient(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plan: AttentionPlan,
    lists: BlockLists,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v (tile order, [B, L, H, D], each in its input's dtype) for the gradient of the output.

    out, lse: what the forward gave for these q, k, v and lists of key blocks.
    """
    inputs = (q, k, v)
    if plan.fp8:
        rounded = fake_quantize(q, k, v, plan.layout, plan.granularity)
        q, k, v = (x.to(y.dtype) for x, y in zip(rounded, inputs, strict=True))
    grad, q, k, v = (x.transpose(1, 2) for x in (grad.to(q.dtype), q, k, v))
    heads = q.shape[1]
    grads = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
    groups = token_groups(plan.layout, *lists)
    for g, tiles in enumerate(groups):
        line = slice(None) if len(groups) <= heads else slice(g // heads, g // heads + 1)
        head = slice(None) if len(groups) == 1 else slice(g % heads, g % heads + 1)
        own_grad, own_q, own_k, own_v = (x[line, head] for x in (grad, q, k, v))
        for rows, keys in tiles:
            part = _sdpa_gradient(own_grad[:, :, rows], own_q[:, :, rows], own_k[:, :, keys], own_v[:, :, keys])
            for full, some, index in zip(grads, part, (rows, keys, keys), strict=True):
                full[line, head, index] += some
    dq, dk, dv = (g.transpose(1, 2).to(x.dtype).contiguous() for g, x in zip(grads, inputs, strict=True))
    return dq, dk, dv
