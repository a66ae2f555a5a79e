"""sta with a window for each head."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, Profile, Schedule, attend, kept_density
from fpsgen.attention.tiles import mask_from_lists

from .gradients import window_mask
from .test_sparse_sdpa import exact

GRID, TILE = (4, 10, 12), (2, 2, 4)
WINDOWS = {"1x3x3": (1, 3, 3), "all": (2, 5, 3), "allx1x1": (2, 1, 1)}
TEXT = " ".join(WINDOWS)


def profile(text=TEXT, **fields):
    return Profile("p", "sta", tile=TILE, options={"head_windows": text}, **fields)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_each_head_sees_its_own_window(impl):
    plan = AttentionPlan.of(profile(), GRID, impl)
    random = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 480, 3, 16, generator=random) for _ in range(3))
    order = plan.tiling.order()
    masks = torch.stack([window_mask(GRID, TILE, window)[order][:, order] for window in WINDOWS.values()])
    assert torch.equal(mask_from_lists(plan.tile_lists(), plan.layout), masks)
    true, height = exact(q, k, v, masks)
    out, lse = attend(q, k, v, plan, return_lse=True)
    torch.testing.assert_close(out.double(), true, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(lse.double(), height, atol=1e-4, rtol=1e-3)
    share = float(masks.double().mean())
    assert plan.density == pytest.approx(share) and not plan.dense
    assert profile().resolve(GRID)[3] == pytest.approx(share)
    assert float(kept_density(plan.lists("cpu"), plan)) == pytest.approx(share)
    with pytest.raises(ValueError, match="groups"):
        attend(q[:, :, :2], k[:, :, :2], v[:, :, :2], plan)


def test_schedules_keep_it():
    schedule = Schedule("s", (profile(), Profile("q", "fps", window=(1, 3, 3))), ((0.0, 0.5, "p"), (0.5, 1.0, "q")))
    assert Schedule.from_toml(schedule.to_toml()) == schedule
    assert schedule.with_method("sta").profiles == (profile(), Profile("q", "sta", window=(1, 3, 3)))
    assert AttentionPlan.of(profile("all all all"), GRID).dense and not profile().sees_all


def test_it_trains_and_is_traced():
    torch._dynamo.reset()
    plan = AttentionPlan.of(profile(), GRID)
    q, k, v = (torch.randn(1, 480, 3, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, plan), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v, plan))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    grad = torch.randn(q.shape)
    got = torch.autograd.grad(attend(*leaves, plan), leaves, grad)
    true, _ = exact(*wide, mask_from_lists(plan.tile_lists(), plan.layout))
    for a, b in zip(got, torch.autograd.grad(true, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("text", ["3x3", "1x2x3", "axbxc", "3x3x-1"])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ValueError):
        AttentionPlan.of(profile(text), GRID)
    with pytest.raises(ValueError):
        AttentionPlan.of(profile(window=(1, 3, 3)), GRID)


def test_what_is_no_window_is_refused_before_there_is_a_grid():
    with pytest.raises(ValueError, match="1xbx3"):
        profile("1xbx3 all all")
