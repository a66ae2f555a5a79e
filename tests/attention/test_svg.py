"""Sparse VideoGen: both masks against positions of tokens, the choice against errors computed token by token."""

import itertools

import pytest
import torch

from fpsgen.attention import METHODS, AttentionPlan, Profile, Schedule, attend, kept_density, select_lists
from fpsgen.attention.methods import svg
from fpsgen.attention.tiles import TileLists, make_tiling, mask_from_lists

from .mutant import load
from .test_sparse_sdpa import exact

GRID = (8, 12, 13)
TILE = (2, 4, 5)
LENGTH = 8 * 12 * 13


def plan_of(**options):
    return AttentionPlan.of(Profile("p", "svg", tile=TILE, options=options), GRID)


def masks(plan):
    """bool [2, L, L] in tile order: spatial, temporal."""
    return mask_from_lists(svg.both_lists(plan, torch.device("cpu")), plan.layout)


def places(plan):
    """Frame, row and column of each token in tile order, in tiles."""
    token = plan.tiling.order()
    position = (token // 156, token // 13 % 12, token % 13)
    return [axis // side for axis, side in zip(position, TILE, strict=True)]


def judge_masks(sparsity):
    plan = plan_of(sparsity=sparsity)
    spatial, temporal = masks(plan)
    frame, row, column = places(plan)
    first = frame == 0
    assert spatial[:, first].all() and temporal[:, first].all()
    # a spatial head sees whole frames, a temporal one the same places of every frame
    for t in range(4):
        own = spatial[frame == t]
        assert torch.equal(own, own[:1].expand_as(own))
        seen = [int(n) for n in torch.unique(frame[own[0]])]
        assert torch.equal(own[0], torch.isin(frame, torch.tensor(seen))) and t in seen
    for h in range(3):
        for w in range(3):
            own = temporal[(row == h) & (column == w)]
            near = own[0][frame == 1]
            for t in range(1, 4):
                assert torch.equal(own[0][frame == t], near)
            here = (row == h) & (column == w)
            assert own[0][here].all()
    return spatial, temporal


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_masks_are_frames_and_places(sparsity):
    spatial, temporal = judge_masks(sparsity)
    assert not spatial.all() and not temporal.all() and not torch.equal(spatial, temporal)


@pytest.mark.parametrize(("grid", "off"), [((21, 45, 80), 0.15), ((21, 30, 52), 0.2)])
def test_both_come_near_to_the_share_on_the_grids_of_wan(grid, off):
    tiling = make_tiling(grid, "even")
    plan = AttentionPlan(grid, "even", method="svg")
    for lists in svg.near_windows(tiling, 0.25):
        assert abs(lists.density(plan.layout) / 0.25 - 1) < off


@pytest.mark.parametrize("tile", ["even", "fit", (2, 4, 4)])
@pytest.mark.parametrize("grid", [(9, 10, 16), (13, 20, 26), (1, 9, 9)])
def test_what_a_window_and_the_first_frame_keep(grid, tile):
    plan = AttentionPlan(grid, tile, method="svg")
    for window in itertools.product(*svg.axis_extents(grid, plan.tile, plan.block)):
        lists = svg._with_first_frame(plan.tiling, window)
        assert svg._kept(plan.tiling, window) == pytest.approx(lists.density(plan.layout), abs=1e-9)


def heads_of_two_kinds(seed=3):
    """Head 0 looks for its own frame, head 1 for its own place; values differ with both."""
    random = torch.Generator().manual_seed(seed)
    plan = plan_of()
    token = plan.tiling.order()
    frame, place = token // 156, token % 156
    of_frame, of_place = torch.randn(8, 16, generator=random), torch.randn(156, 16, generator=random)
    key = torch.stack((of_frame[frame], of_place[place]), 1)[None] * 3
    value = torch.randn(1, LENGTH, 2, 16, generator=random)
    return plan, key.clone(), key, value


def test_each_head_takes_the_mask_that_errs_less():
    plan, q, k, v = heads_of_two_kinds()
    lists = select_lists(q, k, v, plan)
    both = svg.both_lists(plan, q.device)
    assert torch.equal(lists.list_index, both.indices) and torch.equal(lists.list_count, both.counts)
    swapped = select_lists(q.flip(2), k.flip(2), v.flip(2), plan)
    assert torch.equal(swapped.list_index, both.indices.flip(0))


def judge_choice():
    """With all rows sampled the choice is that of the whole error, for heads of any kind."""
    plan, query, key, value = heads_of_two_kinds()
    share = torch.linspace(0, 1, 6)[:, None]
    q, k = (x[:, :, :1] * (1 - share) + x[:, :, 1:] * share for x in (query, key))
    v = torch.cat([value] * 3, 2) * torch.linspace(0.5, 2, 6)[:, None]
    q, k, v = (torch.cat((x, x.flip(2)[:, :, [0, 2, 1, 4, 3, 5]])) for x in (q, k, v))
    plan = plan_of(num_sampled_rows=LENGTH)
    exactly, _ = exact(q, k, v, torch.ones(1, LENGTH, LENGTH, dtype=torch.bool))
    errors = torch.stack([(exact(q, k, v, mask[None])[0] - exactly).square().mean((1, 3)) for mask in masks(plan)])
    torch.testing.assert_close(svg.mask_errors(q, k, v, plan).double(), errors, rtol=1e-3, atol=1e-9)
    wanted = errors.argmin(0).flatten()
    both = svg.both_lists(plan, q.device)
    lists = select_lists(q, k, v, plan)
    assert torch.equal(lists.list_index, both.indices[wanted]) and torch.equal(lists.list_count, both.counts[wanted])
    return wanted, plan, (q, k, v), lists


def test_the_error_is_that_of_the_output():
    wanted, plan, (q, k, v), lists = judge_choice()
    assert 0 < int(wanted.sum()) < len(wanted)
    out = attend(q, k, v, plan)
    true, _ = exact(q, k, v, mask_from_lists(TileLists(*lists), plan.layout))
    torch.testing.assert_close(out.double(), true, atol=1e-4, rtol=1e-3)
    kept = masks(plan).double().mean((1, 2))[wanted].mean()
    assert float(kept_density(lists, plan)) == pytest.approx(float(kept))


def test_the_same_call_chooses_alike():
    plan, q, k, v = heads_of_two_kinds()
    torch.manual_seed(1)
    one = select_lists(q, k, v, plan)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one.list_index, select_lists(q, k, v, plan).list_index)
    torch.manual_seed(1)
    select_lists(q, k, v, plan)
    assert torch.equal(state, torch.get_rng_state())  # nobody else's noise moves


def test_schedules_give_it_blocks():
    schedule = Schedule("s", (Profile("a", "fps", window=(3, 3, 3)),), ((0.0, 1.0, "a"),)).with_method("svg")
    assert schedule.profiles[0].tile == "even" and not METHODS["svg"].quantized
    options = {"num_sampled_rows": 8, "sparsity": 0.4}
    stated = Schedule("s", (Profile("a", "svg", options=options),), ((0.0, 1.0, "a"),))
    assert Schedule.from_toml(stated.to_toml()) == stated
    assert dict(METHODS["svg"].options) == {"num_sampled_rows": 64, "sparsity": 0.25}


def test_it_is_traced_whole():
    torch._dynamo.reset()
    plan, q, k, v = heads_of_two_kinds()
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, plan), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v, plan))


MISTAKES = {
    "the worse of the two": (".argmin(0)", ".argmax(0)"),
    "weights not made up again": (".float() / row_sum)", ".float())"),
    "no scale": (" * q.shape[-1] ** (-0.5)", ""),
    "the first frame forgotten": ("mask[:, :, tiling.unit_order() < rows * columns] = True", "pass"),
    "both spatial": ("nearest(spatial), nearest(temporal)", "nearest(spatial), nearest(spatial)"),
    "a mean over heads": (".mean((2, 3))", ".mean((1, 2, 3))[:, None].expand(-1, q.shape[2])"),
}


@pytest.mark.parametrize("change", MISTAKES.values(), ids=MISTAKES)
def test_planted_mistakes_are_caught(change, tmp_path, monkeypatch):
    mutant = load(svg, tmp_path, change)
    monkeypatch.setitem(METHODS, "svg", mutant.METHOD)
    for name in ("both_lists", "mask_errors"):
        monkeypatch.setattr(svg, name, getattr(mutant, name))
    with pytest.raises(AssertionError):
        judge_masks(0.5)
        judge_choice()
