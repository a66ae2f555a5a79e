import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fpsgen.attention import AttentionPlan, UnsupportedDeviceError, attend, attention_reference, fps_attention
from fpsgen.attention.backward import attention_gradient
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import mask_from_lists
from fpsgen.attention.windows import density_window

GRID, TILE = (5, 6, 7), (2, 4, 4)


def inputs(dtype=torch.float32, batch=2, heads=2, dim=16, tokens=210, grad=False):
    random = torch.Generator().manual_seed(5)
    return tuple(
        torch.randn(batch, tokens, heads, dim, generator=random).to(dtype).requires_grad_(grad) for _ in range(3)
    )


def sdpa(q, k, v, mask=None):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def test_dense_bf16_is_sdpa_in_any_order():
    q, k, v = inputs()
    for ordered in (True, False):
        assert torch.equal(fps_attention(q, k, v, grid=GRID, method="bf16", ordered=ordered), sdpa(q, k, v))
    out, lse = fps_attention(q, k, v, grid=GRID, method="bf16", return_lse=True)
    torch.testing.assert_close(out, sdpa(q, k, v), atol=2e-6, rtol=1e-5)
    score = torch.einsum("blhd,bshd->bhls", q, k) * q.shape[-1] ** -0.5
    torch.testing.assert_close(lse, score.logsumexp(-1))


def test_raster_order_is_tile_order_and_back():
    q, k, v = inputs()
    plan = AttentionPlan(GRID, TILE, (3, 1, 1))
    tables = plan.tables("cpu")
    out, lse = fps_attention(q, k, v, grid=GRID, tile=TILE, window=(3, 1, 1), return_lse=True)
    tiled, tiled_lse = attend(*(x[:, tables.order] for x in (q, k, v)), plan, return_lse=True)
    assert torch.equal(out[:, tables.order], tiled) and torch.equal(lse[:, :, tables.order], tiled_lse)


def test_even_windows_that_span_their_axis():
    q, k, v = inputs()
    whole = fps_attention(q, k, v, grid=GRID, tile=TILE, window=(0, 2, 1))
    assert torch.equal(whole, fps_attention(q, k, v, grid=GRID, tile=TILE, window=(3, 2, 1)))
    with pytest.raises(ValueError):
        fps_attention(q, k, v, grid=GRID, tile=TILE, window=(2, 2, 1))


@pytest.mark.parametrize("sizes", [{}, {"tile": "fit"}, {"tile": (2, 4, 4)}, {"tile": (2, 3, 7), "block": (2, 3, 1)}])
def test_a_stated_density(sizes):
    q, k, v = inputs()
    tile, block = sizes.get("tile", "blocks"), sizes.get("block")
    found = AttentionPlan(GRID, tile, block=block).tiling
    window = density_window(GRID, found.tile, found.block, 0.3)
    out = fps_attention(q, k, v, grid=GRID, density=0.3, **sizes)
    assert torch.equal(out, fps_attention(q, k, v, grid=GRID, tile=found.tile, block=found.block, window=window))


