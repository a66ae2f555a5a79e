"""Mistakes planted in the kernels, one at a time: the suite's own checks must catch every one, and pass without.

The checks are those of test_kernels.py on a handful of cases, in Triton's interpreter.
"""

import math
from functools import cache

import pytest
import torch

from .cases import BY_NAME, Case
from .interpreter import interpreted
from .mutant import load, taken
from .numerics import check, check_norm_rope, check_prepared, truth

pytest.importorskip("triton", reason="triton is not installed")
from fpsgen.attention.kernels import attend_portable, dispatch, norm_rope_quantize, quantize_qkv

FORWARD = {  # what is wrong: (as it is, as planted)
    "walks the first key block again and again": ("tl.load(keys + i)", "tl.load(keys)"),
    "drops the last key block": ("for i in range(count):", "for i in range(count - 1):"),
    "lets one padding key in": ("lanes_k[None, :] < length, score", "lanes_k[None, :] <= length, score"),
    "loses a block's last key": ("lanes_k[None, :] < length, score", "lanes_k[None, :] < length - 1, score"),
    "K scale of another block": ("tl.load(scales + block_k)", "tl.load(scales + block_q)"),
    "Q scale of another head": ("q_scale + bh.to(tl.int64) * num_blocks + block_q", "q_scale + block_q"),
    "V scale of another head": ("v_scale + bh.to(tl.int64) * D + channels", "v_scale + channels"),
    "V scale forgotten": ("result = result * tl.load(v_scale", "result + tl.load(v_scale"),
    "no softmax scale": ("block_q) * softmax_scale", "block_q)"),
    "values of another block": ("v.load([bh * D, block_k * BLOCK])", "v.load([bh * D, block_q * BLOCK])"),
    "output not rescaled": ("acc = acc * decay[:, None]", "acc = acc * 1.0"),
    "row sum not rescaled": ("total = total * decay + tl.sum(weight, 1)", "total = total + tl.sum(weight, 1)"),
    "row sum of P before its cast": ("            if ROUNDED_SUM:", "            if not ROUNDED_SUM:"),
    "maximum is no whole number": ("peak = tl.ceil(peak)", "peak = peak + 0.0"),
    "lists of another group": ("(bh % num_groups)", "(bh // heads % num_groups)"),
    "every part works for the first rows": ("block_q) * BLOCK + part, 0]", "block_q) * BLOCK, 0]"),
    "last row of a tile not written": ("keep = lanes_q < rows_left", "keep = lanes_q < rows_left - 1"),
    "a row beyond the tile written": ("keep = lanes_q < rows_left", "keep = lanes_q < rows_left + 1"),
    "division by zero for empty lists": ("tl.where(total == 0.0, 1.0, total)", "total"),
    "output of all heads in the first": ("lanes_q) * heads + head)", "lanes_q) * heads)"),
    "LSE in base 2": ("height * _LN_2", "height"),
    "LSE with P's 448 in it": ("height = height - _P_SHIFT", "height = height + 0.0"),
    "LSE of another head": ("lse + bh.to(tl.int64) * tokens", "lse + head * tokens"),
    "16 bit: keys of the first batch": ("base_k = k + batch * stride_kb", "base_k = k"),
    "16 bit: keys by the queries' stride": ("rows[:, None] * stride_kl", "rows[:, None] * stride_ql"),
    "16 bit: row sum not rescaled": (
        "- base[:, None])\n            total = total * decay",
        "- base[:, None])\n            total = total",
    ),
}
PREPARE = {
    "neighbours in the padding": ("mask=rows[:, None] < length", "mask=rows[:, None] < BLOCK"),
    "heads and batches exchanged": ("(bh % heads).to(tl.int64)", "(bh // heads).to(tl.int64)"),
    "every block of a group into the first": (
        "* num_blocks + block\n        tl.store(out",
        "* num_blocks + first\n        tl.store(out",
    ),
    "V's last block not measured": ("block = program // (batches * heads)", "block = program // (batches * heads + 1)"),
    "V's largest value, not magnitude": ("tl.max(tl.abs(values), 0), channels", "tl.max(values, 0), channels"),
    "K scales into Q's": ("*(k, k_out, k_scale, part", "*(k, k_out, q_scale, part"),
    "keys by Q's head stride": (
        "part, bh, block_start, block_len, stride_kb",
        "part, bh, block_start, block_len, stride_qb",
    ),
    "V's keys not permuted": ("BLOCK // 16, 2, 4, 2), 0, 1, 3, 2, 4)", "BLOCK // 16, 2, 4, 2), 0, 1, 2, 3, 4)"),
    "V scaled by magnitudes": ("inverse[None, :]).to(tl.float8e4nv)", "scale[None, :]).to(tl.float8e4nv)"),
    "with norm: the last blocks not cast": (
        "(batch * blocks + distance) * units",
        "(batch * blocks + distance - 1) * units",
    ),
    "with norm: as many programs as parts of one head": ("config.cast_heads) + heads", "config.cast_heads) + 1"),
}
NORMED = {
    "scales of half the range": ("TOP = tl.constexpr(1.0 / 448.0)", "TOP = tl.constexpr(1.0 / 224.0)"),
    "every part measures the first rows": ("rows = part * ROWS + tl.arange", "rows = tl.arange"),
    "norm without its eps": ("(heads * D) + eps)", "(heads * D))"),
    "norm of one head": ("tl.sum(squares, 1) / (heads * D)", "tl.sum(squares, 1) / D"),
    "norm leaves the last head out": ("tl.range(heads, num_stages=1)", "tl.range(heads - 1, num_stages=1)"),
    "norm of the first head for the second": ("two = _load_pairs(x + stride_h, at", "two = _load_pairs(x, at"),
    "norm of the second head for the third": ("_load_pairs(x + (head + 2)", "_load_pairs(x + (head + 1)"),
    "norm of zeros for the last head": ("head + 2 < heads, length", "head + 3 < heads, length"),
    "norm forgets odd channels": ("squares += even * even + odd * odd", "squares += even * even"),
    "norm weights of the first head": (
        'gains = _load_pairs(weight, head * (D // 2) + pair, pair >= 0, "")\n        gain',
        'gains = _load_pairs(weight, pair, pair >= 0, "")\n        gain',
    ),
    "largest magnitude before the norm": ("peaks *= norm[:, None]", "peaks *= 1.0"),
    "largest magnitude of even channels": (
        "tl.maximum(tl.abs(even * cos - odd * sin), tl.abs(even * sin + odd * cos))",
        "tl.abs(even * cos - odd * sin)",
    ),
    "largest magnitude of the next head": ("lane[None, :] == head", "lane[None, :] == head + 1"),
    "largest magnitude of the last head alone": ("[:, None], peaks)", "[:, None], 0.0)"),
    "scale of one head for all": ("tl.load(amax + first * num_blocks,", "tl.load(amax,"),
    "scale of the head before": ("amax + tl.minimum(head + 1, last - 1)", "amax + tl.minimum(head, last - 1)"),
    "scale of every block its own": ("amax += slot + group", "amax += slot + block"),
    "scale of the first block": ("slot += block\n", "slot += 0\n"),
    "scale not stored": ("scale, mask=part == 0", "scale, mask=part == -1"),
    "turned the other way": ("tl.join((even * cos - odd * sin)", "tl.join((even * cos + odd * sin)"),
    "turned by the next token's angle": ("table + token[:, None] * D", "table + (token[:, None] ^ 1) * D"),
    "turned half as often": ("(even * sin + odd * cos) * inverse", "(even * sin + odd) * inverse"),
    "pairs in the wrong order": ("odd = (words >> kind.primitive_bitwidth)", "odd = (words >> 0)"),
    "bf16 pairs in the wrong order": ("(words & -65536).to", "(words << 16).to"),
    "keys taken for queries": ("which = unit & 1", "which = (unit & 1) * 0"),
    "the queries' weights for keys": ("stride_kb, weight_k", "stride_kb, weight_q"),
    "largest keys among the queries'": ("weight_k, k_amax", "weight_k, q_amax"),
    "keys by Q's row stride": ("tl.cast(stride_kl", "tl.cast(stride_ql"),
    "norms of the first batch for all": ("norms += line * tokens", "norms += which * batches * tokens"),
    "norms of queries for keys": ("norms += line * tokens", "norms += batch * tokens"),
    "every cast the first rows": ("part = unit // 2 // shares", "part = 0"),
    "casts the first heads alone": ("unit // 2 % shares * CAST_HEADS", "unit // 2 % shares * 0"),
    "casts a head too few": ("first + CAST_HEADS, heads)", "first + CAST_HEADS, heads - 1)"),
    "measures the last block of a batch for all": ("block = place % num_blocks", "block = num_blocks - 1"),
    "the first batch for all": ("batch = (place // num_blocks)", "batch = (place // num_blocks * 0)"),
    "with norm: V of the first head": ("head.to(tl.int64) * stride_vh", "head.to(tl.int64) * 0"),
    "with norm: V's largest value, not magnitude": ("tl.maximum(peak, tl.abs(values", "tl.maximum(peak, (values"),
    "with norm: V's first rows": ("for first in range(rows, BLOCK, rows)", "for first in range(rows, rows, rows)"),
}
MUTANTS = [
    (module, *item)
    for module, items in ((attend_portable, FORWARD), (quantize_qkv, PREPARE), (norm_rope_quantize, NORMED))
    for item in items.items()
]
BATTERY = [
    (BY_NAME["shared_scales"], torch.float32),
    (Case("sixteen", (5, 4, 6), (2, 4, 4), (3, 1, 1), batch=2, heads=2), torch.bfloat16),
    (Case("many", (2, 5, 6), (2, 4, 4), "per_head", batch=2, heads=2, granularity=2), torch.float32),
    (BY_NAME["empty_rows"], torch.float32),
    (Case("halves", (4, 8, 4), (4, 8, 4), dim=128), torch.float32),
]
WIDE = Case("wide", (2, 5, 12), (2, 5, 4), batch=2, heads=7, granularity=2)  # of more heads than a program casts


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
        attention_kernel(q, k, v, laid.tables, laid.lists, fp8, case.granularity, out=pool[1], lse=heights[1])
        for guard in (pool[0], pool[2], heights[0], heights[2]):
            assert guard.isnan().all(), "written outside"
        if fp8:
            norm_rope = case.norm_rope()
            ready = quantize(q, k, v, laid.tables, case.granularity, True, norm_rope)
            check_norm_rope(ready, q, k, laid.layout, case.granularity, norm_rope)
            check(pool[1], heights[1], true, case.name)
            check_prepared(
                quantize(q, k, v, laid.tables, case.granularity, permuted=True),
                q,
                k,
                v,
                laid.layout,
                case.granularity,
                True,
            )
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


@pytest.mark.filterwarnings("ignore")  # planted mistakes divide by zero, and overflow
@pytest.mark.parametrize(("module", "what", "change"), MUTANTS, ids=[mutant[1] for mutant in MUTANTS])
def test_planted_mistakes_are_caught(module, what, change, tmp_path, monkeypatch):
    mutant = load(module, tmp_path, change)
    main = mutant if module is attend_portable else attend_portable
    own = mutant if module is quantize_qkv else quantize_qkv
    with interpreted(main, own, norm_rope_quantize, mutant), monkeypatch.context() as patch:
        for name, value in taken(own, mutant).items() if module is norm_rope_quantize else ():
            patch.setattr(own, name, value)
        patch.setattr(dispatch, "quantize_into", own.quantize_into)
        patch.setattr(dispatch, "launch_portable", main.launch_portable)
        with pytest.raises(AssertionError):
            examine(dispatch.attention_kernel, own.quantize)


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")
def test_without_a_mistake_all_checks_pass():
    with interpreted(attend_portable, quantize_qkv, norm_rope_quantize):
        examine(dispatch.attention_kernel, quantize_qkv.quantize)
