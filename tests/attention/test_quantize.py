import pytest
import torch

from fpsgen.attention import quantize
from fpsgen.attention.tiles import BlockLayout, Tiling

from .quantization import (
    dequantize_blocks,
    dequantize_channels,
    quantize_blocks,
    quantize_blocks_int8,
    quantize_channels,
)

LAYOUT = BlockLayout(Tiling((5, 6, 7), (2, 4, 4)))  # ragged, 64-row blocks
UNIFORM = BlockLayout(Tiling((4, 6, 10), (2, 3, 5)))  # all blocks of 30 tokens: reduced without a gather
BOTH = pytest.mark.parametrize("layout", [LAYOUT, UNIFORM], ids=["ragged", "uniform"])


def every_bf16() -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def test_round_e4m3_equals_the_cast_on_every_bf16_in_range():
    x = every_bf16().float()
    x = x[x.abs() <= 448]
    near = torch.nextafter(x, torch.tensor(0.0))  # and on their fp32 neighbours
    for values in (x, near, (x + near) / 2):
        assert torch.equal(quantize.round_e4m3(values.clone()), values.to(torch.float8_e4m3fn).float())


def test_round_e4m3_ties_go_to_even_and_nan_stays():
    codes = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    even = torch.where(torch.arange(126) % 2 == 0, codes[:-1], codes[1:])
    assert torch.equal(quantize.round_e4m3(ties.clone()), even)
    assert quantize.round_e4m3(torch.tensor([float("nan")])).isnan().all()


@BOTH
@pytest.mark.parametrize("granularity", [1, 2, 5, 100])
def test_one_scale_per_group_of_blocks(granularity, layout, seed):
    x = torch.randn(2, layout.tiling.num_tokens, 3, 8) * torch.rand(1, layout.tiling.num_tokens, 1, 1).exp()
    values, scale = quantize_blocks(x, layout, granularity)
    assert values.dtype == torch.float8_e4m3fn and values.shape == x.shape and scale.shape == (2, 3, layout.num_blocks)
    for n in range(layout.num_blocks):
        group = n // granularity
        members = layout.token_block // granularity == group
        amax = x[:, members].abs().amax((1, 3))
        torch.testing.assert_close(scale[:, :, n], amax / 448, rtol=1e-6, atol=0)
    back = dequantize_blocks(values, scale, layout)
    step = scale[:, :, layout.token_block].transpose(1, 2)[..., None]
    assert ((back - x).abs() <= x.abs() / 16 + step * 2**-10 + 1e-12).all()
    assert values.float().abs().amax() == 448


def test_channels_have_their_own_scale(seed):
    v = torch.randn(2, 50, 3, 8) * torch.logspace(-6, 6, 8)
    values, scale = quantize_channels(v)
    torch.testing.assert_close(scale, v.abs().amax(1) / 448, rtol=1e-6, atol=0)
    assert ((dequantize_channels(values, scale) - v).abs() <= v.abs() / 16 + scale[:, None] * 2**-10).all()


@pytest.mark.parametrize("fill", [0.0, 1e-8, 1e-38, 1e30, -0.0])
def test_extreme_magnitudes_stay_finite_and_zero_stays_zero(fill):
    x = torch.full((1, LAYOUT.tiling.num_tokens, 1, 4), fill)
    for values, scale in (quantize_blocks(x, LAYOUT), quantize_channels(x)):
        assert (scale > 0).all() and scale.isfinite().all() and values.float().isfinite().all()
        if fill == 0:
            assert (values.float() == 0).all()


@BOTH
def test_nan_stays_in_its_group(layout):
    x = torch.ones(1, layout.tiling.num_tokens, 2, 4)
    x[0, 3, 1, 2] = float("nan")
    values, scale = quantize_blocks(x, layout)
    bad = dequantize_blocks(values, scale, layout).isnan()
    assert bad[0, 3, 1, 2] and not bad[:, layout.token_block != layout.token_block[3]].any() and not bad[:, :, 0].any()
    assert dequantize_channels(*quantize_channels(x)).isnan()[0, 3, 1, 2]


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("granularity", [1, 3])
def test_fake_quantize_is_quantize_then_dequantize(granularity, dtype, layout, seed, monkeypatch):
    q, k, v = (torch.randn(2, layout.tiling.num_tokens, 3, 8, dtype=dtype) for _ in range(3))
    monkeypatch.setattr(quantize, "CHUNK", 5000)  # several pieces, the last of them smaller
    fake = quantize.fake_quantize(q, k, v, layout, granularity)
    for x, got in zip((q, k), fake, strict=False):
        assert torch.equal(dequantize_blocks(*quantize_blocks(x, layout, granularity), layout), got)
    assert torch.equal(dequantize_channels(*quantize_channels(v)), fake[2])
    half = quantize.fake_quantize(q, k, v, layout, granularity, torch.bfloat16)
    assert all(torch.equal(x.bfloat16(), y) for x, y in zip(fake, half, strict=True))


def test_int8_rule(seed):
    x = torch.randn(1, LAYOUT.tiling.num_tokens, 2, 8)
    values, scale = quantize_blocks_int8(x, LAYOUT)
    assert values.dtype == torch.int8 and int(values.abs().max()) == 127
    back = dequantize_blocks(values, scale, LAYOUT)
    half = scale[:, :, LAYOUT.token_block].transpose(1, 2)[..., None] / 2
    assert ((back - x).abs() <= half * 1.001).all()


def test_granularity_below_one_is_refused():
    with pytest.raises(ValueError):
        quantize_blocks(torch.zeros(1, LAYOUT.tiling.num_tokens, 1, 4), LAYOUT, 0)
