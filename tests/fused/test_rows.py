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


def faults(out, scale, wide) -> float:
    """How far FP8 rows are from `wide` quantized: the largest relative error of a scale, or 1 if any code is more than
    one step off, or more than 2 % of them are (ties fall either way).
    """
    values, wanted = reference.quantize(wide)
    steps = (out.view(torch.int8).short() - values.view(wide.shape).view(torch.int8).short()).abs()
    if steps.max() > 1 or (steps > 0).float().mean() > 0.02:
        return 1.0
    return ((scale.view(wanted.shape) - wanted).abs() / wanted).max().item()


@pytest.mark.parametrize(("size", "config"), SIZES)
@pytest.mark.parametrize("gelu", [False, True])
def test_quantize(size, config, gelu):
    x = tokens(size)[0].view(-1, size)
    out, scale = launch.quantize(x, gelu, True, config)
    wide = reference.gelu_tanh(x) if gelu else x.float()
    assert faults(out, scale, wide) < 1e-5
    assert faults(out, scale.roll(1, 0), wide) > 1e-3  # the scale of another row
    assert faults(out, scale, wide * 1.1) > 1e-3


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
    total, out, scale = launch.norm(x, y, gate, mul, add, 1e-6, True, True, config)
    assert torch.equal(total, reference.residual(x, y, gate))
    good = reference.layer_norm(total, mul, add, 1e-6, True)
    assert faults(out, scale, good) < 1e-5
    for wrong in (
        reference.layer_norm(total, mul, torch.zeros_like(add), 1e-6, True),  # no shift
        reference.layer_norm(total, mul, add, 1e-6, False),  # scale without its 1
        reference.layer_norm(total, mul, add, 0.5, True),  # another eps
        reference.layer_norm(total, mul.flip(0), add, 1e-6, True),  # the other video's scale
        reference.layer_norm(x, mul, add, 1e-6, True),  # not the new residual
    ):
        assert faults(out, scale, wrong) > 1e-3
    assert not torch.equal(total, reference.residual(x, y, gate.flip(0)))


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
