"""What lies between the convolutions of a causal video decoder, each in one pass over the pixels.

Videos are [B, T, H, W, C] and contiguous: channels last, as tensor cores want them. On CUDA these are Triton kernels,
elsewhere plain torch. Arithmetic is fp32, results have the type of the input. None has a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

EPS = 1e-24  # diffusers divides by the norm or 1e-12, whichever is larger


def norm_silu(
    x: torch.Tensor,
    gain: torch.Tensor,
    other: torch.Tensor | None = None,
    silu: bool = True,
    history: int = 0,
    width: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + other, silu(RMSNorm over channels of that, times gain [C])); without `other` the first is x itself.

    history: the second has so many frames more in front, not written yet: those of before that a causal convolution
    sees. width: channels of the second, zeros beyond those of x.
    """
    batch, frames, height, length, channels = x.shape
    out = x.new_empty(batch, history + frames, height, length, width or channels)
    if x.is_cuda:
        return launch_norm_silu(x, gain, other, silu, out), out
    total = x if other is None else x + other
    wide = total.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * gain.float()
    out[:, history:, ..., :channels] = F.silu(normed, inplace=True) if silu else normed
    out[:, history:, ..., channels:] = 0.0
    return total, out


def upsample(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """x (+ other) with every pixel four times, [B, T, 2 H, 2 W, C]."""
    if x.is_cuda:
        return launch_upsample(x, other)
    batch, frames, height, width, channels = x.shape
    x = x if other is None else x + other
    wide = x[:, :, :, None, :, None].expand(batch, frames, height, 2, width, 2, channels)
    return wide.reshape(batch, frames, 2 * height, 2 * width, channels)


def launch_norm_silu(
    x: torch.Tensor, gain: torch.Tensor, other: torch.Tensor | None, silu: bool, out: torch.Tensor
) -> torch.Tensor:
    """norm_silu's kernel: fills the last frames of `out`, returns the sum."""
    from fpsgen.fused.pixel_kernels import norm_silu_kernel

    batch, frames, height, width, channels = x.shape
    total = torch.empty_like(x) if other is not None else x
    per_video, skipped = frames * height * width, (out.shape[1] - frames) * height * width
    grid, constants = _launch(batch * per_video, channels, out.shape[-1])
    norm_silu_kernel[grid](
        *(x, other if other is not None else x, gain, total, out, batch * per_video, per_video, skipped, EPS),
        **constants,
        WIDTH=out.shape[-1],
        ADD=other is not None,
        SILU=silu,
    )
    return total


def launch_upsample(x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    """upsample's kernel."""
    from fpsgen.fused.pixel_kernels import upsample_kernel

    batch, frames, height, width, channels = x.shape
    out = x.new_empty(batch, frames, 2 * height, 2 * width, channels)
    grid, constants = _launch(batch * frames * height * width, channels, channels)
    upsample_kernel[grid](
        *(x, other if other is not None else x, out, batch * frames * height * width, width),
        **constants,
        ADD=other is not None,
    )
    return out


def _launch(pixels: int, channels: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants: programs of about 4,096 values, 32 a thread."""
    padded = 1 << (width - 1).bit_length()
    rows = max(1, 4096 // padded)
    return (-(-pixels // rows),), {"C": channels, "CHANNELS": padded, "PIXELS": rows, "num_warps": 4}
