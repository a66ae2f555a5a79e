"""What shares a scale of Q and K (figure 3 of the paper), against the definition in fp64, and what the choice costs."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, Profile, attend
from fpsgen.attention.quantize import fake_quantize

from .test_sparse_sdpa import exact

GRID = (4, 10, 12)
KINDS = ("tile", "token", "channel", "group", "tensor")


def inputs(seed=9):
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 480, 3, 16, generator=random) for _ in range(3))
    size = torch.exp(torch.randn(480, generator=random))[:, None, None]  # tokens of unlike size
    return q * size, k * size, v


def sharing(kind, layout):
    """Lists of tokens, in tile order, that share a scale; None for a scale of its own for each channel."""
    if kind == "token":
        return [[i] for i in range(layout.num_tokens)]
    if kind in ("tensor", "channel"):
        return [list(range(layout.num_tokens))]
    if kind == "tile":
        return [torch.nonzero(layout.token_block == n).flatten().tolist() for n in range(layout.num_blocks)]
    raster = layout.tiling.order().tolist()
    return [
        [i for i, place in enumerate(raster) if place // layout.block == n]
        for n in range(-(-layout.num_tokens // layout.block))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_its_definition(kind):
    layout = AttentionPlan(GRID, (2, 5, 6)).layout
    x, _, v = inputs()
    got = fake_quantize(x, x, v, layout, scale_of=kind)[0]
    for tokens in sharing(kind, layout):
        part = x[:, tokens].double()
        axes = (1,) if kind == "channel" else (1, 3)
        scale = (part.abs().amax(axes, keepdim=True) / 448).float()
        wanted = (part / scale).clamp(-448, 448).float().to(torch.float8_e4m3fn).double() * scale
        off = (got[:, tokens].double() - wanted).abs() > 1e-5 * part.abs() + 1e-9
        assert off.double().mean() < 2e-3  # a tie of rounding falls to the other side here and there


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_plans_run_it(kind, impl):
    q, k, v = inputs()
    plan = AttentionPlan.of(Profile("p", "fp8", tile=(2, 5, 6), options={"scale": kind}), GRID, impl)
    out = attend(q, k, v, plan)
    seen = plan.quantized(q, k, v)
    for a, b in zip(seen, fake_quantize(q, k, v, plan.layout, scale_of=kind), strict=True):
        assert torch.equal(a, b)
    true, _ = exact(*seen, torch.ones(1, 480, 480, dtype=torch.bool))
    assert float((out - true).norm() / true.norm()) < 0.03


def test_it_trains():
    q, k, v = (x.requires_grad_() for x in inputs())
    plan = AttentionPlan(GRID, (2, 5, 6), method="fp8", options={"scale": "tensor"})
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(attend(q, k, v, plan), (q, k, v), grad)
    wide = [x.detach().double().requires_grad_() for x in plan.quantized(*(x.detach() for x in (q, k, v)))]
    true, _ = exact(*wide, torch.ones(1, 480, 480, dtype=torch.bool))
    for a, b in zip(got, torch.autograd.grad(true, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-3, rtol=1e-2)


def test_gpu_kernels_have_one_scale_per_tile():
    with pytest.raises(ValueError, match="token"):
        AttentionPlan(GRID, method="fp8", impl="triton", options={"scale": "token"})
    with pytest.raises(ValueError, match="tokn"):
        Profile("p", "fp8", options={"scale": "tokn"})
    with pytest.raises(ValueError, match="sparsity"):
        Profile("p", "svg", options={"sparsity": 1.5})
    with pytest.raises(ValueError, match="topk"):
        AttentionPlan(GRID, method="sparge", options={"topk": 0.5})
    plan = AttentionPlan(GRID, method="fp8", options={"scale": "token"})
    assert plan.kernel("cpu") == "cpu" and plan.kernel("cuda") == "reference"
