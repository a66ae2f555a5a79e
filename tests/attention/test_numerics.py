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
    at = CASE.lay()
    q, k, v = CASE.inputs()
    tiles = [0, 5, 31]
    return (q, k, v), at, truth(q, k, v, at.layout, at.lists, True, tiles=tiles)


def run(inputs, at, lists=None):
    return attention_reference(*inputs, at.layout, lists or at.lists, True)


def dropped_tile(inputs, at):
    lists = at.lists
    return run(inputs, at, TileLists(lists.indices[..., :-1].contiguous(), lists.counts - 1))


def doubled_tile(inputs, at):
    at_twice = torch.cat([at.lists.indices, at.lists.indices[..., 4:5]], -1)
    return run(inputs, at, TileLists(at_twice, at.lists.counts + 1))


def value_scale(inputs, at):
    q, k, v = inputs
    return run((q, k, v * 1.05), at)


def score_scale(inputs, at):
    q, k, v = inputs
    return run((q * 1.05, k, v), at)


def key_scale_of_one_block(inputs, at):
    q, k, v = inputs
    k = k.clone()
    k[:, :60] *= 1.3
    return run((q, k, v), at)


def tail_unmasked(inputs, at):
    """Rows of padding enter as keys of value 0 and score 0, as a kernel that forgets its mask would have it."""
    out, lse = run(inputs, at)
    surplus = at.layout.num_blocks * at.layout.block - at.layout.tiling.num_tokens
    grown = torch.logaddexp(lse, torch.log(torch.tensor(float(surplus))))
    return out * (lse - grown).exp().transpose(1, 2)[..., None], grown


def last_row_zero(inputs, at):
    out, lse = run(inputs, at)
    out[:, -1, -1] = 0
    return out, lse


def heads_swapped(inputs, at):
    out, lse = run(inputs, at)
    return out.flip(2), lse.flip(1)


def only_values_swapped(inputs, at):
    q, k, v = inputs
    return run((q, k, v.flip(2)), at)


def natural_for_base_two(inputs, at):
    out, lse = run(inputs, at)
    return out, lse * 1.4427


def unwritten_row(inputs, at):
    out, lse = run(inputs, at)
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
    inputs, at, true = problem
    figures = measure(*run(inputs, at), true)
    assert faults(figures) == [], figures
    assert 0.005 < figures["noise"] < 0.05  # P's cast is visible, so the case means something


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.__name__ for m in MISTAKES])
def test_planted_mistakes_are_caught(problem, mistake):
    inputs, at, true = problem
    assert faults(measure(*mistake(inputs, at), true))


def test_another_rounding_of_p_is_caught(problem):
    """P left unrounded is closer to exact attention, but it is not what a kernel is meant to compute."""
    inputs, at, true = problem
    q, k, v = Scores(*inputs, at.layout, 1).inputs
    out, lse = attention_reference(q, k, v, at.layout, at.lists, False)  # P not rounded at all
    figures = measure(out, lse, true)
    assert "relative" in " ".join(faults(figures))


def test_empty_rows_must_be_exact(problem):
    case = dataclasses.replace(CASE, lists="empty")
    at = case.lay()
    inputs = case.inputs()
    true = truth(*inputs, at.layout, at.lists, True, tiles=[0, 1])
    out, lse = run(inputs, at)
    assert faults(measure(out, lse, true)) == []
    out[:, 0] = 1e-20
    assert "empty_rows_exact" in faults(measure(out, lse, true))
