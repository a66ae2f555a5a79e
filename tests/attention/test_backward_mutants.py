"""Mistakes planted in the backward kernels: the checks of gradients must catch every one, in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fpsgen.attention.kernels import (
    backward_config,
    backward_lists,
    backward_portable,
    backward_prepare,
)

from .cases import Case
from .gradients import check, of_case
from .interpreter import interpreted, kernel_modules
from .mutant import load, taken

KERNELS = {
    "wrong sign of delta": ("(dp - delta_i[:, None])", "(dp + delta_i[:, None])"),
    "wrong sign of delta for keys": ("(dp - delta_i[None, :])", "(dp + delta_i[None, :])"),
    "softmax scale missing in dQ": ("(result * softmax_scale)", "(result * 1.0)"),
    "softmax scale missing in dK": ("(acc_k * softmax_scale)", "(acc_k * 1.0)"),
    "dK scaled twice": ("acc_k = tl.dot(ds.to", "ds *= softmax_scale\n        acc_k = tl.dot(ds.to"),
    "natural exponential": ("LOG2_E: tl.constexpr = 1.4426950408889634", "LOG2_E: tl.constexpr = 1.0"),
    "keys' scale missing in scores": ("scale = factor * scale_k", "scale = factor"),
    "keys' scale missing in dS": ("base = lse_i - tl.log2(scale_k)", "base = lse_i"),
    "queries' scale missing in dP": ("dp *= scale_q", "dp *= 1.0"),
    "queries' scale missing in delta": ("delta_i *= scale_q", "delta_i *= 1.0"),
    "padded keys not masked": ("if MASKED:", "if False:"),
    "the last key block of a list forgotten": ("range(count * STEPS)", "range((count - 1) * STEPS)"),
    "half of every key block": (
        "offset = i % STEPS * STEP\n        row = batch * tokens + tl.load(block_start + block_k)",
        "offset = 0\n        row = batch * tokens + tl.load(block_start + block_k)",
    ),
    "half of every query block": (
        "offset = i % STEPS * STEP\n        row = batch * tokens + tl.load(block_start + block_q)",
        "offset = 0\n        row = batch * tokens + tl.load(block_start + block_q)",
    ),
    "first batch for all": (
        "row = batch * tokens + tl.load(block_start + block_k)",
        "row = tl.load(block_start + block_k)",
    ),
    "first head for all": ("column = head * D", "column = head * 0"),
    "first group's lists for all": ("(bh % num_groups).to(tl.int64) * num_tiles", "(bh % 1).to(tl.int64) * num_tiles"),
    "first group's transposed lists for all": (
        "(bh % num_groups).to(tl.int64) * num_blocks",
        "(bh % 1).to(tl.int64) * num_blocks",
    ),
    "row sums of dS not taken out": ("acc - ds_sum[:, None]", "acc - 0.0 * ds_sum[:, None]"),
    "row sums of dS added": ("acc - ds_sum[:, None]", "acc + ds_sum[:, None]"),
    "row sums in units of the quantized keys": ("row_sum /= scale_k", "row_sum /= 1.0"),
    "dV from dS": ("acc_v = tl.dot(p.to", "acc_v = tl.dot((p * dp).to"),
}
PREPARE = {
    "delta of the gradient alone": ("tl.sum(o * do, 1)", "tl.sum(do * do, 1)"),
    "LSE in the wrong base": ("lse_i * _LOG2_E", "lse_i"),
    "rows of padding not neutral": ("mask=real, other=float('inf')", "mask=real, other=-1.0"),
    "values not quantized": ("(1.0 / scale)).to(tl.float8e4nv)", "(1.0 / scale))"),
    "values without their scale": ("(values.to(tl.float32) * scale)", "(values.to(tl.float32) * 1.0)"),
    "mean of the first token's keys": ("k.mean(1, dtype=torch.float32)", "k[:, 0].float()"),
}
LISTS = {
    "a query block forgotten": ("rank[:, :, -1].contiguous()", "(rank[:, :, -1] - 1).contiguous()"),
    "not transposed": (
        "seen[:, :, :blocks].transpose(1, 2)[:, :, block_tile.long()]",
        "seen[:, block_tile.long(), :blocks]",
    ),
    "the first query tile for all": ("[:, :, block_tile.long()]", "[:, :, block_tile.long() * 0]"),
    "dropped entries kept": ("torch.where(valid, list_index.long(), blocks)", "list_index.long().clamp(min=0)"),
}
MUTANTS = [
    (module, what, change)
    for module, items in ((backward_portable, KERNELS), (backward_prepare, PREPARE), (backward_lists, LISTS))
    for what, change in items.items()
]
GRID, TILE = (3, 5, 4), (2, 3, 4)  # four ragged tiles
BATTERY = [
    (Case("biased", GRID, TILE, (1, 1, 1), batch=2, heads=2), True, 8.0),
    (Case("unsorted", GRID, TILE, "unsorted", granularity=2), False, 8.0),
    (Case("every head its own", GRID, TILE, "per_batch_head", batch=2, heads=2), True, 0.0),
    (Case("without keys", GRID, TILE, "empty"), False, 0.0),
    (Case("two blocks", (4, 6, 8), (4, 6, 6)), True, 0.0),
]


def examine(main) -> None:
    """Raises AssertionError at the first check that fails."""
    one = backward_config.PassConfig(64, 32, 4, 2)
    for case, fp8, bias in BATTERY:
        laid = case.lay()
        given, true = of_case(case, laid, torch.bfloat16, fp8, bias)
        config = backward_config.BackwardConfig(one, one)
        got = main.attention_backward(*given, laid.tables, laid.lists, fp8, case.granularity, config)
        check(got, true, 5e-3, 3e-2)


def test_without_a_mistake_all_checks_pass():
    with interpreted(*kernel_modules()):
        examine(backward_portable)


@pytest.mark.filterwarnings("ignore")  # planted mistakes divide by zero, and overflow
@pytest.mark.parametrize(("module", "what", "change"), MUTANTS, ids=[mutant[1] for mutant in MUTANTS])
def test_planted_mistakes_are_caught(module, what, change, tmp_path, monkeypatch):
    mutant = load(module, tmp_path, change)
    main = mutant if module is backward_portable else backward_portable
    with interpreted(*kernel_modules(), mutant), monkeypatch.context() as patch:
        for name, value in taken(main, mutant).items() if module is not backward_portable else ():
            patch.setattr(main, name, value)
        with pytest.raises((AssertionError, IndexError, RuntimeError)):
            examine(main)
