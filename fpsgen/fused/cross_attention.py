"""Attention of many queries over the few keys of a text, whose padding is one key that counts many times."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fpsgen.fused import reference
from fpsgen.fused.device import device_of

HEAD_DIMS = (64, 128)


def cross_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    repeats: int = 1,
    eps: float | None = None,
    out_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v of q [B, L, H, D] over k, v [B, N, H, D], as if the last key and its value stood there
    `repeats` times. eps: q takes its RMSNorm over all heads first, but not the norm's weight, which k is to be
    multiplied with instead. Returns [B, L, H, D] in q's dtype, contiguous; with out_scale fp32 [H, D] the result over
    it in E4M3, which a scale of the largest |v| of a channel over 448 keeps in range.

    A text is padded to a fixed length with equal rows, so its keys of padding are equal: N real ones and one more give
    the same result as all of them, in fewer products. 16-bit types with D of 64 or 128 run on CUDA as one kernel; the
    rest as scaled_dot_product_attention.
    """
    bias = math.log(repeats)
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] in HEAD_DIMS:
        from fpsgen.fused.cross_attention_kernel import launch

        with device_of(q):
            return launch(q.contiguous(), k.contiguous(), v.contiguous(), bias, eps, out_scale)
    if eps is not None:
        q = (q.float() * reference.inverse_rms(q.flatten(2), eps)[..., None]).to(q.dtype)
    mask = None
    if repeats > 1:
        mask = q.new_zeros(1, k.shape[1])
        mask[0, -1] = bias
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).contiguous()
    if out_scale is None:
        return out
    return (out.float() / out_scale).clamp_(-reference.LARGEST, reference.LARGEST).to(torch.float8_e4m3fn)
