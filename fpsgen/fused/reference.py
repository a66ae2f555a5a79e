"""What the kernels must equal, in plain torch and fp32; it runs where they cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LARGEST = 448.0  # of E4M3
AMAX_FLOOR = 1e-12  # a row of zeros keeps a finite scale


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] to E4M3 values [..., K] and a scale fp32 [..., 1] per row: its largest magnitude over 448."""
    wide = x.float()
    amax = wide.abs().amax(-1, keepdim=True).clamp_min(AMAX_FLOOR)
    return (wide * (LARGEST / amax)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), amax / LARGEST


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """fp32."""
    return F.gelu(x.float(), approximate="tanh")


def residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """x + gate * y in fp32, rounded to x's type once. x, y [B, L, K], gate [B or 1, K] or [B, L, K]."""
    change = y.float() if gate is None else y.float() * _by_token(gate)
    return (x.float() + change).to(x.dtype)


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
