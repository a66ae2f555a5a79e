"""Attention over a text whose padding is one key: the kernel in Triton's interpreter, and plain torch, against fp64."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from attention.interpreter import interpreted

from fpsgen.fused import QueryNorm, cross_attention, cross_attention_kernel, kernels
from fpsgen.fused.cross_attention_kernel import CrossConfig


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
        out = cross_attention_kernel.launch(q, k, v, math.log(repeats), config=CrossConfig(rows=32, keys=16))
    assert out.isfinite().all()
    assert error(out, padded(q, k, v, repeats)) < 5e-3
    if keys > 1:
        assert error(out, padded(q, k, v, 91 - repeats)) > 2e-2


@pytest.mark.parametrize("dim", [64, 128])
def test_the_kernel_norms_its_queries(dim):
    q, k, v = inputs(40, 9, dim, torch.bfloat16, heads=3)
    norm = QueryNorm(torch.randn(3 * dim).bfloat16(), 1e-6)
    wanted = padded(torch.nn.functional.rms_norm(q.float().flatten(2), (3 * dim,), *norm).view_as(q), k, v, 50)
    with interpreted(cross_attention_kernel), interpreted(kernels):
        out = cross_attention_kernel.launch(q, k, v, math.log(50), norm, CrossConfig(rows=32, keys=16))
        other = QueryNorm(norm.weight.roll(dim), norm.eps)
        wrong = cross_attention_kernel.launch(q, k, v, math.log(50), other, CrossConfig(rows=32, keys=16))
    assert error(out, wanted) < 1e-2 < 1e-1 < error(wrong, wanted)
    assert error(cross_attention(q, k, v, 50, norm), wanted) < 1e-2


@pytest.mark.parametrize("dim", [64, 128])
def test_an_output_in_fp8(dim):
    """The kernel's and plain torch's are the wide one over a scale of the values', rounded once."""
    q, k, v = inputs(40, 9, dim, torch.bfloat16, heads=3)
    v = v * torch.logspace(-2, 2, 3 * dim).view(3, dim).bfloat16()
    scale = v.float().abs().amax((0, 1)) / 448
    wanted = padded(q, k, v, 50)
    with interpreted(cross_attention_kernel), interpreted(kernels):
        out = cross_attention_kernel.launch(
            q, k, v, math.log(50), config=CrossConfig(rows=32, keys=16), out_scale=scale
        )
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
        out = cross_attention_kernel.launch(
            q, k, v.contiguous(), math.log(50), config=CrossConfig(rows=32, keys=16), out_scale=scale
        )
    assert (out.float() == -448).all() and (cross_attention(q, k, v, 50, out_scale=scale).float() == -448).all()


@pytest.mark.parametrize("repeats", [1, 400])
def test_plain_torch(repeats):
    q, k, v = inputs(50, 12, 32, torch.float32)
    assert error(cross_attention(q, k, v, repeats), padded(q, k, v, repeats)) < 1e-5
    assert cross_attention(q, k, v, repeats).is_contiguous()


def test_large_logits_stay_finite():
    q, k, v = inputs(16, 20, 64, torch.bfloat16)
    with interpreted(cross_attention_kernel):
        out = cross_attention_kernel.launch(100 * q, k, v, math.log(300), config=CrossConfig(rows=32, keys=16))
    assert out.isfinite().all() and error(out, padded(100 * q, k, v, 300)) < 1e-2
