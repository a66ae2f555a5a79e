"""The checker must pass what is right and catch every planted mistake, on a hard case: many keys, small mistakes."""

import dataclasses

import pytest
import torch

from fpsgen.attention.reference import attention_reference
from fpsgen.attention.tiles import TileLists

from .cases import Case
from .numerics import Scores, faults, measure, truth

CASE = Case("mutants", (8, 12, 16), (2, 6, 5), heads=2)  # 32 tiles of 60 or 12 tokens, 1,536 keys a row


@pytest.fixture(scope="module")
def problem():
    laid = CASE.lay()
    q, k, v = CASE.inputs()
    tiles = [0, 5, 31]
    return (q, k, v), laid, truth(q, k, v, laid.layout, laid.tile_lists, True, tiles=tiles)


def run(inputs, laid, lists=None):
    return attention_reference(*inputs, laid.layout, lists or laid.tile_lists, True)


def dropped_tile(inputs, laid):
    lists = laid.tile_lists
    return run(inputs, laid, TileLists(lists.indices[..., :-1].contiguous(), lists.counts - 1))


def doubled_tile(inputs, laid):
    indices = torch.cat([laid.tile_lists.indices, laid.tile_lists.indices[..., 4:5]], -1)
    return run(inputs, laid, TileLists(indices, laid.tile_lists.counts + 1))


def value_scale(inputs, laid):
    q, k, v = inputs
    return run((q, k, v * 1.05), laid)


def score_scale(inputs, laid):
    q, k, v = inputs
    return run((q * 1.05, k, v), laid)


def key_scale_of_one_block(inputs, laid):
    q, k, v = inputs
    k = k.clone()
    k[:, :60] *= 1.3
    return run((q, k, v), laid)


def tail_unmasked(inputs, laid):
    """Rows of padding enter as keys of value 0 and score 0, as a kernel that forgets its mask would have it."""
    out, lse = run(inputs, laid)
    surplus = laid.layout.num_blocks * laid.layout.block - laid.layout.tiling.num_tokens
    grown = torch.logaddexp(lse, torch.log(torch.tensor(float(surplus))))
    return out * (lse - grown).exp().transpose(1, 2)[..., None], grown


def last_row_zero(inputs, laid):
    out, lse = run(inputs, laid)
    out[:, -1, -1] = 0
    return out, lse


def heads_swapped(inputs, laid):
    out, lse = run(inputs, laid)
    return out.flip(2), lse.flip(1)


def only_values_swapped(inputs, laid):
    q, k, v = inputs
    return run((q, k, v.flip(2)), laid)


def natural_for_base_two(inputs, laid):
    out, lse = run(inputs, laid)
    return out, lse * 1.4427


def unwritten_row(inputs, laid):
    out, lse = run(inputs, laid)
    out[0, 0, 0, 3] = float("nan")
    return out, lse


MISTAKES = [
    dropped_tile,
    doubled_tile,
    value_scale,
    score_scale,
    key_scale_of_one_block,
    tail_unmasked,
    last_row_zero,
    heads_swapped,
    only_values_swapped,
    natural_for_base_two,
    unwritten_row,
]


def test_the_right_result_passes(problem):
    inputs, laid, true = problem
    figures = measure(*run(inputs, laid), true)
    assert faults(figures) == [], figures
    assert 0.005 < figures["noise"] < 0.05  # P's cast is visible, so the case means something


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.__name__ for m in MISTAKES])
def test_planted_mistakes_are_caught(problem, mistake):
    inputs, laid, true = problem
    assert faults(measure(*mistake(inputs, laid), true))


def test_another_rounding_of_p_is_caught(problem):
    """P left unrounded is closer to exact attention, but it is not what a kernel is meant to compute."""
    inputs, laid, true = problem
    q, k, v = Scores(*inputs, laid.layout, 1, False).inputs
    out, lse = attention_reference(q, k, v, laid.layout, laid.tile_lists, False)  # P not rounded laid all
    figures = measure(out, lse, true)
    assert "relative" in " ".join(faults(figures))


def test_empty_rows_must_be_exact(problem):
    case = dataclasses.replace(CASE, lists="empty")
    laid = case.lay()
    inputs = case.inputs()
    true = truth(*inputs, laid.layout, laid.tile_lists, True, tiles=[0, 1])
    out, lse = run(inputs, laid)
    assert faults(measure(out, lse, true)) == []
    out[:, 0] = 1e-20
    assert "empty_rows_exact" in faults(measure(out, lse, true))
