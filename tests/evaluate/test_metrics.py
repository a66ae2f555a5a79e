"""PSNR and SSIM against torchmetrics, an implementation of its own, and on cases that can be worked out by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from fpsgen.evaluate.metrics import decibels, mean_squares, psnr, ssim


def videos(kind: str, shape=(3, 40, 56)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    frames = np.zeros((*shape, 3))
    frames += 60 * np.sin(np.arange(shape[2]) / 5)[:, None] + 40 * np.cos(np.arange(shape[1]) / 7)[:, None, None] + 120
    other = {
        "noise": frames + rng.normal(scale=12, size=frames.shape),
        "little noise": frames + rng.normal(scale=1, size=frames.shape),
        "darker": frames * 0.6,
        "moved": np.roll(frames, 3, 2),
        "other": rng.uniform(0, 255, frames.shape),
        "flat": np.full(frames.shape, 100.0),
    }[kind]
    if kind == "flat":  # where fp32 loses most: no variance, means that are nearly equal
        frames = other + 1
    return frames.clip(0, 255).astype(np.uint8), other.clip(0, 255).astype(np.uint8)


def tensors(*arrays: np.ndarray):
    return [torch.from_numpy(array).permute(0, 3, 1, 2).double() / 255 for array in arrays]


@pytest.mark.parametrize("kind", ["noise", "little noise", "darker", "moved", "other", "flat"])
def test_figures_are_those_of_torchmetrics(kind):
    a, b = videos(kind)
    x, y = tensors(a, b)
    wanted = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(psnr(a, b), wanted, rtol=1e-6)
    wanted = [
        float(structural_similarity_index_measure(x[i : i + 1], y[i : i + 1], data_range=1.0, sigma=1.5))
        for i in range(len(x))
    ]
    np.testing.assert_allclose(ssim(a, b), wanted, atol=1e-5)
    assert np.array_equal(ssim(iter(a), iter(b)), ssim(a, b))  # one frame after the other


def test_equal_frames():
    a, b = videos("noise")
    assert np.isinf(psnr(a, a)).all() and np.abs(ssim(b, b) - 1).max() < 1e-6


def test_known_errors():
    a = np.full((2, 16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 10
    b[1, 0, 0, 0] = 255
    squares = [100, 155**2 / 768]
    np.testing.assert_allclose(mean_squares(a, b), squares)
    np.testing.assert_allclose(psnr(a, b), [10 * np.log10(255**2 / square) for square in squares])
    assert decibels(0.01) == pytest.approx(20) and np.isinf(decibels(0))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 3), np.uint8)),
        (np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 16, 17, 3), np.uint8)),
        (np.zeros((1, 16, 16, 1), np.uint8), np.zeros((1, 16, 16, 1), np.uint8)),
        (np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 16, 16, 3), np.float32)),
    ],
)
def test_other_frames_are_refused(a, b):
    for figure in (psnr, ssim):
        with pytest.raises(ValueError):
            figure(a, b)
    with pytest.raises(ValueError):
        ssim(np.zeros((1, 5, 16, 3), np.uint8), np.zeros((1, 5, 16, 3), np.uint8))


def test_ssim_costs_no_more_than_a_tenth_of_the_direct_form():
    """CPU time against torchmetrics', the same frames and one thread: a busy machine slows both."""
    a, b = videos("noise", (8, 144, 256))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        ssim(a, b)
        ours = time.process_time() - start
        x, y = tensors(a[:2], b[:2])
        start = time.process_time()
        structural_similarity_index_measure(x, y, data_range=1.0, sigma=1.5)
        direct = (time.process_time() - start) * 4
    finally:
        torch.set_num_threads(before)
    assert ours < direct / 10
