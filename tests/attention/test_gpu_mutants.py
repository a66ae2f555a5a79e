"""Mistakes planted in the sm_90 kernels, one at a time: the checks of test_gpu_hopper.py must catch every one."""

import math
from functools import cache

import pytest
import torch

from .cases import Case
from .gpu import needs_hopper
from .mutant import kernels_with, planted, source_of
from .numerics import check, half_check, truth

pytest.importorskip("triton.experimental.gluon", reason="triton is not installed")
from fpsgen.attention.kernels.launch_config import Sm90Config

BOTH = {  # what is wrong: where, what is there, what is put there; in either kernel
    "reads the second key block twice": (
        "_produce",
        "gl.minimum(i + 2, info.num_blocks - 1)",
        "gl.minimum(i + 1, info.num_blocks - 1)",
    ),
    "loses the last of as many keys": ("_consume", "masked(qk, LENGTH)", "masked(qk, LENGTH - 1)"),
    "division by zero for empty lists": ("_consume", "gl.where(l_o == 0.0, 1.0, l_o)", "l_o"),
}
FP8 = BOTH | {
    "lets one padding key in": ("_consume", "masked(qk, length)", "masked(qk, length + 1)"),
    "loses a block's last key": ("_consume", "masked(qk, length)", "masked(qk, length - 1)"),
    "adds a key to as many": ("_consume", "masked(qk, LENGTH)", "masked(qk, LENGTH + 1)"),
    "K scale of the next block": (
        "_produce",
        "with_word(empty_record(2), 0, scale)",
        "with_word(empty_record(2), 0, next_scale)",
    ),
    "length of the next block": (
        "_produce",
        "with_word(with_word(empty_record(2), 0, scale), 1, length)",
        "with_word(with_word(empty_record(2), 0, scale), 1, next_length)",
    ),
    "K scales of the first head": ("_produce", "k_scale + bh * sizes.num_blocks", "k_scale"),
    "keys of the first head": ("_produce", "first_row + block * BLOCK", "block * BLOCK"),
    "values of the first block": ("_produce", "[bh * D, block * BLOCK]", "[bh * D, 0]"),
    "every consumer works for the first rows": ("_produce", "first_row + info.row + i * 64", "first_row + info.row"),
    "queries of the work tile before": ("_consume", "(iteration & 1) * schedule.consumers + ME", "ME"),
    "V scales of the work tile before": (
        "_consume",
        "schedule.v_scale.index(iteration & 1)",
        "schedule.v_scale.index(0)",
    ),
    "maximum is no whole number": ("_consume", "ceil(qk_max * scale)", "qk_max * scale"),
    "maximum of unscaled products": ("_consume", "ceil(qk_max * scale)", "ceil(qk_max)"),
    "output not rescaled": ("_consume", "acc * alpha_o + pv", "acc + pv"),
    "row sum not rescaled": ("_consume", "l_i * alpha_l", "l_i"),
    "the LSE's sum not rescaled": ("_consume", "l_parts * alpha_l", "l_parts"),
    "row sum in another unit than V": ("attend_fp8_sm90", "_E4M3_MAX", "_E4M3_ONE"),
    "the LSE's sum without 32 keys": ("attend_fp8_sm90", "key // 32 == column // 2", "key // 32 == column // 2 + 1"),
    "V scale forgotten": (
        "_consume",
        "acc * gl.expand_dims(inverse, 1) * gl.expand_dims(v_scale, 0)",
        "acc * gl.expand_dims(inverse, 1)",
    ),
    "LSE with P's 448 in it": (
        "_consume",
        "gl.where(m_o == float('-inf'), 0.0, m_o) - _SHIFT",
        "gl.where(m_o == float('-inf'), 0.0, m_o)",
    ),
}
STORE = {
    "last row of a tile not written": ("store_rows", "row < rows", "row < rows - 1"),
    "a row beyond the tile written": ("store_rows", "row < rows", "row < rows + 1"),
    "LSE in base 2": ("store_rows", "lse_base2 * _LN_2", "lse_base2"),
    "output of all heads in the first": (
        "store_rows",
        "((bh // heads).to(gl.int64) * tokens + token) * heads + bh % heads",
        "((bh // heads).to(gl.int64) * tokens + token) * heads",
    ),
    "LSE of another head": ("store_rows", "bh.to(gl.int64) * tokens", "(bh % heads).to(gl.int64) * tokens"),
}
SCHEDULER = {
    "drops the last key block": (
        "schedule_tiles",
        "gl.load(tables.list_count + list_number)",
        "gl.maximum(gl.load(tables.list_count + list_number) - 1, 0)",
    ),
    "the first key block twice": ("schedule_tiles", "gl.minimum(sizes.list_length - 1, 1)", "0"),
    "Q scale of the first head": ("schedule_tiles", "q_scale + bh * sizes.num_blocks + block", "q_scale + block"),
    "first K scale of the first head": (
        "schedule_tiles",
        "k_scale + bh * sizes.num_blocks + first",
        "k_scale + first",
    ),
    "V scales of the first head": ("schedule_tiles", "v_scale + bh * D + channels", "v_scale + channels"),
    "no softmax scale": (
        "schedule_tiles",
        "gl.load(q_scale + bh * sizes.num_blocks + block) * softmax_scale",
        "gl.load(q_scale + bh * sizes.num_blocks + block)",
    ),
    "lists of another group": ("schedule_tiles", "bh % sizes.list_groups", "bh // 2 % sizes.list_groups"),
    "rows of the first consumer": ("schedule_tiles", "row + i * 64", "row"),
    "rows of the block's first token": (
        "schedule_tiles",
        "gl.load(tables.block_start + block) + own_row % BLOCK",
        "gl.load(tables.block_start + block)",
    ),
}
SOFTMAX = {
    "P in the order of its columns": ("p_operand", "[0, 1, 3, 2, 4]", "[0, 1, 2, 3, 4]"),
    "two columns of P swapped": (
        "_E4M3",
        "'cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; '",
        "'cvt.rn.satfinite.e4m3x2.f32 low, $1, $2; '",
    ),
    "negative products compared as integers": ("_largest", "'@!p bra.uni done; '", "'bra.uni done; '"),
    "products of mixed signs compared as negative ones": (
        "_largest",
        "f'selp.b32 ${i}, m{i}, ${i}, p; '",
        "f'mov.b32 ${i}, m{i}; '",
    ),
    "half of a row's products compared": (
        "search",
        "f'{what}.s32 m0, m0, m2; {what}.s32 m1, m1, m3; '",
        "f'{what}.s32 m0, m0, m2; {what}.s32 m1, m1, m1; '",
    ),
    "two columns of products not compared": ("search", "range(6, 2 + 2 * count, 4)", "range(10, 2 + 2 * count, 4)"),
    "vanishing P explode": ("exp2_fma", "gl.maximum(x, -120.0) + _MAGIC", "x + _MAGIC"),
    "half of an exponential": ("exp2_fma", "0x3F800000", "0x3F000000"),
    "one key more for all blocks": (
        "masked",
        "column // 8 * 8 + column % 2 < length - column % 8 // 2 * 2",
        "column // 8 * 8 + column % 2 <= length - column % 8 // 2 * 2",
    ),
    "left for right": (
        "exp2_mixed",
        "beside(left, exp2(right), all_layout)",
        "beside(exp2(right), left, all_layout)",
    ),
}
SIXTEEN = BOTH | {
    "lets one padding key in": ("_consume", "masked(qk, word(record, 0))", "masked(qk, word(record, 0) + 1)"),
    "values of the next block": (
        "_produce",
        "[first_row + token, head * strides.v]",
        "[first_row + next_token, head * strides.v]",
    ),
    "keys of the first head": ("_produce", "[first_row + token, head * strides.k]", "[first_row + token, 0]"),
    "values by the queries' stride": (
        "_produce",
        "[first_row + token, head * strides.v]",
        "[first_row + token, head * strides.q]",
    ),
    "keys of the first batch": ("_produce", "[first_row + token, head * strides.k]", "[token, head * strides.k]"),
    "values of the next tile kept": ("_zero_tails", "row < length - first", "row < length - first + 1"),
    "row sum not rescaled": ("_consume", "l_i * alpha", "l_i"),
    "output not rescaled": ("_consume", "acc * gl.expand_dims(gl.convert_layout(alpha, o_rows), 1)", "acc"),
}
CENTER = {
    "V means of the work tile before": ("_consume", "schedule.v_mean.index(iteration & 1)", "schedule.v_mean.index(0)"),
    "V's mean in rows without a key": (
        "_consume",
        "gl.where(gl.expand_dims(l_o, 1) == 0.0, 0.0, gl.expand_dims(v_mean, 0))",
        "gl.expand_dims(v_mean, 0)",
    ),
}
CENTER_SCHEDULER = {
    "V means of the first head": ("schedule_tiles", "v_mean + bh * D + channels", "v_mean + channels"),
}
MUTANTS = [  # which examination, module, what, change
    (examined, module, *item)
    for examined, module, mistakes in (
        ("fp8", "attend_fp8_sm90", FP8),
        ("fp8", "sm90_parts", STORE),
        ("fp8", "tile_scheduler", SCHEDULER),
        ("fp8", "softmax", SOFTMAX),
        ("16 bit", "attend_16bit_sm90", SIXTEEN),
        ("center_v", "attend_fp8_sm90", CENTER),
        ("center_v", "tile_scheduler", CENTER_SCHEDULER),
    )
    for item in mistakes.items()
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


def examine(attention_kernel, what: str) -> None:
    """Raises AssertionError at the first check that fails. what: "fp8", "16 bit" or "center_v"."""
    fp8 = what != "16 bit"
    for index in (2, 5) if what == "center_v" else range(len(BATTERY)):
        case, config = BATTERY[index]
        inputs, true = prepared(index, fp8)
        q = inputs[0]
        laid, config = case.lay("cuda"), config if fp8 else Sm90Config(config.consumers, stages=2)
        pool = torch.full((3, *q.shape), math.nan, dtype=q.dtype, device="cuda")
        heights = torch.full((3, case.batch, case.heads, q.shape[1]), math.nan, device="cuda")
        options = {"config": config, "out": pool[1], "lse": heights[1], "center_v": what == "center_v"}
        attention_kernel(*inputs, laid.tables, laid.lists, fp8, case.granularity, **options)
        for guard in (pool[0], pool[2], heights[0], heights[2]):
            assert guard.isnan().all(), "written outside"
        if what == "center_v":  # V is quantized otherwise: near the truth, and exact where no key is seen
            assert (pool[1][~true.lse.isfinite().transpose(1, 2)] == 0).all()
            assert (pool[1].double() - true.exact).norm() / true.exact.norm() < 6e-2
        else:
            (check if fp8 else half_check)(pool[1], heights[1], true, case.name)
    if not fp8:  # NaN behind a tile's last value stays there
        case, _ = BATTERY[3]
        q, k, v = (x.clone() for x in prepared(3, False)[0])
        v[:, 129:] = math.nan
        laid = case.lay("cuda")
        out, _ = attention_kernel(q, k, v, laid.tables, laid.lists, False, config=Sm90Config(2, stages=2))
        assert out[:, :129].isfinite().all()


each_mutant = pytest.mark.parametrize(
    ("examined", "module", "what", "change"), MUTANTS, ids=[f"{module}: {what}" for _, module, what, _ in MUTANTS]
)


@each_mutant
def test_every_mistake_can_be_planted(examined, module, what, change):
    planted(source_of(module).read_text(encoding="utf-8"), *change)


@each_mutant
@needs_hopper
def test_planted_mistakes_are_caught(examined, module, what, change, tmp_path):
    with kernels_with(tmp_path, module, change) as copies, pytest.raises(AssertionError):
        examine(copies["dispatch"].attention_kernel, examined)


@pytest.mark.parametrize("examined", ["fp8", "16 bit", "center_v"])
@needs_hopper
def test_without_a_mistake_all_checks_pass(examined, tmp_path):
    with kernels_with(tmp_path) as copies:
        examine(copies["dispatch"].attention_kernel, examined)
