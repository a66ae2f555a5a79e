"""Mistakes planted in the Hopper kernels, one at a time: the checks of test_gpu_hopper.py must catch every one."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from .cases import Case
from .gpu import needs_hopper
from .mutant import graft, load
from .numerics import check, half_check, truth

pytest.importorskip("triton.experimental.gluon", reason="triton is not installed")
from fpsgen.attention.kernels import (
    attend_16bit_sm90,
    attend_fp8_sm90,
    attention_kernel,
    softmax,
    tile_scheduler,
)
from fpsgen.attention.kernels.launch_config import Sm90Config

BOTH = {  # what is wrong: (as it is, as planted), in either kernel
    "walks the second key block twice": ("gl.minimum(i + 2, count - 1)", "gl.minimum(i + 1, count - 1)"),
    "lets one padding key in": ("score = masked(score, length)", "score = masked(score, length + 1)"),
    "loses the last of as many keys": ("score = masked(score, LENGTH)", "score = masked(score, LENGTH - 1)"),
    "division by zero for empty lists": ("gl.where(sums == 0.0, 1.0, sums)", "sums"),
    "last row of a tile not written": ("result, mask=lanes < left", "result, mask=lanes < left - 1"),
    "LSE in base 2": ("height * _LN_2", "height"),
}
FP8 = BOTH | {
    "K scale of the next block": ("put(put(words, 0, scale)", "put(put(words, 0, scale_ahead)"),
    "length of the next block": ("1, length))", "1, length_ahead))"),
    "K scales of the first head": ("scales = k_scale + bh * num_blocks", "scales = k_scale"),
    "keys of the first head": ("_load(k, [first + block * BLOCK, 0]", "_load(k, [block * BLOCK, 0]"),
    "values of the first block": ("[bh * D, block * BLOCK]", "[bh * D, 0]"),
    "every consumer works for the first rows": ("[first + row + i * 64, 0]", "[first + row, 0]"),
    "queries of the job before": ("query = q_s.index((turn & 1) * CONSUMERS + ME)", "query = q_s.index(ME)"),
    "V scales of the job before": ("v_scale_s.index(turn & 1).load", "v_scale_s.index(0).load"),
    "loses a block's last key": ("score = masked(score, length)", "score = masked(score, length - 1)"),
    "adds a key to as many": ("score = masked(score, LENGTH)", "score = masked(score, LENGTH + 1)"),
    "maximum is no whole number": ("ceil(row_max(score, top) * scale)", "row_max(score, top) * scale"),
    "maximum of unscaled scores": ("ceil(row_max(score, top) * scale)", "ceil(row_max(score, top))"),
    "output not rescaled": ("acc = acc * decay_out + part if", "acc = acc + part if"),
    "row sum not rescaled": ("total = total * decay_total", "total = total"),
    "the LSE's sum not rescaled": ("exact = exact * decay_total", "exact = exact"),
    "row sum in another unit than V": ("column % 2 == 0, _E4M3_TOP", "column % 2 == 0, _E4M3_ONE"),
    "the LSE's sum without 32 keys": ("key // 32 == column // 2", "key // 32 == column // 2 + 1"),
    "V scale forgotten": (" * gl.expand_dims(scales_v, 0)", ""),
    "output of all heads in the first": ("* heads + bh % heads", "* heads"),
    "a row beyond the tile written": ("result, mask=lanes < left", "result, mask=lanes < left + 1"),
    "LSE with P's 448 in it": ("0.0, height) - _SHIFT", "0.0, height)"),
    "LSE of another head": ("lse + bh.to(gl.int64)", "lse + (bh % heads).to(gl.int64)"),
}
JOBS = {
    "drops the last key block": ("gl.load(list_count + line)", "gl.maximum(gl.load(list_count + line) - 1, 0)"),
    "the first key block twice": ("gl.minimum(longest - 1, 1)", "0"),
    "Q scale of the first head": ("q_scale + bh * num_blocks + own", "q_scale + own"),
    "first K scale of the first head": ("k_scale + bh * num_blocks + first", "k_scale + first"),
    "V scales of the first head": ("v_scale + bh * D + channels", "v_scale + channels"),
    "no softmax scale": ("own) * softmax_scale", "own)"),
    "lists of another group": ("(bh % num_lists)", "(bh // 2 % num_lists)"),
    "rows of the first consumer": ("at = row + i * 64", "at = row"),
    "rows of the block's first token": ("block_start + own) + at % BLOCK", "block_start + own)"),
}
PARTS = {
    "P in the order of its columns": ("[0, 1, 3, 2, 4]", "[0, 1, 2, 3, 4]"),
    "words of masked columns packed by merging": (
        "_MERGES and (LENGTH == 0 or columns - 16 < LENGTH)",
        "_MERGES",
    ),
    "two columns of P swapped": ("low, $2, $1", "low, $1, $2"),
    "negative scores compared as integers": ("@!p bra.uni done", "bra.uni done"),
    "scores of mixed signs compared as negative ones": ("selp.b32 ${i}, m{i}, ${i}, p", "mov.b32 ${i}, m{i}"),
    "half of a row's scores compared": ("{what}.s32 m1, m1, m3", "{what}.s32 m1, m1, m1"),
    "two columns of scores not compared": ("range(6, 2 + 2 * count, 4)", "range(10, 2 + 2 * count, 4)"),
    "vanishing weights explode": ("gl.maximum(x, -120.0) + _MAGIC", "x + _MAGIC"),
    "half of an exponential": ("+ 0x3F800000", "+ 0x3F000000"),
    "one key more for all blocks": ("column % 2 < length", "column % 2 <= length"),
    "left for right": ("return beside(left, exp2(right), at_all)", "return beside(exp2(right), left, at_all)"),
}
SIXTEEN = BOTH | {
    "values of the next block": ("_load(v, [line + start,", "_load(v, [line + start_ahead,"),
    "keys of the first head": ("start, head * step_k]", "start, 0]"),
    "values by the queries' stride": ("head * step_v]", "head * step_q]"),
    "keys of the first batch": ("line = (bh // heads) * tokens", "line = 0"),
    "values of the next tile kept": ("rows < length - first,", "rows < length - first + 1,"),
    "row sum not rescaled": ("total = total * decay", "total = total"),
    "output not rescaled": ("acc = acc * gl.expand_dims(gl.convert_layout(decay, out_rows), 1)", "acc = acc * 1.0"),
}
MUTANTS = [
    (main, module, *item)
    for main, module, items in (
        (attend_fp8_sm90, attend_fp8_sm90, FP8),
        (attend_fp8_sm90, tile_scheduler, JOBS),
        (attend_fp8_sm90, softmax, PARTS),
        (attend_16bit_sm90, attend_16bit_sm90, SIXTEEN),
    )
    for item in items.items()
]
TWO, THREE = Sm90Config(2, poly=8), Sm90Config(3, stages=2, pingpong=True)
BATTERY = [
    (Case("ragged", (9, 11, 13), (4, 5, 6), (3, 1, 3), batch=2, heads=3, dim=128, granularity=3), TWO),
    (Case("lists", (6, 12, 18), (3, 6, 9), "per_batch_head", batch=2, heads=2, dim=128), TWO),
    (Case("empty", (6, 12, 18), (3, 6, 9), "empty", heads=2, dim=128), TWO),
    (Case("tail", (1, 1, 257), (1, 1, 129), (1, 1, 1), dim=128, heads=3), TWO),
    (Case("even", (21, 18, 8), (21, 9, 2), (1, 1, 3), heads=2, dim=128), THREE),
    (Case("jobs", (6, 16, 16), (6, 8, 8), (1, 1, 1), batch=2, heads=24, dim=128), THREE),  # more than processors
]


@cache
def prepared(index: int, fp8: bool):
    """Inputs, in a mixture of strides, and what is true of them."""
    case, _ = BATTERY[index]
    q, k, v = case.inputs(torch.float32 if fp8 else torch.bfloat16, "cuda")
    if case.name in ("tail", "even"):  # rows with no score above zero
        k = k.abs()
        q[:, ::3] = -q[:, ::3].abs()
    k, v = torch.stack((k, v, v), 2).unbind(2)[:2]
    v = v * (1 + torch.arange(case.heads, device="cuda")[:, None]).to(v.dtype)  # as scales of other heads show
    v = torch.stack((v, v), 3).unbind(3)[0]
    laid = case.lay("cuda")
    return (q, k, v), truth(q, k, v, laid.layout, laid.tile_lists, fp8, case.granularity)


def examine(fp8: bool) -> None:
    """Raises AssertionError at the first check that fails."""
    for index, (case, config) in enumerate(BATTERY):
        inputs, true = prepared(index, fp8)
        q = inputs[0]
        laid, config = case.lay("cuda"), config if fp8 else Sm90Config(config.consumers, stages=2)
        pool = torch.full((3, *q.shape), math.nan, dtype=q.dtype, device="cuda")
        heights = torch.full((3, case.batch, case.heads, q.shape[1]), math.nan, device="cuda")
        attention_kernel(
            *inputs, laid.tables, laid.lists, fp8, case.granularity, config=config, out=pool[1], lse=heights[1]
        )
        for guard in (pool[0], pool[2], heights[0], heights[2]):
            assert guard.isnan().all(), "written outside"
        (check if fp8 else half_check)(pool[1], heights[1], true, case.name)
    if not fp8:  # NaN behind a tile's last value stays there
        case, _ = BATTERY[3]
        q, k, v = (x.clone() for x in prepared(3, False)[0])
        v[:, 129:] = math.nan
        laid = case.lay("cuda")
        out, _ = attention_kernel(q, k, v, laid.tables, laid.lists, False, config=Sm90Config(2, stages=2))
        assert out[:, :129].isfinite().all()


each_mutant = pytest.mark.parametrize(
    ("main", "module", "what", "change"), MUTANTS, ids=[f"{x[1].__name__.split('.')[-1]}: {x[2]}" for x in MUTANTS]
)


@each_mutant
def test_every_mistake_can_be_planted(main, module, what, change):
    assert change[0] in Path(module.__file__).read_text(encoding="utf-8")


@each_mutant
@needs_hopper
def test_planted_mistakes_are_caught(main, module, what, change, tmp_path, monkeypatch):
    mutant = load(module, tmp_path, change)
    copy = mutant if main is module else graft(main, mutant, tmp_path)
    name = "launch_fp8_sm90" if main is attend_fp8_sm90 else "launch_16bit_sm90"
    monkeypatch.setattr(main, name, getattr(copy, name))
    with pytest.raises(AssertionError):
        examine(main is attend_fp8_sm90)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "16 bit"])
@needs_hopper
def test_without_a_mistake_all_checks_pass(fp8):
    examine(fp8)
