"""A video that is not one ends the run with exit 9 before any file is written."""

from __future__ import annotations

import torch

from fpsgen.errors import NUMERIC, FpsgenError

_REMEDY = "run it again with --method bf16, then with --dtype fp32, to see which of the two it comes from"
FLAT = 1 / 255  # a video of which no frame varies by this much (standard deviation, of 1) is called flat


def check_latents(latents: torch.Tensor, where: str) -> None:
    """Raise FpsgenError NUMERIC unless latents [B, C, T, H, W] are finite and vary (one reduction)."""
    spread = latents.float().std().item()  # NaN or Inf anywhere makes it NaN
    if spread != spread or spread == float("inf"):
        raise FpsgenError(f"latents are not finite after {where}", _REMEDY, NUMERIC)
    if spread < 1e-6:
        raise FpsgenError(f"latents are constant after {where}", _REMEDY, NUMERIC)


def to_frames(video: torch.Tensor) -> torch.Tensor:
    """Decoded video [1, 3, T, H, W] in [-1, 1] to frames uint8 [T, H, W, 3] on the CPU, checked.

    Raises FpsgenError NUMERIC when a value is not finite or every frame is one flat colour.
    """
    if not torch.isfinite(video).all():
        bad = (~torch.isfinite(video)).flatten(3).any(3).any(1)[0].nonzero().flatten().tolist()
        raise FpsgenError(f"decoded frames are not finite (first: frame {bad[0]})", _REMEDY, NUMERIC)
    picture = (video[0].float() / 2 + 0.5).clamp(0, 1)
    spread = picture.std(dim=(2, 3)).max().item()  # over the pixels of each frame and channel
    if spread < FLAT:
        raise FpsgenError(f"the video is one flat colour (deviation {spread:.5f} of 1)", _REMEDY, NUMERIC)
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()
