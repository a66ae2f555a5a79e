"""Errors of attention against fp64: right lists give rounding, any other list is noticed."""

from __future__ import annotations

import pytest
import torch

from fpsgen.attention.op import attend
from fpsgen.attention.plan import AttentionPlan, BlockLists
from fpsgen.bench.kernel import in_order
from fpsgen.bench.kernel_error import error_to_dense, error_to_lists

GRID = (2, 4, 8)


def inputs(heads: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 64, heads, 16, generator=generator) for _ in range(3))


@pytest.mark.parametrize("method", ["sta", "fps"])
def test_a_window_is_right_against_its_own_lists_alone(method):
    plan = AttentionPlan(GRID, (1, 2, 4), (1, 1, 1), method=method)
    q, k, v = in_order(inputs(), plan)
    out, lists = attend(q, k, v, plan), plan.lists("cpu")
    right = error_to_lists(out, plan, (q, k, v), lists, plan.fp8)
    assert right < (1e-6 if method == "sta" else 4e-2)
    assert error_to_dense(out, plan, (q, k, v)) > 0.3
    moved = lists._replace(list_index=lists.list_index.roll(1, 1))  # each tile has another's keys
    assert error_to_lists(out, plan, (q, k, v), moved, plan.fp8) > 0.3


def test_lists_of_each_head_are_its_own():
    """G = B*H: a check that read head 0's lists for all would not see this."""
    plan = AttentionPlan(GRID, (1, 2, 4), method="sta")
    q, k, v = in_order(inputs(), plan)
    index = torch.full((4, 8, 1), -1, dtype=torch.int32)
    for group in range(4):
        index[group, :, 0] = (torch.arange(8) + group) % 8
    lists = BlockLists(index, torch.ones(4, 8, dtype=torch.int32))
    out = attend(q, k, v, plan, lists=lists)
    assert error_to_lists(out, plan, (q, k, v), lists, False) < 1e-6
    swapped = BlockLists(index[[1, 0, 2, 3]], lists.list_count)
    assert error_to_lists(out, plan, (q, k, v), swapped, False) > 0.3


def test_in_order_is_the_plans_permutation():
    plan = AttentionPlan(GRID, (1, 2, 4), (1, 1, 1), method="sta")
    x = torch.arange(64).view(1, 64, 1, 1).float()
    moved = in_order((x, x, x), plan)[0].flatten().long()
    assert torch.equal(moved, plan.layout.order()) and not torch.equal(moved, torch.arange(64))
    assert in_order((x, x, x), AttentionPlan(GRID, method="bf16"))[0] is x
