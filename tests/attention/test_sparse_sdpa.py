"""The CPU kernel against fp64 attention on the same rounded inputs and lists."""

import math

import pytest
import torch

from fpsgen.attention import sparse_sdpa
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.sparse_sdpa import attention_cpu, attention_cpu_lists, token_groups
from fpsgen.attention.tiles import BlockLayout, TileLists, Tiling, mask_from_lists

from .cases import BY_NAME, CASES, HOPPER_CASES, IDS

# relative error: of fp32 sums; of bf16 products, where P and a block's scale keep 8 bits
BOUND = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
HEIGHT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def exact(q, k, v, mask, scale=None):
    """fp64 attention under a mask [G, L, L], and its LSE; rows that see nothing give 0 and -inf."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    batch, heads = q.shape[:2]
    groups = len(mask)
    mask = mask[None, torch.arange(heads) % groups] if groups <= heads else mask.view(batch, heads, *mask.shape[1:])
    score = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf)
    p = torch.softmax(score, -1).nan_to_num(0.0)
    return (p @ v).transpose(1, 2), score.logsumexp(-1)


def run(case, fp8, dtype=torch.float32, return_lse=True):
    laid = case.lay()
    inputs = case.inputs(dtype)
    groups = token_groups(laid.layout, *laid.lists)
    out, lse = attention_cpu(*inputs, laid.layout, groups, fp8, case.granularity, return_lse)
    seen = fake_quantize(*inputs, laid.layout, case.granularity) if fp8 else inputs
    return out, lse, exact(*seen, mask_from_lists(laid.tile_lists, laid.layout))


@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "plain"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_case(case, fp8, product, monkeypatch):
    monkeypatch.setattr(sparse_sdpa, "_fast_bf16", lambda: product == torch.bfloat16)
    out, lse, (true, height) = run(case, fp8, torch.float32 if fp8 else product)
    assert float((out.double() - true).norm() / true.norm()) < BOUND[product]
    assert torch.equal(lse.isinf(), height.isinf())
    torch.testing.assert_close(lse.double(), height, atol=HEIGHT[product], rtol=1e-6)
    alone, nothing, _ = run(case, fp8, torch.float32 if fp8 else product, return_lse=False)
    assert nothing is None and torch.equal(alone, out)


@pytest.mark.parametrize("name", ["blocks_in_a_row", "dense_rows", "per_batch_head"])
def test_blocks_of_128_rows(name):
    case = next(case for case in HOPPER_CASES if case.name == name)
    out, _, (true, _) = run(case, True)
    assert float((out.double() - true).norm() / true.norm()) < BOUND[torch.bfloat16]


def test_p_is_not_rounded_to_fp8():
    """Values of one size in one channel, whose mean E4M3's steps in P would move."""
    case = BY_NAME["full_blocks"]
    laid = case.lay()
    q, k, _ = case.inputs()
    v = torch.arange(case.tokens, dtype=torch.float32).view(1, -1, 1, 1).expand_as(q) % 2  # 0 and 1 are exact in E4M3
    groups = token_groups(laid.layout, *laid.lists)
    out, _ = attention_cpu(q, k, v, laid.layout, groups, True)
    true, _ = exact(*fake_quantize(q, k, v, laid.layout)[:2], v, mask_from_lists(laid.tile_lists, laid.layout))
    assert float((out - true).abs().max()) < 4e-3


@pytest.mark.parametrize("fp8", [True, False])
def test_keys_of_another_type(fp8):
    case = BY_NAME["ragged_window"]
    laid = case.lay()
    q, k, v = case.inputs()
    groups = token_groups(laid.layout, *laid.lists)
    out, _ = attention_cpu(q, k.bfloat16(), v.half(), laid.layout, groups, fp8)
    same, _ = attention_cpu(q, k.bfloat16().float(), v.half().float(), laid.layout, groups, fp8)
    assert out.dtype == torch.float32 and torch.equal(out, same)


def test_groups_that_fit_no_head_are_refused():
    laid = BY_NAME["per_head"].lay()
    x = torch.zeros(1, 144, 3, 8)
    with pytest.raises(ValueError, match="groups"):
        attention_cpu(x, x, x, laid.layout, token_groups(laid.layout, *laid.lists), False)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "plain"])
@pytest.mark.parametrize("groups", [2, 4])
def test_lists_of_one_call_and_one_length_are_gathered(groups, fp8, monkeypatch):
    layout = BlockLayout(Tiling((4, 6, 6), (2, 3, 3)))
    random = torch.Generator().manual_seed(3)
    index = torch.rand(groups, 8, 8, generator=random).argsort(-1)[..., :5].int()
    count = torch.full((groups, 8), 3, dtype=torch.int32)  # what follows is not read
    q, k, v = (torch.randn(2, 144, 2, 16, generator=random) for _ in range(3))
    true, height = exact(*(fake_quantize(q, k, v, layout) if fp8 else (q, k, v)), mask_of(index, count, layout))
    for gathered in (1 << 22, 4000):  # all tiles in one call, or some
        monkeypatch.setattr(sparse_sdpa, "GATHERED", gathered)
        monkeypatch.setattr(sparse_sdpa, "token_groups", None)
        out, lse = attention_cpu_lists(q, k, v, layout, index, count, fp8)
        assert float((out - true).norm() / true.norm()) < BOUND[torch.bfloat16 if fp8 else torch.float32]
        torch.testing.assert_close(lse.double(), height, atol=2e-2 if fp8 else 1e-5, rtol=1e-5)
        assert torch.equal(out, attention_cpu_lists(q, k, v, layout, index, count, fp8, return_lse=False)[0])


def mask_of(index, count, layout):
    return mask_from_lists(TileLists(index, count), layout)


def test_lists_of_unequal_length_take_the_other_path():
    case = BY_NAME["per_batch_head"]
    laid = case.lay()
    q, k, v = case.inputs()
    out, _ = attention_cpu_lists(q, k, v, laid.layout, *laid.lists, False)
    true, _ = exact(q, k, v, mask_from_lists(laid.tile_lists, laid.layout))
    assert float((out - true).norm() / true.norm()) < BOUND[torch.float32]


def test_one_call_for_equal_lists(monkeypatch):
    """nano's shape: border tiles share their lists, so 24 query tiles make 2 calls at a window of 7 of 8."""
    plan = AttentionPlan((9, 10, 16), (3, 10, 2), (0, 0, 7))
    calls = []
    right = sparse_sdpa.F.scaled_dot_product_attention
    monkeypatch.setattr(sparse_sdpa.F, "scaled_dot_product_attention", lambda *a: calls.append(a) or right(*a))
    x = torch.randn(2, 1440, 4, 64)
    attention_cpu(x, x, x, plan.layout, plan.token_groups(), True, return_lse=False)
    assert len(calls) == 2 and sum(q.shape[2] * k.shape[2] for q, k, _ in calls) == 1440**2 * 7 / 8