def test_windowed_plain_equals_masked_sdpa_in_raster_order():
    q, k, v = inputs()
    plan = AttentionPlan(GRID, TILE, (1, 1, 1), method="sta")
    tables = plan.tables("cpu")
    mask = mask_from_lists(plan.tile_lists(), tables.layout)[0][tables.inverse][:, tables.inverse]
    out = fps_attention(q, k, v, grid=GRID, tile=TILE, window=(1, 1, 1), method="sta")
    torch.testing.assert_close(out, sdpa(q, k, v, mask), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "window"), [("fps", (3, 1, 1)), ("fp8", "all"), ("sta", (1, 1, 1)), ("bf16", "all")]
)
def test_gradient_is_exact_at_the_dequantized_inputs(method, window):
    plan = AttentionPlan(GRID, TILE, window, 2, method)
    tables = plan.tables("cpu")
    q, k, v = inputs()
    seen = [x.double().requires_grad_() for x in (fake_quantize(q, k, v, tables.layout, 2) if plan.fp8 else (q, k, v))]
    score = torch.einsum("blhd,bshd->bhls", *seen[:2]) * q.shape[-1] ** -0.5
    score = score.masked_fill(~mask_from_lists(plan.tile_lists(), tables.layout), -torch.inf)
    expected = torch.einsum("bhls,bshd->blhd", score.softmax(-1), seen[2])
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(expected, seen, grad.double())
    out, lse = attend(q, k, v, plan, return_lse=True)
    got = attention_gradient(grad, q, k, v, out, lse, plan, plan.lists("cpu"))
    leaves = inputs(grad=True)
    through = torch.autograd.grad(attend(*leaves, plan), leaves, grad)
    for a, b, c in zip(expected, got, through, strict=True):
        torch.testing.assert_close(b.double(), a, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(c, b, atol=1e-6, rtol=1e-5)


def test_only_the_gradients_asked_for():
    q, k, v = inputs()
    q.requires_grad_()
    out, lse = attend(q, k, v, AttentionPlan(GRID, TILE), return_lse=True)
    assert out.requires_grad and not lse.requires_grad
    out.sum().backward()
    assert q.grad is not None and k.grad is None


def test_training_step_in_bf16():
    leaves = inputs(torch.bfloat16, grad=True)
    attend(*leaves, AttentionPlan(GRID, TILE, (3, 1, 1))).float().square().mean().backward()
    for x in leaves:
        assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("method", "window"), [("fps", (3, 1, 1)), ("bf16", "all")])
def test_compiles_without_a_graph_break(backend, method, window):
    torch._dynamo.reset()
    plan = AttentionPlan(GRID, TILE, window, method=method)

    def layer(q, k, v):
        return attend(q * 1.5, k, v, plan) + q

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    ours, theirs = inputs(grad=True), inputs(grad=True)
    a, b = layer(*ours), compiled(*theirs)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_operator_registration():
    q, k, v = inputs(dim=8, heads=1, batch=1)
    plan = AttentionPlan(GRID, TILE, (3, 1, 1))
    arguments = (list(plan.grid), list(plan.tile), [], list(plan.window), 1, "fps", "auto", 0, 0, "[]")
    for lists in ((None, None), plan.lists("cpu")):
        torch.library.opcheck(torch.ops.fpsgen.attention.default, (q, k, v, *lists, *arguments))


def test_plans_are_resolved_hashable_and_equal():
    plan = AttentionPlan([21, 45, 80], window=(0, "all", 0.5))
    assert plan.tile == (21, 9, 2) and plan.window == (1, 5, 21)
    assert plan == AttentionPlan((21, 45, 80), (21, 9, 2), (1, 5, 21)) and hash(plan) == hash(
        AttentionPlan((21, 45, 80), window=(1, 5, 21))
    )
    assert plan.density == pytest.approx(21 / 40)
    assert (plan.kernel("cpu"), plan.kernel("cuda:0")) == ("cpu", "triton")
    assert AttentionPlan((4, 4, 4), method="bf16").kernel("cuda") == "sdpa"


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "svd"},
        {"method": "fp8", "window": (1, 1, 1)},
        {"granularity": 0},
        {"tile": (9, 1, 1, 1)},
        {"impl": "cuda"},
        {"smooth_k": True, "method": "sta"},
        {"window": (2, 1, 1)},
        {"window": 3},
        {"window": (1, 1)},
        {"grid": 8},
        {"grid": (8, 8)},
        {"grid": (8, 8, 0)},
        {"tile": 3},
        {"prefix": -1},
        {"suffix": 1.0},
        {"block": (3, 1, 1)},
        {"block": 2},
        {"smooth_k": "no"},
        {"options": 3},
    ],
)
def test_bad_plans_are_refused_in_two_lines(fields):
    with pytest.raises(ValueError) as caught:
        AttentionPlan(**({"grid": (8, 8, 8), "tile": (2, 2, 2)} | fields))
    assert str(caught.value).count("\n") == 1


