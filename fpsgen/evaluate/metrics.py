"""How far one video is from another, frame by frame. A leaf; nothing of a video but two frames is held at a time."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

WINDOW, SIGMA = 11, 1.5  # pixels, of the Gaussian of SSIM
_ROWS = 32  # of a strip, so that its maps stay in the cache
_C1, _C2 = 0.01**2, 0.03**2  # Wang 2004, for values in [0, 1]


def decibels(mean_square: Any, peak: float = 1.0) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of mean squared errors (any shape); inf where one is 0. peak: largest value."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / np.asarray(mean_square, np.float64))


def mean_squares(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> np.ndarray:
    """Mean squared error of each frame, float64 [T], of values in [0, 255].

    a, b: frames uint8 [H, W, 3], an array [T, H, W, 3] or one after the other. Raises ValueError for others.
    """
    squares = [np.square(np.subtract(x, y, dtype=np.int32)).mean() for x, y in _pairs(a, b)]
    return np.array(squares, np.float64)


def psnr(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each frame, float64 [T]; inf where two frames are equal.

    a, b: as for mean_squares.
    """
    return decibels(mean_squares(a, b), 255.0)


def ssim(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> np.ndarray:
    """Structural similarity of each frame, float64 [T]: Gaussian window of 11x11, sigma 1.5, over RGB (Wang 2004),
    as torchmetrics defines it: a window around each pixel, the picture mirrored at its border. In fp32.

    a, b: as for mean_squares; sides of at least 6 pixels.
    """
    return np.array([_ssim(x, y) for x, y in _pairs(a, b)], np.float64)


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    import torch
    from torch.nn.functional import conv2d, pad

    height, width = x.shape[:2]
    border = WINDOW // 2
    if min(height, width) <= border:
        raise ValueError(f"frames are {width}x{height}, too small for a window of {WINDOW}x{WINDOW}")
    # Variances do not depend on a shift; around 0 fp32 keeps more of their digits.
    pictures = (
        torch.stack([torch.tensor(np.ascontiguousarray(z)) for z in (x, y)]).permute(0, 3, 1, 2).float() / 255 - 0.5
    )
    pictures = pad(pictures, (border,) * 4, mode="reflect")
    gauss = torch.tensor(_gauss()).repeat(15, 1)
    total = 0.0
    for row in range(0, height, _ROWS):
        p, q = pictures[:, :, row : row + _ROWS + 2 * border]
        maps = torch.stack([p, q, p * p, q * q, p * q]).flatten(0, 1)[None]
        maps = conv2d(maps, gauss.view(15, 1, WINDOW, 1), groups=15)  # a Gaussian is a column times a row
        maps = conv2d(maps, gauss.view(15, 1, 1, WINDOW), groups=15)
        mean_p, mean_q, pp, qq, pq = maps.view(5, 3, *maps.shape[2:])
        structure = 2 * (pq - mean_p * mean_q) + _C2
        contrast = (pp - mean_p * mean_p) + (qq - mean_q * mean_q) + _C2
        mean_p, mean_q = mean_p + 0.5, mean_q + 0.5
        light = (2 * mean_p * mean_q + _C1) / (mean_p * mean_p + mean_q * mean_q + _C1)
        total += float((light * structure / contrast).sum())
    return total / (3 * height * width)


@lru_cache(1)
def _gauss() -> np.ndarray:
    """The Gaussian, float32 [WINDOW], sum 1."""
    weights = np.exp(-np.square((np.arange(WINDOW) - WINDOW // 2) / SIGMA) / 2)
    return (weights / weights.sum()).astype(np.float32)


def _pairs(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or x.ndim != 3 or x.shape[2] != 3 or x.dtype != np.uint8 or y.dtype != np.uint8:
            raise ValueError(f"frames are {x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}, wanted [H, W, 3]")
        yield x, y
