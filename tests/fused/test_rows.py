"""The row kernels in Triton's interpreter against the same in plain torch; each bound catches planted mistakes."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from attention.interpreter import interpreted

from fpsgen.fused import kernels, launch, reference
from fpsgen.fused.launch import RowConfig

SIZES = [(1536, None), (1000, None), (24, None), (5120, None), (2600, RowConfig(2))]


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreted(kernels):
        yield


def tokens(size, batch=2, length=3):
    torch.manual_seed(size)
    x, y = (torch.randn(batch, length, size).bfloat16() * 3 for _ in range(2))
    return x, y, *(torch.randn(batch, size) for _ in range(3))


def faults(out, scale, wide, amax=None) -> float:
    """How far FP8 rows are from `wide` quantized: the largest relative error of a scale, or 1 if any code is more than
    one step off, or more than 2 % of them are (ties fall either way).
    """
    values, wanted = reference.quantize(wide, amax)
    steps = (out.view(torch.int8).short() - values.view(wide.shape).view(torch.int8).short()).abs()
    if steps.max() > 1 or (steps > 0).float().mean() > 0.02:
        return 1.0
    return ((scale.view(wanted.shape) - wanted).abs() / wanted).max().item()


@pytest.mark.parametrize(("size", "config"), SIZES)
@pytest.mark.parametrize("gelu", [False, True])
def test_quantize(size, config, gelu):
    x = tokens(size)[0].view(-1, size) * 4.0 ** torch.arange(6)[:, None].bfloat16()
    out, scale = launch.quantize(x, gelu, True, config)
    wide = reference.gelu_tanh(x) if gelu else x.float()
    assert faults(out, scale, wide) < 1e-5
    assert faults(out, scale.roll(1, 0), wide) > 1e-3  # the scale of another row
    assert faults(out, scale, wide * 1.1) > 1e-3
    assert (scale.log2() == scale.log2().round()).all()


@pytest.mark.parametrize(("size", "config"), SIZES)
@pytest.mark.parametrize("gained", [False, True])
def test_quantize_with_one_scale_for_all_rows(size, config, gained):
    x = tokens(size)[0].view(-1, size) * 4.0 ** torch.arange(6)[:, None].bfloat16()
    peaks, gain = x.float().abs().amax(0), torch.logspace(-3, 3, size).flip(0) if gained else None
    out, scale = launch.quantize(x, False, True, config, gain, peaks)
    wide = x.float() if gain is None else x.float() * gain
    assert scale.shape == (1,) and faults(out, scale, wide, wide.abs().amax().view(1)) < 1e-5
    assert faults(out, scale, wide, 4 * wide.abs().amax().view(1)) > 1e-3
    if gained:
        assert faults(out, scale, wide, peaks.amax().view(1)) > 1e-3  # of x before the gain


@pytest.mark.parametrize(("size", "config"), SIZES)
def test_quantize_with_a_gain_for_every_channel(size, config):
    x, gain = tokens(size)[0].view(-1, size), torch.logspace(-3, 3, size)
    out, scale = launch.quantize(x, False, True, config, gain)
    assert faults(out, scale, x.float() * gain) < 1e-5
    assert faults(out, scale, x.float() * gain.roll(1)) > 1e-3


def test_rows_need_not_lie_together():
    x = torch.randn(6, 96).bfloat16()[:, 32:64]
    out, scale = launch.quantize(x, False, True)
    assert faults(out, scale, x.float()) < 1e-5


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38])
def test_extreme_rows_stay_finite(value):
    x = torch.full((2, 64), value)
    x[1, 3] = -value
    out, scale = launch.quantize(x, False, True)
    back = out.float() * scale
    assert back.isfinite().all() and torch.allclose(back, x, rtol=0.07, atol=1e-12)


def test_nan_and_gelu_at_the_ends():
    x = torch.tensor([[float("nan"), *[1.0] * 31], [1e30, -1e30, *[0.0] * 30]])
    out, _ = launch.quantize(x, True, False)
    assert out[0, 0].isnan() and out[0, 1:].isfinite().all()
    assert out[1, 0] == 1e30 and out[1, 1] == 0.0


@pytest.mark.parametrize(("size", "config"), SIZES)
def test_residual_norm(size, config):
    x, y, gate, mul, add = tokens(size)
    mul[1] *= 8  # the second video alone decides the scale
    total, out, scale = launch.norm(x, y, gate, mul, add, 1e-6, True, True, config)
    assert torch.equal(total, reference.residual(x, y, gate))
    good, bound = reference.layer_norm(total, mul, add, 1e-6, True), reference.norm_bound(mul, add, True)
    assert scale.shape == (1,) and faults(out, scale, good, bound) < 1e-5
    for wrong in (
        reference.layer_norm(total, mul, torch.zeros_like(add), 1e-6, True),  # no shift
        reference.layer_norm(total, mul, add, 1e-6, False),  # scale without its 1
        reference.layer_norm(total, mul, add, 0.5, True),  # another eps
        reference.layer_norm(total, mul.flip(0), add, 1e-6, True),  # the other video's scale
        reference.layer_norm(x, mul, add, 1e-6, True),  # not the new residual
    ):
        assert faults(out, scale, wrong, bound) > 1e-3
    assert faults(out, scale, good, reference.norm_bound(mul[:1], add, True)) > 1e-3
    assert not torch.equal(total, reference.residual(x, y, gate.flip(0)))


def test_no_row_passes_the_bound_of_its_norm():
    """Nor is the bound much too large: a row with one channel that stands out comes near it."""
    for size, one in ((24, True), (1000, False), (5120, True)):
        mul, add = (torch.zeros if one else torch.ones)(1, size), torch.zeros(1, size)
        mul[0, 7], add[0, 7] = -3.0, -5.0
        x = torch.randn(1, 4, size)
        x[0, 0, 7], x[0, 1, 7], x[0, 2, 8] = 1e6, -1e6, 1e6
        _, out, scale = launch.norm(x, None, None, mul, add, 1e-6, one, True)
        wide, bound = reference.layer_norm(x, mul, add, 1e-6, one), reference.norm_bound(mul, add, one)
        assert 0.9 * bound < wide.abs().max() <= bound and scale == reference.power_of_two(bound / 448)
        assert (out.float() * scale - wide).norm() < 0.04 * wide.norm()


@pytest.mark.parametrize("biased", [False, True])
def test_a_product_whose_scales_and_bias_are_still_to_come(biased):
    x, y, gate, mul, add = tokens(1000)
    scale, bias = torch.rand(2, 3, 1) + 0.5, torch.randn(1000).bfloat16() if biased else None
    for given in (gate, None):
        total, out, found = launch.norm(x, y, given, mul, add, 1e-6, True, True, y_scale=scale, y_bias=bias)
        wanted = reference.residual(x, y, given, scale, bias)
        assert (total.float() - wanted.float()).norm() < 2e-3 * wanted.float().norm()  # a sum in another order
        for wrong in ((scale.roll(1, 1), bias), (None, bias), (scale, torch.ones(1000))):
            other = reference.residual(x, y, given, *wrong).float()
            assert (total.float() - other).norm() > 2e-2 * other.norm()
        good = reference.layer_norm(total, mul, add, 1e-6, True)
        assert faults(out, found, good, reference.norm_bound(mul, add, True)) < 1e-5


@pytest.mark.parametrize(("size", "config"), SIZES)
def test_norm_without_residual_in_the_type_of_the_input(size, config):
    x, _, _, mul, add = tokens(size)
    _, out, _ = launch.norm(x, None, None, mul[:1], add[:1], 1e-6, False, False, config)
    wide = reference.layer_norm(x, mul[:1], add[:1], 1e-6, False)
    assert out.dtype == x.dtype and (out.float() - wide).norm() < 2e-3 * wide.norm()  # one bf16 rounding


def test_one_modulation_a_token():
    x, y, *_ = tokens(96)
    gate, mul, add = torch.randn(2, 3, 3, 96).unbind(-2)  # rows of other modulations lie between
    total, out, scale = launch.norm(x, y, gate, mul, add, 1e-6, True, True)
    assert torch.equal(total, reference.residual(x, y, gate))
    assert faults(out, scale, reference.layer_norm(total, mul, add, 1e-6, True)) < 1e-5
    assert faults(out, scale, reference.layer_norm(total, mul.roll(1, 1), add, 1e-6, True)) > 1e-3


def test_residual_alone_and_without_a_gate():
    x, y, gate, mul, add = tokens(1536)
    assert torch.equal(launch.norm(x, y, gate, None, None, 0.0, False, False)[0], reference.residual(x, y, gate))
    total, *_ = launch.norm(x, y, None, mul, add, 1e-6, True, False)
    assert torch.equal(total, x + y)


@pytest.mark.parametrize(("size", "config"), SIZES)
def test_rms_norm(size, config):
    x, y, *_ = tokens(size)
    weight = y[0, 0]
    wide = reference.rms_norm(x, weight, 1e-6)
    out = launch.rms_norm(x.clone().view(-1, size), weight, 1e-6, config)
    assert (out.view(x.shape).float() - wide).norm() < 2e-3 * wide.norm()


@pytest.mark.parametrize("size", [1, 24, 511, 512, 1536, 5120, 8960, 13824])
@pytest.mark.parametrize("num_warps", [1, 2, 4, 8])
def test_parts_cover_a_row_in_powers_of_two(size, num_warps):
    config = RowConfig(num_warps)
    parts = config.parts(size)
    assert all(part & (part - 1) == 0 for part in parts) and len({*parts}) == len(parts)
    assert 0 <= sum(parts) * config.span - size < config.span