def test_bad_shapes_are_refused():
    q, k, v = inputs()
    shapes = ((q[:, :5], k[:, :5], v[:, :5]), (q, k[:, :, :1], v), (q[0], k[0], v[0]))
    kinds = (
        tuple(x.to(torch.float8_e4m3fn) for x in (q, k, v)),
        tuple(x.to("meta") for x in (q, k, v)),
        (q.long(), k, v),
        (q, None, v),
        (q, k.to("meta"), v),
        (q.to_sparse(), k, v),
    )
    empty = tuple(
        tuple(x[place] for x in (q, k, v)) for place in (slice(0), (..., slice(0)), (..., slice(0), slice(None)))
    )
    for bad in shapes + kinds + empty:
        for call in (lambda x: fps_attention(*x, grid=GRID), lambda x: attend(*x, AttentionPlan(GRID, TILE))):
            with pytest.raises(ValueError) as caught:
                call(bad)
            assert str(caught.value).count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_kernels_without_a_gpu_are_refused_in_two_lines():
    with pytest.raises(UnsupportedDeviceError) as caught:
        fps_attention(*inputs(), grid=GRID, impl="triton")
    assert str(caught.value).count("\n") == 1


def test_reference_and_operator_are_one():
    q, k, v = inputs()
    plan = AttentionPlan(GRID, TILE, (3, 1, 1), 2, impl="reference")
    tables = plan.tables("cpu")
    assert torch.equal(
        attend(q, k, v, plan), attention_reference(q, k, v, tables.layout, plan.tile_lists(), True, 2)[0]
    )


@pytest.mark.parametrize("grad", [False, True])
def test_smooth_keys_lose_their_bias_and_softmax_does_not_see_it(grad):
    q, k, v = inputs(dim=64)
    bias = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 20
    exact = sdpa(*(x.double() for x in (q, k, v)))
    biased = (k + bias).requires_grad_(grad)
    heights = torch.einsum("blhd,bshd->bhls", q, k + bias).mul(64**-0.5).logsumexp(-1)
    errors = {}
    for smooth in (False, True):
        plan = AttentionPlan(GRID, TILE, method="fp8", smooth_k=smooth)
        out, lse = attend(q, biased, v, plan, return_lse=True)
        out, lse = out.detach(), lse.detach()
        errors[smooth] = float((out - exact).norm() / exact.norm()), float((lse - heights).abs().max())
    plain = attend(q, k, v, AttentionPlan(GRID, TILE, method="fp8"))
    assert errors[True][0] < 1.1 * float((plain - exact).norm() / exact.norm()) < 0.2 * errors[False][0]
    assert errors[True][1] < 0.1 < errors[False][1]


def test_smooth_keys_have_the_gradient_of_keys():
    """Straight through the cast; the mean has none, since the gradients of all keys add up to nothing."""
    q, k, v = inputs(grad=True)
    out = attend(q, k, v, AttentionPlan(GRID, TILE, smooth_k=True))
    got = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    shifted = (k - k.mean(1, keepdim=True)).detach().requires_grad_()
    out = attend(q, shifted, v, AttentionPlan(GRID, TILE))
    wanted = torch.autograd.grad(out, (q, shifted, v), torch.ones_like(out))
    centred = wanted[1] - wanted[1].mean(1, keepdim=True)
    assert (wanted[1] - centred).norm() < 1e-5 < wanted[1].norm()
    for a, b in zip(got, (wanted[0], centred, wanted[2]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_import_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fpsgen.attention as a\n"
        "x = torch.randn(1, 64, 1, 8); a.fps_attention(x, x, x, grid=(4, 4, 4))\n"
        "try: a.fps_attention(x, x, x, grid=(4, 4, 4), impl='triton')\n"
        "except a.UnsupportedDeviceError as e: assert str(e).count(chr(10)) == 1, e\n"
        "else: raise SystemExit('ran without triton')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
