"""How far one video is from another, frame by frame. A leaf: torchmetrics does the arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each frame, float64 [T]; inf where two frames are equal.

    a, b: uint8 [T, H, W, 3] of one shape. Raises ValueError for others.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x, y = _pictures(a, b)
    with np.errstate(divide="ignore"):
        values = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.double().numpy()


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of each frame, float64 [T]: Gaussian window of 11x11, sigma 1.5, over RGB (Wang 2004).

    a, b: as for psnr.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = _pictures(a, b)
    values: list[Any] = [
        structural_similarity_index_measure(x[i : i + 1], y[i : i + 1], data_range=1.0, sigma=1.5)
        for i in range(len(x))
    ]
    return np.array([float(value) for value in values])


def _pictures(a: np.ndarray, b: np.ndarray) -> list[Any]:
    """Both as float tensors [T, 3, H, W] in [0, 1]."""
    import torch

    if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"videos are {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}, wanted uint8 [T, H, W, 3]"
        )
    return [torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).double() / 255 for x in (a, b)]
