"""Passes over pixels in Triton's interpreter against plain torch."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from attention.interpreter import interpreted

from fpsgen.fused import pixel_kernels, pixels


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreted(pixel_kernels):
        yield


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(("channels", "width"), [(96, 128), (12, 12), (384, 384), (96, 96)])
def test_norm_silu(channels, width, add, silu):
    torch.manual_seed(0)
    x, y = (torch.randn(2, 3, 4, 5, channels).bfloat16() for _ in range(2))
    gain = torch.randn(channels).bfloat16()
    out = torch.full((2, 5, 4, 5, width), 7.0).bfloat16()
    total = pixels.launch_norm_silu(x, gain, y if add else None, silu, out)
    assert torch.equal(total, x + y if add else x)
    wide = F.normalize(total.float(), dim=-1) * channels**0.5 * gain.float()
    wide = F.silu(wide) if silu else wide
    assert (out[:, :2] == 7.0).all()  # the history is not this pass's
    assert (out[:, 2:, ..., channels:] == 0).all()
    out = out[..., :channels]
    assert (out[:, 2:].float() - wide).norm() < 2e-3 * wide.norm()
    assert (out[:, 2:].float() - wide * 1.01).norm() > 2e-3 * wide.norm()


def test_pixels_of_zeros_stay_zero():
    x, out = torch.zeros(1, 1, 2, 2, 16), torch.full((1, 1, 2, 2, 16), 7.0)
    pixels.launch_norm_silu(x, torch.ones(16), None, True, out)
    assert (out == 0).all()


@pytest.mark.parametrize("add", [True, False])
def test_upsample(add):
    x, y = (torch.randn(2, 3, 4, 5, 24).bfloat16() for _ in range(2))
    out = pixels.launch_upsample(x, y if add else None)
    assert torch.equal(out, (x + y if add else x).repeat_interleave(2, 2).repeat_interleave(2, 3))
