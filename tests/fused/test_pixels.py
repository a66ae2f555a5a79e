"""Passes over pixels in Triton's interpreter against plain torch."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from attention.interpreter import interpreted

from fpsgen.fused import pixel_kernels, pixels
from fpsgen.fused.pixels import Sum


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreted(pixel_kernels):
        yield


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("add", "bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("channels", "width"), [(96, 128), (12, 12), (384, 384), (96, 96)])
def test_norm_silu(channels, width, add, bias, silu):
    torch.manual_seed(0)
    x, y = (torch.randn(2, 3, 4, 5, channels).bfloat16() for _ in range(2))
    gain, b = torch.randn(2, channels).bfloat16()
    out = torch.full((2, 5, 4, 5, width), 7.0).bfloat16()
    parts = Sum(x, y if add else None, b if bias else None)
    total = pixels.launch_norm_silu(parts, gain, silu, True, out)
    summed = x.float() + (y.float() if add else 0) + (b.float() if bias else 0)
    assert (total.float() - summed).norm() < 2e-3 * summed.norm() and total.dtype == x.dtype
    wide = F.normalize(summed, dim=-1) * channels**0.5 * gain.float()
    wide = F.silu(wide) if silu else wide
    assert (out[:, :2] == 7.0).all()  # the history is not this pass's
    assert (out[:, 2:, ..., channels:] == 0).all()
    got = out[:, 2:, ..., :channels].float()
    assert (got - wide).norm() < 2e-3 * wide.norm()
    assert (got - wide * 1.01).norm() > 2e-3 * wide.norm()


def test_pixels_of_zeros_stay_zero():
    x, out = torch.zeros(1, 1, 2, 2, 16), torch.full((1, 1, 2, 2, 16), 7.0)
    pixels.launch_norm_silu(Sum(x), torch.ones(16), True, True, out)
    assert (out == 0).all()


def test_a_sum_that_nobody_keeps_is_not_written():
    x, y, out = torch.ones(1, 1, 2, 2, 16), torch.ones(1, 1, 2, 2, 16), torch.empty(1, 1, 2, 2, 16)
    pixels.launch_norm_silu(Sum(x, y), torch.ones(16), False, False, out)
    assert (x == 1).all() and torch.allclose(out, torch.ones_like(out))


@pytest.mark.parametrize(("add", "bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_upsample(add, bias):
    x, y = (torch.randn(2, 3, 4, 5, 24).bfloat16() for _ in range(2))
    b = torch.randn(24).bfloat16()
    out = pixels.launch_upsample(Sum(x, y if add else None, b if bias else None))
    wide = x.float() + (y.float() if add else 0) + (b.float() if bias else 0)
    assert torch.equal(out, wide.bfloat16().repeat_interleave(2, 2).repeat_interleave(2, 3))
