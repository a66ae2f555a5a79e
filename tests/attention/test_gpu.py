"""The same cases on a CUDA device through the public entry points, then Wan's shapes, then gradients and
repeatability.

pytest -m gpu -rP prints every measured figure.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from fpsgen.attention import AttentionPlan, attend, attention_reference, fps_attention
from fpsgen.attention.backward import gathered_gradient

from .cases import BY_NAME, CASES, EDGES, IDS, Case, line_case
from .gpu import needs_gpu, run
from .numerics import check, check_norm_rope, measure, truth
from .quantization import quantize_blocks, quantize_channels

pytestmark = needs_gpu
WAN_480P, WAN_720P, NANO = (21, 30, 52), (21, 45, 80), (9, 10, 16)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fp8_keeps_the_contract(case):
    inputs, laid, (out, lse) = run(case, True)
    print(case.name, check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity), case.name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("granularity", [1, 3])
@pytest.mark.parametrize("dim", [64, 128])
def test_norm_and_rope_on_the_way_into_blocks(dim, granularity, dtype):

    from fpsgen.attention.kernels import quantize

    case = Case("norm_rope", (9, 11, 13), (4, 5, 6), (3, 3, 1), batch=2, heads=5, dim=dim, granularity=granularity)
    laid, norm_rope = case.lay("cuda"), case.norm_rope(dtype, "cuda")
    q, k, v = torch.stack(case.inputs(dtype, "cuda"), 2).unbind(2)
    check_norm_rope(
        quantize(q, k, v, laid.tables, granularity, norm_rope=norm_rope), q, k, laid.layout, granularity, norm_rope
    )
    plan = AttentionPlan(case.grid, case.tile, case.lists, granularity)
    out = attend(q, k, v, plan, norm_rope=norm_rope)
    assert torch.equal(out, attend(q, k, v, plan, norm_rope=norm_rope))
    apart = attend(*norm_rope.apply(q.float(), k.float()), v.float(), plan)
    assert (out.float() - apart.float()).norm() / apart.float().norm() < 1e-2


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("granularity", [1, 3])
@pytest.mark.parametrize("dim", [64, 128])
def test_keys_and_values_without_their_means(dim, granularity, norm):
    """Means of all tokens, whatever the order of programs; what is cast is the rest."""
    from fpsgen.attention.kernels import attention_kernel, quantize

    case = Case("means", (9, 20, 32), (4, 5, 6), (3, 3, 1), batch=2, heads=5, dim=dim, granularity=granularity)
    laid, (q, k, v) = case.lay("cuda"), case.inputs(torch.bfloat16, "cuda")
    norm_rope = case.norm_rope(torch.bfloat16, "cuda") if norm else None
    k, v = k + 4, v - 3
    options = {"norm_rope": norm_rope, "smooth_k": True, "center_v": True}
    ready = quantize(q, k, v, laid.tables, granularity, **options)
    keys = norm_rope.apply(q.double(), k.double())[1] if norm_rope else k.double()
    torch.testing.assert_close(ready.k_mean, keys.mean(1).float(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ready.v_mean, v.double().mean(1).float(), atol=2e-5, rtol=1e-5)
    assert float(ready.v_scale.max()) * 448 < float(v.float().abs().max())
    if norm_rope:
        check_norm_rope(ready, q, k, laid.layout, granularity, norm_rope, ready.k_mean)
    out, lse = attention_kernel(q, k, v, laid.tables, laid.lists, True, granularity, **options)
    q, k = norm_rope.apply(q.float(), k.float()) if norm_rope else (q, k)
    true = truth(q, k, v, laid.layout, laid.tile_lists, False, tiles=[0, 20])
    assert (out.double()[:, true.tokens] - true.out).norm() / true.out.norm() < 2e-2
    assert (lse.double()[:, :, true.tokens] - true.lse).abs().max() < 0.2
    inputs = case.inputs(torch.bfloat16, "cuda")
    first = quantize(*inputs, laid.tables, granularity, **options)
    for _ in range(20):
        again = quantize(*inputs, laid.tables, granularity, **options)
        for name in ("k", "v", "k_mean", "v_mean", "k_scale", "v_scale"):
            assert torch.equal(getattr(again, name).view(torch.uint8), getattr(first, name).view(torch.uint8))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("length", EDGES)
def test_every_tail(length, dim):
    case = Case("line", line_case(length).grid, line_case(length).tile, dim=dim)
    inputs, laid, (out, lse) = run(case, True)
    check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True), f"{length} keys")


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_keeps_the_contract(case, dtype):
    inputs, laid, (out, lse) = run(case, False, dtype)
    true = truth(*inputs, laid.layout, laid.tile_lists, False)
    error = float((out.double() - true.out).norm() / true.out.norm().clamp(min=1e-300))
    finite = true.lse.isfinite()
    gap = float((lse[finite].double() - true.lse[finite]).abs().max()) if finite.any() else 0.0
    print(case.name, f"relative {error:.2e} lse {gap:.2e}")
    assert error < 5e-3 and gap < 1e-3 and torch.equal(lse == -math.inf, ~finite)
    assert (out.transpose(1, 2)[~finite] == 0).all()


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("tile", [(2, 4, 4), (4, 8, 4)], ids=["block64", "block128"])
def test_constant_values_come_back(dim, tile):
    """V = 1 gives O = 1: catches lost keys, a stale operand and sums that drift from the accumulator.

    Hopper's FP8 products are added in 14 bits: 2.4e-3 was measured; one lost P of a row is 8e-3 and more.
    """
    case = Case("ones", (9, 15, 14), tile, (3, 3, 3), batch=2, heads=2, dim=dim)
    q, k, v = case.inputs(device="cuda")
    _, _, (out, _) = run(case, True, inputs=(q * 2, k, torch.ones_like(v)))
    print("largest deviation", float((out - 1).abs().max()))
    torch.testing.assert_close(out, torch.ones_like(out), atol=4e-3, rtol=0)


def test_nan_is_not_hidden():
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs(device="cuda")
    k[0, 0, 0, 0] = math.nan
    inputs, laid, (out, _) = run(case, True, inputs=(q, k, v))
    expected, _ = attention_reference(*(x.cpu() for x in inputs), laid.layout, laid.tile_lists, True)
    assert out[0, 0, 0].isnan().any() and out[0].cpu()[expected[0].isfinite()].isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-8, 40.0, 1e5])
def test_extreme_logits_stay_finite(scale):
    """Up to logits of 2^22; beyond, fp32 does not hold its distance to the maximum (attend_portable.py)."""
    case = BY_NAME["ragged_window"]
    q, k, v = case.inputs(device="cuda")
    _, _, (out, lse) = run(case, True, inputs=(q * scale, k, v))
    assert out.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize("granularity", [1, 2, 5])
@pytest.mark.parametrize("name", ["ragged_window", "tile_of_three_blocks"])
def test_prepare_equals_the_torch_rule(name, granularity):
    from fpsgen.attention.kernels import quantize

    case = BY_NAME[name]
    laid = case.lay("cuda")
    q, k, v = case.inputs(torch.bfloat16, "cuda")
    ready = quantize(q, k, v, laid.tables, granularity)
    token = laid.layout.rows.flatten().cuda()
    real = (torch.arange(laid.layout.block) < laid.layout.block_len[:, None]).flatten().cuda()
    rows = [(q, ready.q, ready.q_scale), (k, ready.k, ready.k_scale)]
    expected = [quantize_blocks(x, laid.layout, granularity) for x, _, _ in rows] + [quantize_channels(v)]
    rows.append((v, ready.v.transpose(2, 3), ready.v_scale))
    for (_, values, scale), (wanted, wanted_scale) in zip(rows, expected, strict=True):
        torch.testing.assert_close(scale, wanted_scale, rtol=1e-6, atol=0)
        got = values.float()[:, :, real]
        wanted = wanted.float().transpose(1, 2)[:, :, token[real]]
        assert (got != wanted).float().mean() < 1e-4  # a last bit of 1/scale may move a tie
        torch.testing.assert_close(got, wanted, rtol=0.13, atol=2**-9)
        assert (values.float()[:, :, ~real] == 0).all()


@pytest.mark.parametrize(
    ("grid", "window", "dim", "heads", "batch"),
    [
        (NANO, (3, 1, 3), 64, 4, 2),
        (WAN_480P, (0.3, 0.3, 0.3), 128, 2, 1),
        (WAN_480P, "all", 128, 1, 1),
        (WAN_720P, (0.3, 0.3, 0.3), 128, 2, 1),
        (WAN_720P, "all", 128, 1, 1),
    ],
    ids=["nano", "480p", "480p-all", "720p", "720p-all"],
)
@pytest.mark.parametrize("granularity", [1, 8])
def test_wan_shapes_keep_the_contract(grid, window, dim, heads, batch, granularity):
    plan = AttentionPlan(grid, window=window, granularity=granularity, impl="triton")
    case = Case("wan", plan.grid, plan.tile, plan.window, batch, heads, dim, granularity)
    inputs, laid, (out, lse) = run(case, True)
    tiles = sorted({0, plan.tiling.num_tiles // 2, plan.tiling.num_tiles - 1})
    true = truth(*inputs, laid.layout, laid.tile_lists, True, granularity, tiles=tiles)
    print(plan.tile, plan.window, f"density {plan.density:.3f}", measure(out, lse, true))
    assert out.isfinite().all()
    check(out, lse, true)


@pytest.mark.parametrize("promote", [True, False])
@pytest.mark.parametrize("rounded_sum", [True, False])
def test_error_of_the_accumulator(promote, rounded_sum):
    """Prints what promotion and the rounded sum buy at 75,600 keys; only the shipped choice is bounded (above)."""
    from fpsgen.attention.kernels import PortableConfig

    plan = AttentionPlan(WAN_720P, impl="triton")
    case = Case("wan", plan.grid, plan.tile, "all", 1, 1, 128)
    inputs, laid, (out, lse) = run(case, True, config=PortableConfig(64, 4, 3, 168, promote, rounded_sum))
    figures = measure(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True, tiles=[0, 199]))
    print(f"promote={promote} rounded_sum={rounded_sum}", figures)
    assert figures["finite"] == 1.0


@pytest.mark.parametrize("method", ["bf16", "fp8", "sta", "fps"])
def test_public_entry_against_the_reference(method):
    plan = AttentionPlan(NANO, window=(3, 1, 3) if method in ("sta", "fps") else "all", method=method)
    case = Case("nano", plan.grid, plan.tile, plan.window, 2, 4, 64)
    q, k, v = case.inputs(torch.bfloat16, "cuda")
    options = {"grid": plan.grid, "method": method, "window": plan.window}
    out, lse = fps_attention(q, k, v, **options, return_lse=True)
    other, other_lse = fps_attention(q.cpu(), k.cpu(), v.cpu(), **options, impl="reference", return_lse=True)
    assert (out.cpu().float() - other.float()).norm() / other.float().norm() < 1.5e-2
    gap = lse.cpu() - other_lse  # one P that rounds to the other side moves a row's LSE, see numerics.py
    assert gap.abs().max() < (4e-2 if plan.fp8 else 1e-3) and gap.mean().abs() < 1e-3
    assert plan.kernel("cuda") == ("sdpa" if method == "bf16" else "triton")
    lone = fps_attention(q, k, v, **options)
    assert (lone.float() - out.float()).norm() / out.float().norm() < 5e-3  # bf16 without an LSE is SDPA


@pytest.mark.parametrize("method", ["fps", "sta"])
@pytest.mark.parametrize("grid", [NANO, (9, 20, 32)], ids=["nano", "over_4096_tokens"])
def test_gradient_against_fp64(method, grid):
    plan = AttentionPlan(grid, window=(0.3, 0.3, 0.3), method=method)
    case = Case("gradient", plan.grid, plan.tile, plan.window, 1, 2, 64)
    leaves = [x.requires_grad_() for x in case.inputs(torch.bfloat16, "cuda")]
    out = attend(*leaves, plan)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    inputs = (x.detach().double().cpu() for x in (grad, *leaves))
    wanted = gathered_gradient(*inputs, plan.layout, plan.token_groups(), plan.fp8)
    for name, a, b in zip("qkv", got, wanted, strict=True):
        error = float((a.cpu().double() - b).norm() / b.norm())
        print(method, grid, "d" + name, f"{error:.2e}")
        assert error < 2e-2


def test_training_shape_fits_and_is_finite():
    plan = AttentionPlan(NANO, window=(3, 1, 3))
    leaves = [torch.randn(64, 1440, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def step():
        out = attend(*leaves, plan)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    grads = step()
    assert all(g.isfinite().all() for g in grads)
    begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    begin.record()
    out = attend(*leaves, plan)
    middle.record()
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    end.record()
    torch.cuda.synchronize()
    print(f"[64, 1440, 4, 64]: forward {begin.elapsed_time(middle):.2f} ms, backward {middle.elapsed_time(end):.2f} ms")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiles_without_a_graph_break(backend):
    torch._dynamo.reset()
    plan = AttentionPlan(NANO, window=(3, 1, 3))
    leaves = [torch.randn(2, 1440, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def layer(q, k, v):
        return attend(q * 1.5, k, v, plan) + q

    out = torch.compile(layer, fullgraph=True, backend=backend)(*leaves)
    torch.testing.assert_close(out, layer(*leaves), atol=2e-2, rtol=2e-2)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), leaves))


def test_repeats_are_bit_equal():
    plan = AttentionPlan(NANO, window=(3, 1, 3), impl="triton")
    case = Case("repeat", plan.grid, plan.tile, plan.window, 8, 4, 64)
    inputs, _, (out, lse) = run(case, True, torch.bfloat16)
    for _ in range(50):
        _, _, (again, again_lse) = run(case, True, inputs=inputs)
        assert torch.equal(out, again) and torch.equal(lse, again_lse)


def test_batch_and_heads_are_independent():
    plan = AttentionPlan(NANO, window=(3, 1, 3), impl="triton")
    q, k, v = Case("alone", plan.grid, plan.tile, plan.window, 2, 4, 64).inputs(torch.bfloat16, "cuda")
    whole = attend(q, k, v, plan)
    alone = attend(*(x[1:, :, 2:3].contiguous() for x in (q, k, v)), plan)
    assert torch.equal(whole[1:, :, 2:3], alone)


def test_rows_beyond_a_tile_are_left_alone():
    """Outputs are views into poisoned memory: nothing outside them may be written."""
    from fpsgen.attention.kernels import attention_kernel

    case = BY_NAME["ragged_window"]
    laid = case.lay("cuda")
    q, k, v = case.inputs(device="cuda")
    pool = torch.full((3, *q.shape), math.nan, device="cuda")
    heights = torch.full((3, q.shape[0], q.shape[2], q.shape[1]), math.nan, device="cuda")
    attention_kernel(q, k, v, laid.tables, laid.lists, True, out=pool[1], lse=heights[1])
    assert pool[1].isfinite().all() and pool[0].isnan().all() and pool[2].isnan().all()
    assert heights[1].isfinite().all() and heights[0].isnan().all() and heights[2].isnan().all()


def test_plain_gradient_equals_torch():
    plan = AttentionPlan(NANO, method="bf16")
    leaves = [torch.randn(2, 1440, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    ours = torch.autograd.grad(attend(*leaves, plan).sum(), leaves)
    theirs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in leaves)).sum()
    for a, b in zip(ours, torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)
