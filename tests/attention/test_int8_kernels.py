"""The Triton kernels with INT8 queries and keys in the interpreter, key blocks left out, and mistakes planted."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fpsgen.attention.quantize import E4M3_MAX, fake_quantize, round_e4m3
from fpsgen.attention.reference import attention_reference

from .cases import BY_NAME, Case, line_case
from .gradients import case_mask, check_rows, of_case, row_noise
from .gradients import check as check_gradients
from .interpreter import interpreted, kernel_modules
from .mutant import INTERPRETED, kernels_with
from .numerics import check, check_norm_rope, check_prepared, truth

SOME = [
    BY_NAME[name]
    for name in (
        *("ragged_window", "tile_of_three_blocks", "shared_scales", "unsorted", "empty_rows", "per_batch_head"),
        *("small_head_dim", "blocks_in_a_row", "dense_rows"),
    )
]


@pytest.fixture(scope="module")
def kernels():
    with interpreted(*kernel_modules()):
        from fpsgen.attention import kernels

        yield kernels


def attention(kernels, case, laid, inputs, **settings):
    """The kernel on outputs that were NaN before."""
    q = inputs[0]
    out = torch.full(q.shape, math.nan) if case.dim in (64, 128) else None
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), math.nan)
    given = (*inputs, laid.tables, laid.lists, True, case.granularity)
    return kernels.attention_kernel(*given, int8_qk=True, out=out, lse=lse, **settings)


def contract(kernels, case, inputs=None):
    laid, inputs = case.lay(), inputs or case.inputs()
    out, lse = attention(kernels, case, laid, inputs)
    check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True, case.granularity, int8=True))
    return laid, inputs, out, lse


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_int8_keeps_the_contract(kernels, case):
    laid, inputs, out, lse = contract(kernels, case)
    same = attention_reference(*inputs, laid.layout, laid.tile_lists, True, case.granularity, True)
    torch.testing.assert_close(out, same[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse, same[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 17, 63, 65, 193])
def test_every_tail(kernels, length):
    contract(kernels, line_case(length))


def test_the_largest_sums_are_exact(kernels):
    """All values at the end of the range: sums of 128 x 127 x 127, which fp32's bits must still hold."""
    case = BY_NAME["tile_of_three_blocks"]
    q, _, v = case.inputs()
    sign = torch.sign(torch.randn(q.shape, generator=torch.Generator().manual_seed(1)))
    contract(kernels, case, (sign.abs() * 0.1, sign * 0.1, v))


@pytest.mark.parametrize("name", ["ragged_window", "shared_scales", "per_batch_head", "dense_rows"])
def test_prepared_inputs_equal_the_rule_to_the_bit(kernels, name):
    case = BY_NAME[name]
    laid, (q, k, v) = case.lay(), case.inputs()
    ready = kernels.quantize(q, k, v, laid.tables, case.granularity, int8_qk=True)
    assert ready.q.dtype == ready.k.dtype == torch.int8
    check_prepared(ready, q, k, v, laid.layout, case.granularity, False, True)


def test_means_are_taken_off(kernels):
    case = BY_NAME["ragged_window"]
    laid, (q, k, v) = case.lay(), case.inputs()
    k, v = k + 3, v + 5
    out, lse = attention(kernels, case, laid, (q, k, v), smooth_k=True, center_v=True)
    mean, value_mean = k.mean(1, keepdim=True), v.mean(1, keepdim=True)
    true = truth(q, k - mean, v - value_mean, laid.layout, laid.tile_lists, True, int8=True)
    assert float((out - value_mean - true.out).norm() / true.out.norm()) < 2e-2
    height = true.lse + torch.einsum("blhd,bkhd->bhl", q, mean) * case.dim**-0.5
    torch.testing.assert_close(lse.double(), height.double(), atol=5e-3, rtol=1e-4)


@pytest.mark.parametrize("granularity", [1, 3])
def test_a_nan_is_not_hidden(kernels, granularity):
    """INT8 has none: it passes through the scale, to all rows that see the group."""
    case = BY_NAME["ragged_window"]
    laid, (q, k, v) = case.lay(), case.inputs()
    k[0, 0, 0, 0] = math.nan
    given = (laid.tables, laid.lists, True, granularity)
    out, _ = kernels.attention_kernel(q, k, v, *given, int8_qk=True)
    wanted, _ = attention_reference(q, k, v, laid.layout, laid.tile_lists, True, granularity, True)
    assert out[0, 0, 0].isnan().any() and out[0][wanted[0].isfinite()].isfinite().all()
    assert torch.equal(out.isnan().any(-1), wanted.isnan().any(-1))


