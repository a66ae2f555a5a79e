"""Straight-through gradient of tile-sparse attention, recomputed in torch (any device).

Up to 4,096 tokens: one masked SDPA over all tokens. Beyond: query tiles with equal lists form groups, each a dense
SDPA over its gathered keys; memory holds one group at a time. Either way no [L, L] tensor in fp32 per head is kept by
this file.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import mask_from_lists

MASKED_LIMIT = 4096


@lru_cache(maxsize=16)
def _mask(plan: AttentionPlan, device: torch.device) -> torch.Tensor:
    """bool [1, 1, L, L] in tile order."""
    return mask_from_lists(plan.tile_lists(), plan.tables("cpu").layout)[:, None].to(device)


@lru_cache(maxsize=16)
def _groups(plan: AttentionPlan, device: torch.device) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """(query rows, key rows) int64, one pair per distinct list."""
    first = [0, *plan.tiling.sizes().long().cumsum(0).tolist()]

    def rows(tiles: tuple[int, ...]) -> torch.Tensor:
        return torch.cat([torch.arange(first[u], first[u + 1]) for u in tiles]).to(device)

    return tuple((rows(queries), rows(keys)) for queries, keys in plan.tile_lists().groups[0])


def _sdpa_gradient(grad, q, k, v, mask=None):
    """Gradients of softmax attention, all [B, H, L, D]; torch.func, since autograd.grad sees nothing in an operator."""
    pulled = torch.func.vjp(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), q, k, v)
    return pulled[1](grad)


def attention_gradient(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v (tile order, [B, L, H, D], each in its input's dtype) for the gradient of the output."""
    like = (q, k, v)
    if plan.fp8:
        layout = plan.tables("cpu").layout
        q, k, v = (x.to(y.dtype) for x, y in zip(fake_quantize(q, k, v, layout, plan.granularity), like, strict=True))
    grad, q, k, v = (x.transpose(1, 2) for x in (grad.to(q.dtype), q, k, v))
    if plan.dense:
        grads = _sdpa_gradient(grad, q, k, v)
    elif q.shape[2] <= MASKED_LIMIT:
        grads = _sdpa_gradient(grad, q, k, v, _mask(plan, q.device))
    else:
        grads = (
            torch.empty_like(q),
            torch.zeros_like(k, dtype=torch.float32),
            torch.zeros_like(v, dtype=torch.float32),
        )
        for rows, keys in _groups(plan, q.device):
            part = _sdpa_gradient(grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys])
            grads[0][:, :, rows] = part[0]
            grads[1][:, :, keys] += part[1]
            grads[2][:, :, keys] += part[2]
    dq, dk, dv = (g.transpose(1, 2).contiguous().to(x.dtype) for g, x in zip(grads, like, strict=True))
    return dq, dk, dv
