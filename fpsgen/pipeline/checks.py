"""A video that is not one ends the run with exit 9 before any file is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fpsgen.errors import NUMERIC, FpsgenError

_REMEDY = "run it again with --method bf16, then with --dtype fp32, to see which of the two it comes from"
FLAT = 1 / 255  # a video of which no frame varies by this much (standard deviation, of 1) is called flat


def latents_spread(latents: torch.Tensor) -> torch.Tensor:
    """Standard deviation of latents [B, C, T, H, W], 0-dim on their device: NaN or Inf anywhere makes it NaN."""
    return latents.float().std()


def check_latents(spread: float, where: str) -> None:
    """Raise FpsgenError NUMERIC unless the latents with this spread are finite and vary."""
    if spread != spread or spread == float("inf"):
        raise FpsgenError(f"latents are not finite after {where}", _REMEDY, NUMERIC)
    if spread < 1e-6:
        raise FpsgenError(f"latents are constant after {where}", _REMEDY, NUMERIC)


def to_frames(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded video [1, 3, T, H, W] in [-1, 1] to (frames uint8 [T, H, W, 3], spread fp32 [T]), on its device.

    spread: the largest deviation of a channel over the pixels of each frame, of 1; NaN where a value is not finite.
    """
    picture = (video[0].float() / 2 + 0.5).clamp(0, 1)
    spread = picture.std(dim=(2, 3)).amax(0)
    finite = torch.isfinite(video[0]).flatten(2).all(2).all(0)
    frames = (picture * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    return frames, spread.masked_fill(~finite, torch.nan)


def check_spread(spread: Sequence[float], first: int = 0) -> None:
    """Raise FpsgenError NUMERIC for a frame with a value that is not finite. first: number of the first frame."""
    bad = next((number for number, value in enumerate(spread, first) if value != value), None)
    if bad is not None:
        raise FpsgenError(f"decoded frames are not finite (first: frame {bad})", _REMEDY, NUMERIC)


def check_flat(largest: float) -> None:
    """Raise FpsgenError NUMERIC where the largest spread of a video's frames says that all are flat."""
    if largest < FLAT:
        raise FpsgenError(f"the video is one flat colour (deviation {largest:.5f} of 1)", _REMEDY, NUMERIC)
