"""What lies between the convolutions of a causal video decoder, each in one pass over the pixels.

Videos are [B, T, H, W, C] and contiguous: channels last, as tensor cores want them. On CUDA these are Triton kernels,
elsewhere plain torch. Arithmetic is fp32, results have the type of the input. None has a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fpsgen.fused.device import device_of

EPS = 1e-24  # diffusers divides by the norm or 1e-12, whichever is larger


class Sum(NamedTuple):
    """x + other + bias, not added up yet: whatever reads it next does so. x, other [B, T, H, W, C], bias [C]."""

    x: torch.Tensor
    other: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def value(self) -> torch.Tensor:
        """The sum in the type of x."""
        if self.other is None and self.bias is None:
            return self.x
        if self.bias is None:
            return self.x + self.other
        return self.x + self.bias if self.other is None else (self.x + self.bias).add_(self.other)


def norm_silu(
    parts: Sum, gain: torch.Tensor, *, silu: bool = True, keep: bool = True, history: int = 0, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the sum, silu(RMSNorm over channels of that, times gain [C])).

    keep: False where the sum itself is not needed; then the first is undefined. history: the second has so many frames
    more in front, not written yet: those of before that a causal convolution sees. width: channels of the second, zeros
    beyond those of x.
    """
    batch, frames, height, length, channels = parts.x.shape
    out = parts.x.new_empty(batch, history + frames, height, length, width or channels)
    if parts.x.is_cuda:
        with device_of(parts.x):
            return launch_norm_silu(parts, gain, silu, keep, out), out
    total = parts.value()
    wide = total.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * gain.float()
    out[:, history:, ..., :channels] = F.silu(normed, inplace=True) if silu else normed
    out[:, history:, ..., channels:] = 0.0
    return total, out


def upsample(parts: Sum) -> torch.Tensor:
    """The sum with every pixel four times, [B, T, 2 H, 2 W, C]."""
    if parts.x.is_cuda:
        with device_of(parts.x):
            return launch_upsample(parts)
    batch, frames, height, width, channels = parts.x.shape
    wide = parts.value()[:, :, :, None, :, None].expand(batch, frames, height, 2, width, 2, channels)
    return wide.reshape(batch, frames, 2 * height, 2 * width, channels)


def launch_norm_silu(parts: Sum, gain: torch.Tensor, silu: bool, keep: bool, out: torch.Tensor) -> torch.Tensor:
    """norm_silu's kernel: fills the last frames of `out`, returns the sum."""
    from fpsgen.fused.pixel_kernels import norm_silu_kernel

    x, other, bias = parts
    batch, frames, height, width, _ = x.shape
    keep = keep and (other is not None or bias is not None)
    total = torch.empty_like(x) if keep else x
    per_video, skipped = frames * height * width, (out.shape[1] - frames) * height * width
    grid, constants = _launch(x, out.shape[-1])
    norm_silu_kernel[grid](
        *(x, x if other is None else other, gain if bias is None else bias, gain, total, out),
        *(batch * per_video, per_video, skipped, EPS),
        **constants,
        WIDTH=out.shape[-1],
        ADD=other is not None,
        BIAS=bias is not None,
        KEEP=keep,
        SILU=silu,
    )
    return total


def launch_upsample(parts: Sum) -> torch.Tensor:
    """upsample's kernel."""
    from fpsgen.fused.pixel_kernels import upsample_kernel

    x, other, bias = parts
    batch, frames, height, width, channels = x.shape
    out = x.new_empty(batch, frames, 2 * height, 2 * width, channels)
    grid, constants = _launch(x, channels)
    upsample_kernel[grid](
        *(x, x if other is None else other, x if bias is None else bias, out, batch * frames * height * width, width),
        **constants,
        ADD=other is not None,
        BIAS=bias is not None,
    )
    return out


def _launch(x: torch.Tensor, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants: programs of about 4,096 values, 32 a thread."""
    pixels, channels = x.shape[:-1].numel(), x.shape[-1]
    padded = 1 << (width - 1).bit_length()
    rows = max(1, 4096 // padded)
    return (-(-pixels // rows),), {"C": channels, "CHANNELS": padded, "PIXELS": rows, "num_warps": 4}
