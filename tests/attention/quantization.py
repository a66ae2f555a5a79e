"""FP8 and INT8 values and their scales, each for itself, in plain torch: what kernels write is compared with it."""

from __future__ import annotations

import torch

from fpsgen.attention.quantize import AMAX_FLOOR, E4M3_MAX, INT8_MAX, _amax, _group_scale
from fpsgen.attention.tiles import BlockLayout


def _per_token(scale: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
    """[B, H, N] -> [B, L, H, 1]."""
    return scale.transpose(1, 2)[:, layout.token_block.to(scale.device), :, None]


def _to_e4m3(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x.float() * (1.0 / scale)).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_blocks(x: torch.Tensor, layout: BlockLayout, granularity: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn [B, L, H, D] and fp32 scales [B, H, N], one scale per `granularity` consecutive blocks."""
    scale = _group_scale(x, layout, granularity, E4M3_MAX).transpose(1, 2).contiguous()
    return _to_e4m3(x, _per_token(scale, layout)), scale


def quantize_channels(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn [B, L, H, D] and fp32 scales [B, H, D], one scale per channel over all tokens."""
    scale = _amax(v, 1).clamp(min=AMAX_FLOOR) * (1.0 / E4M3_MAX)
    return _to_e4m3(v, scale[:, None]), scale


def quantize_blocks_int8(
    x: torch.Tensor, layout: BlockLayout, granularity: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [B, L, H, D] in [-127, 127] and fp32 scales [B, H, N] = amax / 127 (the rule of SageAttention, arXiv
    2410.02367).

    int8 has no NaN: a group that holds one becomes 0 with a NaN scale.
    """
    scale = _group_scale(x, layout, granularity, INT8_MAX).transpose(1, 2).contiguous()
    levels = (x.float() * (1.0 / _per_token(scale, layout))).nan_to_num_(0.0).round_().clamp_(-INT8_MAX, INT8_MAX)
    return levels.to(torch.int8), scale


def dequantize_blocks(x: torch.Tensor, scale: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
    """fp32 [B, L, H, D] from E4M3 or int8 values and block scales [B, H, N]."""
    return x.float() * _per_token(scale, layout)


def dequantize_channels(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [B, L, H, D] from E4M3 values and channel scales [B, H, D]."""
    return x.float() * scale[:, None]
