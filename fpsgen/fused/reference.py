"""What the kernels must equal, in plain torch and fp32; it runs where they cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LARGEST = 448.0  # of E4M3
AMAX_FLOOR = 1e-12  # a row of zeros keeps a finite scale


def quantize(x: torch.Tensor, amax: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] to E4M3 values [..., K] and scales fp32, powers of two: [..., 1], one per row, from its largest
    magnitude over 448; or [1], one for all rows, from amax [1], which no magnitude passes.
    """
    wide = x.float()
    amax = wide.abs().amax(-1, keepdim=True) if amax is None else amax.float()
    scale = power_of_two(amax.clamp_min(AMAX_FLOOR) / LARGEST)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """fp32, rounded up to powers of two. By one of these, E4M3 rounds a value alike whatever else the scale counts for:
    rows alone and together, projections fused and apart, a video by itself and in a batch.
    """
    return ((scale.view(torch.int32) + 0x7FFFFF) & ~0x7FFFFF).view(torch.float32)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """fp32."""
    return F.gelu(x.float(), approximate="tanh")


def residual(
    x: torch.Tensor,
    y: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x + gate * (y * scale + bias) in fp32, rounded to x's type once. x, y [B, L, K], gate [B or 1, K] or [B, L, K],
    scale [B, L, 1], bias [K].
    """
    change = y.float() if scale is None else y.float() * scale
    change = change if bias is None else change + bias.float()
    change = change if gate is None else change * _by_token(gate)
    return (x.float() + change).to(x.dtype)


def one_scale(mul: torch.Tensor) -> bool:
    """Whether what is normed and modulated by mul takes one scale for all rows: not where each token has its own mul
    [B, L, K], since every program of a kernel looks at all of mul.
    """
    return mul.dim() == 2


def norm_bound(mul: torch.Tensor, add: torch.Tensor, one: bool) -> torch.Tensor:
    """[1]: what layer_norm does not pass, whatever x is: one of K channels can stand out of the others by sqrt(K)
    standard deviations at most.
    """
    return ((one + mul.float()).abs() * mul.shape[-1] ** 0.5 + add.float().abs()).amax().view(1)


def layer_norm(x: torch.Tensor, mul: torch.Tensor, add: torch.Tensor, eps: float, one: bool) -> torch.Tensor:
    """LayerNorm(x) * (one + mul) + add in fp32. x [B, L, K], mul and add [B or 1, K] or [B, L, K]."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (one + _by_token(mul)) + _by_token(add)


def inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / root mean square of the rows of x [..., K], fp32 [..., 1]."""
    return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """fp32."""
    return x.float() * inverse_rms(x, eps) * weight.float()


def _by_token(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dim() == 3 else x.float().unsqueeze(1)
