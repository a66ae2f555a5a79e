"""How far a video is from the reference of the same seed, in every figure that this machine can make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.evaluate.ffmpeg_metrics import vmaf, xpsnr
from fpsgen.evaluate.metrics import psnr, ssim
from fpsgen.evaluate.stlpips import stlpips

QUALITY = ("psnr_db", "ssim", "vmaf", "xpsnr_db", "stlpips", "flicker")


def quality(
    frames: np.ndarray, reference: np.ndarray | None, path: Path | None = None, reference_path: Path | None = None
) -> dict[str, float | None]:
    """psnr_db, ssim: medians over frames. vmaf, xpsnr_db: of the two MP4s, as ffmpeg gives them, None where it cannot.
    stlpips: see stlpips(), None where it is not installed. flicker: see flicker(). All but flicker are None without a
    reference; psnr_db is None where the frames are equal, and ssim is 1 then.

    frames, reference: uint8 [T, H, W, 3].
    """
    found: dict[str, Any] = dict.fromkeys(QUALITY)
    found["flicker"] = round(flicker(frames), 3)
    if reference is None:
        return found
    peak = float(np.median(psnr(frames, reference)))
    found["psnr_db"] = round(peak, 2) if np.isfinite(peak) else None
    found["ssim"] = round(float(np.median(ssim(frames, reference))), 4)
    found["stlpips"] = stlpips(frames, reference)
    if path and reference_path:
        found["vmaf"], found["xpsnr_db"] = vmaf(path, reference_path), xpsnr(path, reference_path)
    return found


def flicker(frames: np.ndarray) -> float:
    """Mean absolute second difference in time of luma (BT.709), in 8-bit levels: 0 where light changes steadily.

    frames: uint8 [T, H, W, 3]. Videos of fewer than three frames have none: 0.
    """
    if len(frames) < 3:
        return 0.0
    luma = [frame @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32) for frame in frames]
    seconds = [np.abs(a - 2 * b + c).mean() for a, b, c in zip(luma, luma[1:], luma[2:], strict=False)]
    return float(np.mean(seconds))
