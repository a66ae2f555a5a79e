"""Mistakes planted in the kernels, one at a time: the suite's own checks must catch every one, and pass without.

The checks are those of test_kernels.py on a handful of cases, in Triton's interpreter.
"""

import math
from functools import cache

import pytest
import torch

from .cases import BY_NAME, Case
from .interpreter import interpreted
from .mutant import INTERPRETED, kernels_with, planted, source_of
from .numerics import check, check_norm_rope, check_prepared, truth

pytest.importorskip("triton", reason="triton is not installed")

FORWARD = {  # what is wrong: where, what is there, what is put there
    "reads the first key block again and again": ("attend_portable", "tl.load(keys + i)", "tl.load(keys)"),
    "drops the last key block": ("attend_portable", "range(count)", "range(count - 1)"),
    "lets one padding key in": (
        "attend_portable",
        "tl.where(rows_k[None, :] < length, qk, float('-inf'))",
        "tl.where(rows_k[None, :] <= length, qk, float('-inf'))",
    ),
    "loses a block's last key": (
        "attend_portable",
        "tl.where(rows_k[None, :] < length, qk, float('-inf'))",
        "tl.where(rows_k[None, :] < length - 1, qk, float('-inf'))",
    ),
    "forgets that blocks hold padding": ("attend_portable", "MASKED", "False"),
    "K scale of another block": ("attend_portable", "tl.load(scales + block_k)", "tl.load(scales + block_q)"),
    "Q scale of another head": (
        "attend_portable",
        "q_scale + bh.to(tl.int64) * num_blocks + block_q",
        "q_scale + block_q",
    ),
    "V scale of another head": ("attend_portable", "v_scale + bh.to(tl.int64) * D + channels", "v_scale + channels"),
    "V scale forgotten": (
        "attend_portable",
        "o * tl.load(v_scale + bh.to(tl.int64) * D + channels)[None, :]",
        "o * 1.0",
    ),
    "V mean of another head": ("attend_portable", "v_mean + bh.to(tl.int64) * D + channels", "v_mean + channels"),
    "V mean in rows without a key": ("attend_portable", "tl.where(l_i[:, None] == 0.0, 0.0, mean)", "mean"),
    "no softmax scale": (
        "attend_portable",
        "tl.load(q_scale + bh.to(tl.int64) * num_blocks + block_q) * softmax_scale",
        "tl.load(q_scale + bh.to(tl.int64) * num_blocks + block_q)",
    ),
    "values of another block": ("attend_portable", "[bh * D, block_k * BLOCK]", "[bh * D, block_q * BLOCK]"),
    "output not rescaled": ("attend_portable", "acc * alpha[:, None]", "acc * 1.0"),
    "row sum not rescaled": ("attend_portable", "l_i * alpha", "l_i * 1.0"),
    "row sum of P before its cast": ("attend_portable", "p_e4m3.to(tl.float32)", "p"),
    "maximum is no whole number": ("attend_portable", "tl.ceil(qk_max)", "qk_max + 0.0"),
    "lists of another group": ("attend_portable", "bh % list_groups", "bh // heads % list_groups"),
    "every part works for the first rows": (
        "attend_portable",
        "(bh * num_blocks + block_q) * BLOCK + part",
        "(bh * num_blocks + block_q) * BLOCK",
    ),
    "last row of a tile not written": ("attend_portable", "rows_q < rows_left", "rows_q < rows_left - 1"),
    "a row beyond the tile written": ("attend_portable", "rows_q < rows_left", "rows_q < rows_left + 1"),
    "division by zero for empty lists": ("attend_portable", "tl.where(l_i == 0.0, 1.0, l_i)", "l_i"),
    "output of all heads in the first": (
        "attend_portable",
        "(batch * tokens + token + rows_q) * heads + head",
        "(batch * tokens + token + rows_q) * heads",
    ),
    "LSE in base 2": ("attend_portable", "lse_base2 * _LN_2", "lse_base2"),
    "LSE with P's 448 in it": ("attend_portable", "lse_base2 - _P_SHIFT", "lse_base2 + 0.0"),
    "LSE of another head": ("attend_portable", "bh.to(tl.int64) * tokens", "head * tokens"),
    "16 bit: keys of the first batch": ("attend_portable", "k + batch * stride_kb", "k"),
    "16 bit: keys by the queries' stride": (
        "attend_portable",
        "rows[:, None] * stride_kl",
        "rows[:, None] * stride_ql",
    ),
    "16 bit: values by the queries' stride": (
        "attend_portable",
        "rows[:, None] * stride_vl",
        "rows[:, None] * stride_ql",
    ),
}
QUANTIZE = {
    "neighbours in the padding": ("_load_block", "rows[:, None] < length", "rows[:, None] < BLOCK"),
    "heads and batches exchanged": ("quantize_qkv", "(bh % heads).to(tl.int64)", "(bh // heads).to(tl.int64)"),
    "every block of a group into the first": (
        "_cast_rows",
        "bh.to(tl.int64) * num_blocks + block",
        "bh.to(tl.int64) * num_blocks + first",
    ),
    "V's last block not measured": ("measure_kv", "program // (batches * heads)", "program // (batches * heads + 1)"),
    "V of the first head measured": ("measure_kv", "(bh % heads).to(tl.int64)", "(bh % heads).to(tl.int64) * 0"),
    "K scales into Q's": ("quantize_qkv", "k_scale", "q_scale"),
    "keys by Q's batch stride": ("quantize_qkv", "batch * stride_kb", "batch * stride_qb"),
    "V's keys not permuted": (
        "_cast_values",
        "tl.permute(transposed.reshape(D, BLOCK // 16, 2, 4, 2), 0, 1, 3, 2, 4)",
        "tl.permute(transposed.reshape(D, BLOCK // 16, 2, 4, 2), 0, 1, 2, 3, 4)",
    ),
    "V scaled by magnitudes": ("_cast_values", "values * inverse[None, :]", "values * scale[None, :]"),
    "K's mean left in": ("_load_rows", "values - mean[None, :]", "values + 0.0 * mean[None, :]"),
    "the mean taken off padding": (
        "_load_rows",
        "tl.arange(0, BLOCK)[:, None] < length",
        "tl.arange(0, BLOCK)[:, None] >= 0",
    ),
    "K's mean of the first head": (
        "quantize_qkv",
        "load_mean(k_sum, channels, tokens)",
        "load_mean(k_sum, tl.arange(0, D), tokens)",
    ),
    "V's mean of the first head": (
        "quantize_qkv",
        "load_mean(v_sum, channels, tokens)",
        "load_mean(v_sum, tl.arange(0, D), tokens)",
    ),
    "V's smallest value forgotten": (
        "quantize_qkv",
        "load_largest(v_largest, codes + D) + center",
        "load_largest(v_largest, codes) - center",
    ),
    "with norm: keys' mean by the queries' norms": ("quantize_qkv", "(batches + batch) * tokens", "batch * tokens"),
    "with norm: keys' mean by the first head's weights": ("quantize_qkv", "weight_k + head * D", "weight_k"),
    "with norm: the last blocks not cast": (
        "quantize_into",
        "(batch * blocks + distance) * units",
        "(batch * blocks + distance - 1) * units",
    ),
    "with norm: as many programs as parts of one head": (
        "quantize_into",
        "2 * parts + 2 * cast_parts * -(-heads // config.cast_heads) + heads",
        "2 * parts + 2 * cast_parts * -(-heads // config.cast_heads) + 1",
    ),
}
PARTS = {
    "scales of half the range": ("INVERSE_MAX", "1.0 / 448.0", "1.0 / 224.0"),
    "V's largest value, not magnitude": (
        "measure_channels",
        "tl.maximum(peak, tl.abs(_load_part(x, first, length, stride_l, D, rows)))",
        "tl.maximum(peak, _load_part(x, first, length, stride_l, D, rows))",
    ),
    "V's first rows": ("measure_channels", "range(rows, BLOCK, rows)", "range(rows, rows, rows)"),
    "sums of the first rows": ("sum_channels", "range(0, BLOCK, rows)", "range(0, rows, rows)"),
    "largest values of padding too": ("sum_channels", "tl.where(real, values, float('-inf'))", "values"),
    "sums in another unit than means": ("add_sum", "values / _SUM_UNIT", "values / _SUM_UNIT / 2"),
    "NaN in sums": ("add_sum", "tl.where(values == values, values, 0.0)", "tl.where(values == values, values, 1e9)"),
    "negative values never the largest": (
        "raise_largest",
        "tl.where(bits < 0, ~bits, bits ^ -2147483648)",
        "tl.where(bits < 0, bits, bits ^ -2147483648)",
    ),
    "pairs in the wrong order": ("split_pairs", "words >> dtype.primitive_bitwidth", "words >> 0"),
    "bf16 pairs in the wrong order": ("split_pairs", "words & -65536", "words << 16"),
    "rotated by the next token's angle": (
        "load_angles",
        "table + token[:, None] * D",
        "table + (token[:, None] ^ 1) * D",
    ),
}
NORMED = {
    "every part measures the first rows": ("_measure_rows", "part * ROWS + tl.arange(0, ROWS)", "tl.arange(0, ROWS)"),
    "norm without its eps": (
        "_measure_rows",
        "tl.sum(squares, 1) / (heads * D) + eps",
        "tl.sum(squares, 1) / (heads * D)",
    ),
    "norm of one head": ("_measure_rows", "tl.sum(squares, 1) / (heads * D)", "tl.sum(squares, 1) / D"),
    "norm leaves the last head out": (
        "_measure_rows",
        "tl.range(heads, num_stages=1)",
        "tl.range(heads - 1, num_stages=1)",
    ),
    "norm of the first head for the second": ("_measure_rows", "x + stride_h", "x"),
    "norm of the second head for the third": ("_measure_rows", "(head + 2) * stride_h", "(head + 1) * stride_h"),
    "norm of zeros for the last head": ("_measure_rows", "head + 2 < heads", "head + 3 < heads"),
    "norm forgets odd channels": ("_measure_rows", "even * even + odd * odd", "even * even"),
    "norm weights of the first head": ("_measure_rows", "head * (D // 2) + pair", "pair"),
    "largest magnitude before the norm": ("_measure_rows", "norm[:, None]", "1.0"),
    "largest magnitude of even channels": (
        "_measure_rows",
        "tl.maximum(tl.abs(even * cos - odd * sin), tl.abs(even * sin + odd * cos))",
        "tl.abs(even * cos - odd * sin)",
    ),
    "largest magnitude of the next head": ("_measure_rows", "lane[None, :] == head", "lane[None, :] == head + 1"),
    "largest magnitude of the last head alone": (
        "_measure_rows",
        "tl.where(lane[None, :] == head, tl.max(peak, 1)[:, None], peaks)",
        "tl.where(lane[None, :] == head, tl.max(peak, 1)[:, None], 0.0)",
    ),
    "scale of one head for all": (
        "_cast_rows",
        "tl.load(amax + first * num_blocks, cache_modifier='.cg')",
        "tl.load(amax, cache_modifier='.cg')",
    ),
    "scale of the head before": ("_cast_rows", "tl.minimum(head + 1, last - 1)", "tl.minimum(head, last - 1)"),
    "scale not stored": ("_cast_rows", "part == 0", "part == -1"),
    "rotated the other way": ("_cast_rows", "(even * cos - odd * sin) * inverse", "(even * cos + odd * sin) * inverse"),
    "rotated half as often": ("_cast_rows", "(even * sin + odd * cos) * inverse", "(even * sin + odd) * inverse"),
    "keys' sums of one channel of a pair": (
        "_cast_rows",
        "tl.sum(even * sin + odd * cos, 0)",
        "tl.sum(even * cos - odd * sin, 0)",
    ),
    "keys' sums of the first head": ("_cast_rows", "head * D + tl.arange(0, D)", "tl.arange(0, D)"),
    "keys' sums of all batches": ("norm_rope_quantize", "k_sum + batch * heads * D", "k_sum"),
    "queries added up too": ("norm_rope_quantize", "which == 1", "which >= 0"),
    "scale of every block its own": ("norm_rope_quantize", "slot + group", "slot + block"),
    "keys taken for queries": ("norm_rope_quantize", "unit & 1", "(unit & 1) * 0"),
    "the queries' weights for keys": ("norm_rope_quantize", "weight_k", "weight_q"),
    "largest keys among the queries'": ("norm_rope_quantize", "k_amax", "q_amax"),
    "keys by Q's row stride": ("norm_rope_quantize", "tl.cast(stride_kl, tl.int64)", "tl.cast(stride_ql, tl.int64)"),
    "norms of the first batch for all": ("norm_rope_quantize", "which * batches + batch", "which * batches"),
    "norms of queries for keys": ("norm_rope_quantize", "line * tokens", "batch * tokens"),
    "every cast the first rows": ("norm_rope_quantize", "unit // 2 // shares", "0"),
    "casts the first heads alone": ("norm_rope_quantize", "unit // 2 % shares * CAST_HEADS", "unit // 2 % shares * 0"),
    "casts a head too few": (
        "norm_rope_quantize",
        "tl.minimum(first + CAST_HEADS, heads)",
        "tl.minimum(first + CAST_HEADS, heads - 1)",
    ),
    "measures the last block of a batch for all": ("norm_rope_quantize", "step % num_blocks", "num_blocks - 1"),
    "the first batch for all": (
        "norm_rope_quantize",
        "(step // num_blocks).to(tl.int64)",
        "(step // num_blocks * 0).to(tl.int64)",
    ),
    "with norm: V of the first head": ("norm_rope_quantize", "head.to(tl.int64) * stride_vh", "head.to(tl.int64) * 0"),
}
MUTANTS = [
    (module, *item)
    for module, mistakes in (
        ("attend_portable", FORWARD),
        ("quantize_qkv", QUANTIZE),
        ("quantize_parts", PARTS),
        ("norm_rope_quantize", NORMED),
    )
    for item in mistakes.items()
]
BATTERY = [
    (BY_NAME["shared_scales"], torch.float32),
    (Case("sixteen", (5, 4, 6), (2, 4, 4), (3, 1, 1), batch=2, heads=2), torch.bfloat16),
    (Case("many", (2, 5, 6), (2, 4, 4), "per_head", batch=2, heads=2, granularity=2), torch.float32),
    (BY_NAME["empty_rows"], torch.float32),
    (Case("halves", (4, 8, 4), (4, 8, 4), dim=128), torch.float32),
]
WIDE = Case("wide", (2, 5, 12), (2, 5, 4), batch=2, heads=7, granularity=2)  # of more heads than a program casts
MEANS = Case("means", (4, 3, 6), (2, 3, 3), "empty", batch=2, heads=2, granularity=3)


