import math

import pytest
import torch

from fpsgen.attention.reference import attention_reference
from fpsgen.attention.tiles import Tiling, mask_from_lists

from .cases import BY_NAME, CASES, EDGES, IDS, line_case
from .numerics import check, truth


def run(case, fp8, dtype=torch.float32):
    laid = case.lay()
    q, k, v = case.inputs(dtype)
    return (q, k, v), laid, attention_reference(q, k, v, laid.layout, laid.tile_lists, fp8, case.granularity)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "plain"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_reference_keeps_the_contract(case, fp8):
    inputs, laid, (out, lse) = run(case, fp8)
    figures = check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, fp8, case.granularity))
    assert figures["relative"] < 1e-4 + 0.05 * figures["noise"]  # fp32 against fp64 flips next to no rounding


@pytest.mark.parametrize("length", EDGES)
def test_every_tail(length):
    case = line_case(length)
    inputs, laid, (out, lse) = run(case, True)
    check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True))


def test_plain_equals_masked_sdpa():
    case = BY_NAME["per_head"]
    (q, k, v), laid, (out, _) = run(case, False)
    mask = mask_from_lists(laid.tile_lists, laid.layout)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)


def test_constant_values_come_back_exactly():
    case = BY_NAME["ragged_window"]
    laid = case.lay()
    q, k, v = case.inputs()
    out, _ = attention_reference(q * 3, k, torch.ones_like(v), laid.layout, laid.tile_lists, True)
    torch.testing.assert_close(out, torch.ones_like(out), atol=1e-6, rtol=0)


def test_list_order_does_not_matter():
    case = BY_NAME["unsorted"]
    (q, k, v), laid, (out, lse) = run(case, True)
    laid.tile_lists.__dict__.pop("groups", None)
    for row, count in zip(laid.tile_lists.indices[0], laid.tile_lists.counts[0].tolist(), strict=True):
        row[:count] = row[:count].sort().values
    again = attention_reference(q, k, v, laid.layout, laid.tile_lists, True)
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])


@pytest.mark.parametrize("scale", [1e-8, 1.0, 30.0, 1e30])
def test_extreme_inputs_stay_finite(scale):
    case = BY_NAME["ragged"]
    laid = case.lay()
    q, k, v = case.inputs()
    out, lse = attention_reference(q * min(scale, 1e15), k, v * scale, laid.layout, laid.tile_lists, True)
    assert out.isfinite().all() and lse.isfinite().all()


def test_zero_input_gives_the_mean():
    case = BY_NAME["full_blocks"]
    laid = case.lay()
    q, k, v = case.inputs()
    for fp8 in (True, False):
        out, lse = attention_reference(q * 0, k * 0, v, laid.layout, laid.tile_lists, fp8)
        seen = laid.layout.tiling.num_tokens
        torch.testing.assert_close(lse, torch.full_like(lse, math.log(seen)))
        torch.testing.assert_close(out, v.mean(1, keepdim=True).expand_as(v), atol=0.02, rtol=0)


def test_nan_reaches_every_row_that_sees_it_and_no_other():
    case = BY_NAME["ragged_window"]
    laid = case.lay()
    q, k, v = case.inputs()
    k[0, 0, 0, 0] = float("nan")
    out, _ = attention_reference(q, k, v, laid.layout, laid.tile_lists, True)
    sees = mask_from_lists(laid.tile_lists, laid.layout)[0, :, 0]
    assert out[0, sees, 0].isnan().all() and out[0, ~sees].isfinite().all() and out[0, :, 1].isfinite().all()


def test_bf16_in_bf16_out_and_strided_inputs():
    case = BY_NAME["ragged_window"]
    laid = case.lay()
    packed = torch.stack(case.inputs(torch.bfloat16), 2)  # [B, L, 3, H, D]
    out, lse = attention_reference(*packed.unbind(2), laid.layout, laid.tile_lists, True)
    dense = attention_reference(*(x.contiguous() for x in packed.unbind(2)), laid.layout, laid.tile_lists, True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32 and torch.equal(out, dense[0])


def test_wrong_shapes_are_refused():
    laid = BY_NAME["ragged"].lay()
    x = torch.zeros(1, 5, 1, 64)
    with pytest.raises(ValueError, match=r"\(5, 6, 7\)"):
        attention_reference(x, x, x, laid.layout, laid.tile_lists, True)
    laid = BY_NAME["per_head"].lay()
    x = torch.zeros(1, Tiling((4, 6, 6), (2, 3, 3)).num_tokens, 3, 8)
    with pytest.raises(ValueError, match="groups"):
        attention_reference(x, x, x, laid.layout, laid.tile_lists, True)
