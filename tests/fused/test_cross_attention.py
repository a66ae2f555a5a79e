"""Attention over a text whose padding is one key: the kernel in Triton's interpreter, and plain torch, against fp64."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from attention.interpreter import interpreted

from fpsgen.fused import cross_attention, cross_attention_kernel, kernels
from fpsgen.fused.cross_attention_kernel import CrossConfig

SMALL = CrossConfig(rows=32, blocks=2, keys=16)


def padded(q, k, v, repeats):
    """With every key of padding there, in fp64."""
    k, v = (torch.cat((x, x[:, -1:].expand(-1, repeats - 1, -1, -1)), 1) for x in (k, v))
    weights = torch.einsum("blhd,bnhd->bhln", q.double(), k.double()) * q.shape[-1] ** -0.5
    return torch.einsum("bhln,bnhd->blhd", weights.softmax(-1), v.double())


def error(out, wanted):
    return float((out.double() - wanted).norm() / wanted.norm())


def inputs(length, keys, dim, dtype, heads=2, batch=2):
    torch.manual_seed(keys)
    q = torch.randn(batch, length, heads, dim)
    k, v = (torch.randn(batch, keys, heads, dim) for _ in range(2))
    return [(2 * x).to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize(("length", "keys", "dim"), [(70, 1, 64), (64, 17, 64), (33, 40, 128), (5, 32, 64)])
@pytest.mark.parametrize("repeats", [1, 90])
def test_the_kernel(length, keys, dim, repeats):
    q, k, v = inputs(length, keys, dim, torch.bfloat16)
    with interpreted(cross_attention_kernel):
        out = cross_attention_kernel.launch(q, k, v, math.log(repeats), config=SMALL)
    assert out.isfinite().all()
    assert error(out, padded(q, k, v, repeats)) < 5e-3
    if keys > 1:
        assert error(out, padded(q, k, v, 91 - repeats)) > 2e-2


@pytest.mark.parametrize("dim", [64, 128])
def test_queries_are_normed(dim):
    """But for the norm's weight, which the keys carry."""
    q, k, v = inputs(40, 9, dim, torch.bfloat16, heads=3)
    eps, weight = 0.5, torch.randn(3, dim)
    wanted = padded(
        torch.nn.functional.rms_norm(q.float().flatten(2), (3 * dim,), weight.flatten(), eps).view_as(q), k, v, 50
    )
    keys = (k.float() * weight).bfloat16()
    with interpreted(cross_attention_kernel), interpreted(kernels):
        out = cross_attention_kernel.launch(q, keys, v, math.log(50), eps, config=SMALL)
        wrong = cross_attention_kernel.launch(q, keys, v, math.log(50), 1e-6, config=SMALL)
    assert error(out, wanted) < 1e-2 < 2e-2 < error(wrong, wanted)
    assert error(cross_attention(q, keys, v, 50, eps), wanted) < 1e-2


@pytest.mark.parametrize("num_keys", [1, 64, 65, 128, 129, 257])
def test_every_number_of_keys_and_every_block_of_queries(num_keys):
    """As it is launched: keys that stay for all blocks of a program, and keys that are read again."""
    q, k, v = inputs(200, num_keys, 64, torch.bfloat16, heads=1, batch=1)
    with interpreted(cross_attention_kernel):
        out = cross_attention_kernel.launch(q, k, v, math.log(50))
    for rows in range(0, 200, 64):
        assert error(out[:, rows : rows + 64], padded(q[:, rows : rows + 64], k, v, 50)) < 5e-3


@pytest.mark.parametrize("dim", [64, 128])
def test_an_output_in_fp8(dim):
    """The kernel's and plain torch's are the wide one over a scale of the values', rounded once."""
    q, k, v = inputs(40, 9, dim, torch.bfloat16, heads=3)
    v = v * torch.logspace(-2, 2, 3 * dim).view(3, dim).bfloat16()
    scale = v.float().abs().amax((0, 1)) / 448
    wanted = padded(q, k, v, 50)
    with interpreted(cross_attention_kernel), interpreted(kernels):
        out = cross_attention_kernel.launch(q, k, v, math.log(50), config=SMALL, out_scale=scale)
    for got in (out, cross_attention(q, k, v, 50, out_scale=scale)):
        assert got.dtype == torch.float8_e4m3fn and got.is_contiguous()
        apart = (got.double() * scale - wanted).norm(dim=(0, 1)) / wanted.norm(dim=(0, 1))
        assert apart.max() < 0.04  # in every channel
        assert error(got.double() * scale.flip(0), wanted) > 0.1


def test_the_largest_value_is_not_clipped():
    q, k, _ = inputs(40, 9, 64, torch.bfloat16)
    v = -torch.linspace(1, 300, 128).view(2, 64).bfloat16().expand_as(k)
    scale = v[0, 0].float().abs() / 448
    with interpreted(cross_attention_kernel), interpreted(kernels):
        out = cross_attention_kernel.launch(q, k, v.contiguous(), math.log(50), config=SMALL, out_scale=scale)
    assert (out.float() == -448).all() and (cross_attention(q, k, v, 50, out_scale=scale).float() == -448).all()


@pytest.mark.parametrize("repeats", [1, 400])
def test_plain_torch(repeats):
    q, k, v = inputs(50, 12, 32, torch.float32)
    assert error(cross_attention(q, k, v, repeats), padded(q, k, v, repeats)) < 1e-5
    assert cross_attention(q, k, v, repeats).is_contiguous()


def test_large_logits_stay_finite():
    q, k, v = inputs(16, 20, 64, torch.bfloat16)
    with interpreted(cross_attention_kernel):
        out = cross_attention_kernel.launch(100 * q, k, v, math.log(300), config=SMALL)
    assert out.isfinite().all() and error(out, padded(100 * q, k, v, 300)) < 1e-2
