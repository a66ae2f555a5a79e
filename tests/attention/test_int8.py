"""Queries and keys in INT8: the rule, the reference, the CPU path, and the Triton kernels in the interpreter."""

import math

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend, fps_attention
from fpsgen.attention.backward import gathered_gradient
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.reference import attention_reference
from fpsgen.attention.sparse_sdpa import attention_cpu, attention_cpu_lists, token_groups
from fpsgen.attention.tiles import mask_from_lists

from .cases import BY_NAME, CASES, IDS
from .numerics import check, truth
from .quantization import quantize_blocks_int8
from .test_sparse_sdpa import BOUND, exact


def levels(x, layout, granularity):
    """Integers and scales by the definition, block by block in fp64: int64 [B, L, H, D], fp64 [B, H, N]."""
    batch, _, heads, _ = x.shape
    out, scales = torch.zeros(x.shape, dtype=torch.int64), torch.zeros(batch, heads, layout.num_blocks).double()
    for first in range(0, layout.num_blocks, granularity):
        blocks = range(first, min(first + granularity, layout.num_blocks))
        tokens = torch.cat([torch.nonzero(layout.token_block == block).flatten() for block in blocks])
        for b in range(batch):
            for h in range(heads):
                scale = max(float(x[b, tokens, h].double().abs().max()), 2.0**-50) / 127
                scales[b, h, list(blocks)] = scale
                out[b, tokens, h] = (x[b, tokens, h].double() / scale).round().clamp(-127, 127).long()
    return out, scales


@pytest.mark.parametrize("name", ["ragged", "shared_scales", "per_batch_head"])
def test_the_rule_is_the_definition(name):
    case = BY_NAME[name]
    layout, (q, _, _) = case.lay().layout, case.inputs()
    got, scale = quantize_blocks_int8(q, layout, case.granularity)
    wanted, exact_scale = levels(q, layout, case.granularity)
    torch.testing.assert_close(scale.double(), exact_scale, rtol=1e-6, atol=0)
    assert got.dtype == torch.int8 and (got.long() - wanted).abs().max() <= 1  # at a tie fp32 may fall to either side
    assert (got.long() != wanted).double().mean() < 1e-4 and int(got.abs().max()) == 127


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fake_quantize_and_the_rule_agree(case):
    layout, (q, k, v) = case.lay().layout, case.inputs()
    *some, value = fake_quantize(q, k, v, layout, case.granularity, int8_qk=True)
    for x, got in zip((q, k), some, strict=True):
        whole, scale = quantize_blocks_int8(x, layout, case.granularity)
        wanted = whole.float() * scale.transpose(1, 2)[:, layout.token_block, :, None]
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    assert torch.equal(value, fake_quantize(q, k, v, layout)[2])  # values stay in E4M3


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_reference_keeps_the_contract(case):
    laid, inputs = case.lay(), case.inputs()
    out, lse = attention_reference(*inputs, laid.layout, laid.tile_lists, True, case.granularity, True)
    true = truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity, int8=True)
    figures = check(out, lse, true)
    assert figures["relative"] < 1e-4 + 0.05 * figures["noise"]
    other = truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity)
    assert float((other.out - true.out).norm() / true.out.norm()) > 1e-3  # E4M3 queries and keys are another thing


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_cpu_path(case):
    laid, inputs = case.lay(), case.inputs()
    seen = fake_quantize(*inputs, laid.layout, case.granularity, int8_qk=True)
    true, height = exact(*seen, mask_from_lists(laid.tile_lists, laid.layout))
    groups = token_groups(laid.layout, *laid.lists)
    rest = (True, case.granularity, True, True)
    for out, lse in (
        attention_cpu(*inputs, laid.layout, groups, *rest),
        attention_cpu_lists(*inputs, laid.layout, *laid.lists, *rest),
    ):
        assert float((out - true).norm() / true.norm()) < BOUND[torch.bfloat16]
        torch.testing.assert_close(lse.double(), height, atol=2e-2, rtol=1e-6)


def test_a_nan_stays_in_its_block_and_is_seen():
    case = BY_NAME["ragged_window"]
    laid, (q, k, v) = case.lay(), case.inputs()
    k[0, 0, 0, 0] = math.nan
    out, _ = attention_reference(q, k, v, laid.layout, laid.tile_lists, True, int8_qk=True)
    sees = mask_from_lists(laid.tile_lists, laid.layout)[0, :, 0]
    assert out[0, sees, 0].isnan().all() and out[0, ~sees].isfinite().all() and out[0, :, 1].isfinite().all()


