"""RMSNorm over all heads and rotary embedding of q and k, as data and in plain torch.

Wan2.1's blocks norm the whole row of a token's query (heads x head dim) and then rotate interleaved pairs of channels.
The FP8 kernels do both on the way into their blocks (kernels/quantize_qkv.py); apply_norm_rope is what that must equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class NormRope(NamedTuple):
    """norm_q, norm_k: weights [H*D] of the RMSNorms. table: fp32 [L, D] in the order of the tokens, the cosines of
    all D/2 pairs, then their sines. eps: of the norms.
    """

    norm_q: torch.Tensor
    norm_k: torch.Tensor
    table: torch.Tensor
    eps: float

    def check(self, q: torch.Tensor) -> None:
        """Raises ValueError for tensors that do not fit q [B, L, H, D]."""
        _, length, heads, dim = q.shape
        sizes = tuple(tuple(x.shape) for x in self[:3])
        whole = all(x.is_contiguous() for x in self[:3]) and self.table.dtype == torch.float32
        if sizes != ((heads * dim,), (heads * dim,), (length, dim)) or dim % 2 or not whole:
            raise ValueError(
                f"norms and table are {sizes}, the table in {self.table.dtype}, for q of {tuple(q.shape)}.\n"
                "Give contiguous weights [H*D] and an fp32 table [L, D]."
            )

    def apply(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """q, k [B, L, H, D], normed and rotated, in their own dtype."""
        q = apply_norm_rope(q, self.norm_q, self.table, self.eps).to(q.dtype)
        return q, apply_norm_rope(k, self.norm_k, self.table, self.eps).to(k.dtype)


def apply_norm_rope(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor, eps: float) -> torch.Tensor:
    """x [B, L, H, D] normed and rotated, fp32 (fp64 for fp64 x)."""
    wide = x if x.dtype == torch.float64 else x.float()
    heads, dim = x.shape[2:]
    wide = wide * torch.rsqrt(wide.square().mean((2, 3), keepdim=True) + eps) * weight.to(wide.dtype).view(heads, dim)
    even, odd = wide.unflatten(3, (dim // 2, 2)).unbind(-1)
    cos, sin = table.to(wide.dtype).view(1, -1, 1, dim).chunk(2, -1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(3)