@pytest.mark.parametrize("smooth_k", [False, True], ids=["", "smooth_k"])
@pytest.mark.parametrize(("name", "granularity"), [("ragged_window", 1), ("per_batch_head", 3)])
def test_norm_and_rope_on_the_way_into_int8(kernels, name, granularity, smooth_k):
    case = BY_NAME[name]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    ready = kernels.quantize(q, k, v, laid.tables, granularity, False, norm_rope, smooth_k, int8_qk=True)
    assert ready.q.dtype == ready.k.dtype == torch.int8 and ready.q.abs().max() == ready.k.abs().max() == 127
    check_norm_rope(ready, q, k, laid.layout, granularity, norm_rope, ready.k_mean if smooth_k else None)
    given = (laid.tables, laid.lists, True, granularity)
    out, lse = kernels.attention_kernel(q, k, v, *given, norm_rope, smooth_k=smooth_k, int8_qk=True)
    wide = norm_rope.apply(q.float(), k.float())
    same, height = kernels.attention_kernel(*wide, v.float(), *given, smooth_k=smooth_k, int8_qk=True)
    assert float((out - same).norm() / same.norm()) < 1e-2
    torch.testing.assert_close(lse, height, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("granularity", [1, 3])
def test_a_nan_before_the_norm_is_not_hidden(kernels, granularity):
    """Of a token's query: it passes through the scales, as it does where the norm comes first."""
    case = BY_NAME["ragged_window"]
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    q[0, 0, 0, 0] = math.nan
    given = (laid.tables, laid.lists, True, granularity)
    out, _ = kernels.attention_kernel(q, k, v, *given, norm_rope, int8_qk=True)
    same, _ = kernels.attention_kernel(*norm_rope.apply(q, k), v, *given, int8_qk=True)
    assert out[0, 0].isnan().any() and torch.equal(out.isnan(), same.isnan())


@pytest.mark.parametrize("name", ["ragged_window", "per_batch_head", "shared_scales"])
def test_gradients_are_those_of_masked_softmax(kernels, name):
    from fpsgen.attention.kernels.backward_portable import attention_backward

    case = BY_NAME[name]
    laid = case.lay()
    given, true = of_case(case, laid, torch.bfloat16, True, int8=True)
    got = attention_backward(*given, laid.tables, laid.lists, True, case.granularity, int8_qk=True)
    check_gradients(got, true, 5e-3)
    check_rows(got, true, row_noise(given, case_mask(case, laid), laid.layout, case.granularity, True, int8=True))


# key blocks that are left out


def left_out(q, k, v, laid, case, threshold, rows):
    """By the definition, list by list in order, for programs of `rows` query rows: out, and how many blocks were left
    out.
    """
    layout = laid.layout
    query, key, value = (x.double().transpose(1, 2) for x in fake_quantize(q, k, v, layout, int8_qk=True))
    out, number = torch.zeros_like(query), 0
    span = [range(s, s + n) for s, n in zip(layout.block_start.tolist(), layout.block_len.tolist(), strict=True)]
    index, count = laid.lists
    for block, tokens in enumerate(span):
        tile = int(layout.block_tile[block])
        for part in range(0, len(tokens), rows):
            own = list(tokens[part : part + rows])
            for b in range(q.shape[0]):
                for h in range(q.shape[2]):
                    m = torch.full((len(own),), -math.inf).double()
                    total, acc = torch.zeros(len(own)).double(), torch.zeros(len(own), q.shape[-1]).double()
                    g = (b * q.shape[2] + h) % len(count)
                    for seen in index[g, tile, : int(count[g, tile])].tolist():
                        keys = list(span[seen])
                        score = query[b, h, own] @ key[b, h, keys].T * (q.shape[-1] ** -0.5 / math.log(2))
                        height = score.amax(1).ceil()
                        new = torch.maximum(m, height)
                        alpha, m = torch.exp2(m - new), new
                        total, acc = total * alpha, acc * alpha[:, None]
                        if float((height - m).max()) <= -threshold:
                            number += 1
                            continue
                        p = torch.exp2(score - m[:, None]).mul(E4M3_MAX).float()
                        p = round_e4m3(p.clamp(max=E4M3_MAX)).double()
                        total, acc = total + p.sum(1), acc + p @ value[b, h, keys]
                    out[b, h, own] = acc / total[:, None]
    return out.transpose(1, 2), number


FAR = [Case("even", (4, 8, 6), (2, 4, 6)), Case("ragged", (4, 8, 7), (2, 4, 6), heads=2)]


@pytest.mark.parametrize(("case", "threshold"), [(FAR[0], 1.0), (FAR[0], 2.0), (FAR[1], 2.0)])
def test_far_blocks_are_left_out(kernels, case, threshold):
    """Queries but one look one way; every other block's keys lie some steps behind along it."""
    laid, (q, k, v) = case.lay(), case.inputs()
    behind = (laid.layout.token_block % 2)[:, None, None]
    looks = torch.where(torch.arange(case.tokens) == 5, -1.0, 1.0)[:, None, None]
    q, k = looks + 0.1 * q, 2.0 / case.dim**0.5 * (1.0 - 1.1 * behind) + 0.1 * k
    out, _ = attention(kernels, case, laid, (q, k, v), pv_threshold=threshold)
    rows = kernels.choose(q, laid.tables, True).block_q
    wanted, number = left_out(q, k, v, laid, case, threshold, rows)
    _, none = left_out(q, k, v, laid, case, 50.0, rows)
    assert number > 2 and none == 0
    plain, _ = attention(kernels, case, laid, (q, k, v))
    assert float((out - wanted).norm() / wanted.norm()) < 3e-3
    assert float((plain - wanted).norm() / wanted.norm()) > 1e-2


def test_fifty_leaves_out_nothing_that_counts(kernels):
    case = BY_NAME["ragged_window"]
    laid, (q, k, v) = case.lay(), case.inputs()
    q = q * 40
    plain, lse = attention(kernels, case, laid, (q, k, v))
    out, same = attention(kernels, case, laid, (q, k, v), pv_threshold=50.0)
    assert torch.equal(out, plain) and torch.equal(lse, same)


# planted mistakes

MISTAKES = {  # what is wrong: module, function, what is there, what is put there
    "half the range": ("quantize_parts", "block_scale_int8", "_INVERSE_INT8", "2 * _INVERSE_INT8"),
    "cut off in place of rounded": ("quantize_parts", "cast_int8", "x + _MAGIC", "x - 0.5 + _MAGIC"),
    "bits of another number": ("attend_portable", "attend_portable", "qk + _MAGIC_BITS", "qk + (_MAGIC_BITS + 512)"),
    "queries by the keys' scales": (
        "attend_portable",
        "attend_portable",
        "tl.load(q_scale + bh.to(tl.int64) * num_blocks + block_q) * softmax_scale",
        "tl.load(k_scale + bh.to(tl.int64) * num_blocks + block_q) * softmax_scale",
    ),
    "a row's NaN is lost before the norm": ("norm_rope_quantize", "_measure_rows", "_NAN_BITS", "0"),
    "normed values cut off": ("norm_rope_quantize", "_cast_rows", "cast_int8(values)", "values.to(tl.int8)"),
    "normed queries by E4M3's scale": (
        "norm_rope_quantize",
        "_cast_rows",
        "block_scale_int8(ahead) if INT8 else block_scale(ahead)",
        "block_scale(ahead)",
    ),
    "a NaN is lost": ("quantize_qkv", "_largest", "amax + tl.sum(tl.sum(values * 0.0, 1), 0)", "amax + 0.0"),
    "leaves out what any row needs": (
        "attend_portable",
        "attend_portable",
        "tl.max(tl.where(counts, qk_max - m_base, float('-inf')), 0)",
        "tl.min(qk_max - m_base, 0)",
    ),
    "rows of padding need every block": (
        "attend_portable",
        "attend_portable",
        "(rows_left > rows_q) & (qk_max > float('-inf'))",
        "qk_max > float('-inf')",
    ),
    "leaves out nothing": ("attend_portable", "attend_portable", "PV_THRESHOLD > 0", "PV_THRESHOLD > 1000"),
}


def judge(kernels) -> None:
    case = BY_NAME["ragged_window"]
    test_int8_keeps_the_contract(kernels, case)
    test_prepared_inputs_equal_the_rule_to_the_bit(kernels, case.name)
    test_norm_and_rope_on_the_way_into_int8(kernels, case.name, 1, False)
    test_a_nan_is_not_hidden(kernels, 1)
    test_a_nan_before_the_norm_is_not_hidden(kernels, 1)
    test_far_blocks_are_left_out(kernels, FAR[0], 2.0)


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_planted_mistakes_are_caught(mistake, tmp_path):
    change = MISTAKES.get(mistake, ("attend_portable", "attend_portable", "range(count)", "range(count)"))
    with kernels_with(tmp_path, change[0], change[1:]) as copies, interpreted(*(copies[m] for m in INTERPRETED)):

        class Copy:
            attention_kernel = staticmethod(copies["dispatch"].attention_kernel)
            choose = staticmethod(copies["dispatch"].choose)
            quantize = staticmethod(copies["quantize_qkv"].quantize)

        if mistake is None:
            judge(Copy)
        else:
            with pytest.raises(AssertionError):
                judge(Copy)