@pytest.mark.parametrize("case", [BY_NAME[name] for name in ("ragged_window", "per_batch_head", "shared_scales")])
def test_gradients_pass_straight_through(case):
    laid, (q, k, v) = case.lay(), case.inputs()
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(2))
    groups = token_groups(laid.layout, *laid.lists)
    got = gathered_gradient(grad, q, k, v, laid.layout, groups, True, case.granularity, True)
    seen = fake_quantize(q, k, v, laid.layout, case.granularity, int8_qk=True)
    wide = [x.double().requires_grad_() for x in seen]
    out, _ = exact(*wide, mask_from_lists(laid.tile_lists, laid.layout))
    for a, b in zip(got, torch.autograd.grad(out, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)


# sage


GRID = (4, 10, 12)


def inputs(bias=0.0, value_bias=0.0, grad=False):
    random = torch.Generator().manual_seed(9)
    q, k, v = (torch.randn(2, 480, 3, 16, generator=random) for _ in range(3))
    k = k + bias * torch.randn(3, 16, generator=random)
    return tuple(x.requires_grad_(grad) for x in (q, k, v + value_bias))


def softmax_attention(q, k, v):
    q, k, v = (x.detach().double().transpose(1, 2) for x in (q, k, v))
    score = q @ k.mT * q.shape[-1] ** -0.5
    return (score.softmax(-1) @ v).transpose(1, 2), score.logsumexp(-1)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("options", [{}, {"smooth_v": True}], ids=["", "smooth_v"])
def test_sage_is_dense_and_takes_the_keys_mean_off(impl, options):
    q, k, v = inputs(bias=16.0)
    true, height = softmax_attention(q, k, v)
    errors = {}
    for smooth in (None, False):
        plan = AttentionPlan(GRID, method="sage", impl=impl, smooth_k=smooth, options=options)
        out, lse = attend(q, k, v, plan, return_lse=True)
        errors[smooth] = float((out - true).norm() / true.norm())
        torch.testing.assert_close(lse.double(), height, atol=1.0 if smooth is False else 0.05, rtol=0.01)
        out = attend(q, k, v, plan)
        assert float((out - true).norm() / true.norm()) < 0.2
    assert errors[None] < 0.5 * errors[False]


def test_centred_values_err_less_where_they_have_a_bias():
    q, k, v = inputs(value_bias=4.0)
    true, _ = softmax_attention(q, k, v)
    off = {}
    for smooth_v in (True, False):
        plan = AttentionPlan(GRID, method="sage", options={"smooth_v": smooth_v})
        out = attend(q, k, v, plan)
        off[smooth_v] = float((out - true).norm())
    assert off[True] < 0.5 * off[False]


def test_sage_trains():
    plan = AttentionPlan(GRID, method="sage", options={"smooth_v": True})
    leaves = inputs(1.0, 1.0, grad=True)
    grad = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(attend(*leaves, plan), leaves, grad)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    q, k, v = (x.transpose(1, 2) for x in wide)
    out = ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)
    for a, b in zip(got, torch.autograd.grad(out, wide, grad.double()), strict=True):
        assert float((a - b).norm() / b.norm()) < 0.05


def test_sage_is_traced_whole():
    torch._dynamo.reset()
    plan = AttentionPlan(GRID, method="sage", options={"smooth_v": True})
    q, k, v = inputs(2.0, 2.0)
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, plan), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v, plan))


def test_rows_without_a_key_stay_zero_with_centred_values():
    q, k, v = inputs(2.0, 2.0)
    plan = AttentionPlan(GRID, (2, 5, 6), method="sage", options={"smooth_v": True})
    tiles = plan.tiling.num_tiles
    index = torch.zeros(1, tiles, 1, dtype=torch.int32)
    count = torch.ones(1, tiles, dtype=torch.int32)
    count[0, 0] = 0
    from fpsgen.attention.lists import given_lists

    out = attend(q, k, v, plan, lists=given_lists(index, count, plan, 2, 3))
    assert (out[:, :60] == 0).all() and (out[:, 60:] != 0).all()
    assert fps_attention(q, k, v, grid=GRID, method="sage").shape == q.shape


def test_fps_takes_int8_queries_and_keys():
    """Windows and INT8 together; on normal numbers they err less than E4M3."""
    q, k, v = inputs()
    errors = {}
    for qk in ("e4m3", "int8"):
        plan = AttentionPlan(GRID, (2, 5, 6), (1, 1, 1), options={"qk": qk})
        assert plan.int8_qk == (qk == "int8") and plan.method == "fps" and not plan.dense
        true, _ = exact(q, k, v, mask_from_lists(plan.tile_lists(), plan.layout))
        errors[qk] = float((attend(q, k, v, plan) - true).norm() / true.norm())
    assert errors["int8"] < 0.8 * errors["e4m3"]