@cache
def prepared(index: int):
    """Inputs, in a mixture of strides, and what is true of them."""
    case, dtype = BATTERY[index]
    q, k, v = case.inputs(dtype)
    k, v = torch.stack((k, v, v), 2).unbind(2)[:2]
    laid = case.lay()
    return laid, (q, k, v), truth(q, k, v, laid.layout, laid.tile_lists, dtype == torch.float32, case.granularity)


def examine(attention_kernel, quantize) -> None:
    """Raises AssertionError at the first check that fails."""
    for index, (case, dtype) in enumerate(BATTERY):
        laid, (q, k, v), true = prepared(index)
        fp8 = dtype == torch.float32
        pool = torch.full((3, *q.shape), math.nan, dtype=dtype)
        heights = torch.full((3, case.batch, case.heads, q.shape[1]), math.nan)
        outputs = {"out": pool[1], "lse": heights[1]}
        attention_kernel(q, k, v, laid.tables, laid.lists, fp8, case.granularity, **outputs)
        for guard in (pool[0], pool[2], heights[0], heights[2]):
            assert guard.isnan().all(), "written outside"
        if fp8:
            layout, norm_rope = laid.layout, case.norm_rope()
            ready = quantize(q, k, v, laid.tables, case.granularity, True, norm_rope)
            check_norm_rope(ready, q, k, layout, case.granularity, norm_rope)
            check(pool[1], heights[1], true, case.name)
            ready = quantize(q, k, v, laid.tables, case.granularity, permuted=True)
            check_prepared(ready, q, k, v, layout, case.granularity, True)
        else:
            finite = true.lse.isfinite()
            assert (pool[1].double() - true.out).norm() / true.out.norm() < 5e-3
            torch.testing.assert_close(heights[1][finite].double(), true.lse[finite], atol=2e-5, rtol=1e-5)
    laid, (q, k, v), norm_rope = WIDE.lay(), WIDE.inputs(torch.bfloat16), WIDE.norm_rope(torch.bfloat16)
    k, v = torch.stack((k, -v * torch.arange(1, 8)[:, None]), 2).unbind(2)
    ready = quantize(q, k, v, laid.tables, WIDE.granularity, True, norm_rope)
    check_norm_rope(ready, q, k, laid.layout, WIDE.granularity, norm_rope)
    plain = quantize(q, k, v, laid.tables, WIDE.granularity, True)
    assert torch.equal(ready.v_scale, plain.v_scale) and torch.equal(ready.v.float(), plain.v.float())
    laid, (q, k, v), _ = prepared(0)
    out, _ = attention_kernel(q * 3, k, torch.ones_like(v), laid.tables, laid.lists, True, 1)
    torch.testing.assert_close(out, torch.ones_like(out), atol=1e-6, rtol=0)
    examine_means(attention_kernel, quantize)


def examine_means(attention_kernel, quantize) -> None:
    """The same for keys and values without their means."""
    case = MEANS
    laid, (q, k, v), norm_rope = case.lay(), case.inputs(torch.bfloat16), case.norm_rope(torch.bfloat16)
    shift = torch.arange(1, case.heads * case.dim + 1).view(case.heads, case.dim).bfloat16() / 32
    k, v = torch.stack((k + shift, v - shift), 2).unbind(2)
    v[0, 5, 1, 3] = math.nan
    wanted = quantize(q, k.nan_to_num(), v.nan_to_num(), laid.tables, smooth_k=True, center_v=True)
    for norm in (None, norm_rope):
        ready = quantize(q, k, v, laid.tables, case.granularity, True, norm, smooth_k=True, center_v=True)
        keys = norm_rope.apply(q.double(), k.double())[1] if norm else k.double()
        torch.testing.assert_close(ready.k_mean, keys.mean(1).float(), atol=1e-5, rtol=1e-5)
        assert (ready.v_mean - wanted.v_mean).abs().max() < 1 and ready.v.float().isnan().sum() == 1
        if norm:
            check_norm_rope(ready, q, k, laid.layout, case.granularity, norm, ready.k_mean)
    v = v.nan_to_num()
    ready = quantize(q, k, v, laid.tables, case.granularity, True, smooth_k=True, center_v=True)
    torch.testing.assert_close(ready.v_mean, v.double().mean(1).float(), atol=1e-5, rtol=1e-5)
    keys, values = (x.float() - mean[:, None] for x, mean in ((k, ready.k_mean), (v, ready.v_mean)))
    check_prepared(ready, q, keys, values, laid.layout, case.granularity, True)
    out, lse = attention_kernel(q, k, v, laid.tables, laid.lists, True, smooth_k=True, center_v=True)
    true = truth(q, k, v, laid.layout, laid.tile_lists, False)
    seen = true.lse.isfinite()
    assert (out.transpose(1, 2)[~seen] == 0).all() and (lse - true.lse)[seen].abs().mean() < 0.05
    assert (out.double() - true.out).norm() / true.out.norm() < 0.03


@pytest.mark.filterwarnings("ignore")  # planted mistakes divide by zero, and overflow
@pytest.mark.parametrize(("module", "what", "change"), MUTANTS, ids=[mutant[1] for mutant in MUTANTS])
def test_planted_mistakes_are_caught(module, what, change, tmp_path):
    with (
        kernels_with(tmp_path, module, change) as copies,
        interpreted(*(copies[name] for name in INTERPRETED)),
        pytest.raises(AssertionError),
    ):
        examine(copies["dispatch"].attention_kernel, copies["quantize_qkv"].quantize)


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")
def test_without_a_mistake_all_checks_pass(tmp_path):
    with kernels_with(tmp_path) as copies, interpreted(*(copies[name] for name in INTERPRETED)):
        examine(copies["dispatch"].attention_kernel, copies["quantize_qkv"].quantize)


@pytest.mark.parametrize(("module", "what", "change"), MUTANTS, ids=[mutant[1] for mutant in MUTANTS])
def test_every_mistake_can_be_planted(module, what, change):
    planted(source_of(module).read_text(encoding="utf-8"), *change)
