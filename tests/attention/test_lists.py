"""Lists that the caller brings, and tokens before and after the grid, against fp64 attention under a mask of tokens."""

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend, fps_attention, kept_density, select_lists
from fpsgen.attention.plan import BlockLists
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import lists_from_mask, mask_from_lists

from .test_sparse_sdpa import exact

GRID = (4, 6, 10)
SIZES = [((2, 3, 5), None), ((2, 3, 15), (2, 3, 5)), ((4, 3, 6), (2, 3, 3))]  # tile, block


def inputs(tokens=240, batch=2, heads=3, dim=16, grad=False):
    random = torch.Generator().manual_seed(9)
    return tuple(torch.randn(batch, tokens, heads, dim, generator=random).requires_grad_(grad) for _ in range(3))


def some_keys(plan, groups):
    """Random lists of units, of unequal length, none empty."""
    random = torch.Generator().manual_seed(3)
    units = plan.layout.num_units - sum(plan.layout.dense_units)
    mask = torch.rand(groups, plan.tiling.num_tiles, units, generator=random) < 0.4
    mask[:, :, 1] = True
    return lists_from_mask(mask)


def seen_tokens(plan, lists):
    """bool [G, L, L] in raster order, from units found by position alone."""
    place = torch.stack(torch.meshgrid(*map(torch.arange, plan.grid), indexing="ij"), -1).flatten(0, 2)
    order = plan.tiling.order()

    def number(size):  # of the piece that each token lies in, counted as pieces begin in tile order
        piece = [tuple(x) for x in (place // torch.tensor(size)).tolist()]
        rank = {p: i for i, p in enumerate(dict.fromkeys(piece[i] for i in order.tolist()))}
        return torch.tensor([rank[p] for p in piece])

    mask = torch.zeros(*lists.counts.shape, int(lists.indices.max()) + 1, dtype=torch.bool)
    for g, m in torch.cartesian_prod(*map(torch.arange, lists.counts.shape)).tolist():
        mask[g, m, lists.indices[g, m, : lists.counts[g, m]].long()] = True
    return mask[:, number(plan.tile)][:, :, number(plan.block or plan.tile)]


@pytest.mark.parametrize("shape", ["one", "heads", "batch_heads", "batch_heads_flat"])
@pytest.mark.parametrize(("tile", "block"), SIZES)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_a_callers_lists(tile, block, shape, impl):
    plan = AttentionPlan(GRID, tile, block=block, method="sta")
    groups = {"one": 1, "heads": 3}.get(shape, 6)
    lists = some_keys(plan, groups)
    index, count = lists.indices, lists.counts
    if shape == "batch_heads":
        index, count = index.unflatten(0, (2, 3)), count.unflatten(0, (2, 3))
    q, k, v = inputs()
    chosen = {"q2k_index": index, "q2k_count": count}
    options = {"grid": GRID, "tile": tile, "block": block, "method": "bf16", "impl": impl}
    out, lse = fps_attention(q, k, v, **options, **chosen, return_lse=True)
    true, height = exact(q, k, v, seen_tokens(plan, lists))
    torch.testing.assert_close(out.double(), true, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), height, atol=1e-5, rtol=1e-5)
    order = plan.tiling.order()
    tiled = fps_attention(*(x[:, order] for x in (q, k, v)), **options, **chosen, ordered=True)
    torch.testing.assert_close(tiled, out[:, order])
    rounded = fps_attention(q, k, v, **(options | {"method": "fps"}), **chosen)
    assert 1e-3 < float((rounded - true).norm() / true.norm()) < 0.1


def test_the_gradient_flows_through_a_callers_lists():
    tile, block = SIZES[1]
    plan = AttentionPlan(GRID, tile, block=block, method="sta")
    lists = some_keys(plan, 6)
    leaves = inputs(grad=True)
    out = fps_attention(
        *leaves, grid=GRID, tile=tile, block=block, method="bf16", q2k_index=lists.indices, q2k_count=lists.counts
    )
    wide = [x.detach().double().requires_grad_() for x in leaves]
    true, _ = exact(*wide, seen_tokens(plan, lists))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for got, wanted in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(true, wide, grad.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"q2k_index": torch.zeros(1, 7, 2, dtype=torch.int32)},
        {"q2k_index": torch.zeros(4, 8, 2, dtype=torch.int32), "q2k_count": torch.ones(4, 8, dtype=torch.int32)},
        {"q2k_index": torch.zeros(1, 8, 2)},
        {"q2k_index": torch.zeros(1, 8, 2, dtype=torch.bool)},
        {"q2k_index": torch.zeros(1, 8, 2, dtype=torch.uint16)},
        {"q2k_count": torch.ones(1, 8, dtype=torch.complex64)},
        {"q2k_index": torch.ones(1, 8, 2, dtype=torch.int32), "q2k_count": torch.full((1, 8), 2)},
        {"q2k_index": torch.full((1, 8, 2), 8, dtype=torch.int32)},
        {"q2k_index": torch.full((1, 8, 2), -1, dtype=torch.int32)},
        {"q2k_count": torch.full((1, 8), 3, dtype=torch.int32)},
        {"q2k_count": torch.full((1, 8), -1, dtype=torch.int32)},
        {"q2k_count": None},
        {"q2k_index": None},
        {"window": (1, 1, 1)},
        {"density": 0.3},
    ],
)
def test_lists_that_do_not_fit_are_refused_in_two_lines(change):
    good = {"q2k_index": torch.zeros(1, 8, 2, dtype=torch.int32), "q2k_count": torch.ones(1, 8, dtype=torch.int32)}
    q, k, v = inputs()
    fps_attention(q, k, v, grid=GRID, tile=(2, 3, 5), **good)
    with pytest.raises(ValueError) as caught:
        fps_attention(q, k, v, grid=GRID, tile=(2, 3, 5), **(good | change))
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    ("index", "count"),
    [
        (torch.zeros(1, 8, 2, dtype=torch.int32), torch.ones(1, 8, dtype=torch.int32)),  # of the grid's tiles alone
        (torch.zeros(4, 9, 2, dtype=torch.int32), torch.ones(4, 9, dtype=torch.int32)),
        (torch.zeros(1, 9, 2, dtype=torch.int64), torch.ones(1, 9, dtype=torch.int32)),
        (torch.zeros(1, 9, 2, dtype=torch.int32), torch.ones(9, dtype=torch.int32)),
        (torch.zeros(1, 9, 2, dtype=torch.int32, device="meta"), torch.ones(1, 9, dtype=torch.int32)),
    ],
)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_attend_refuses_lists_of_another_shape(index, count, impl):
    plan = AttentionPlan(GRID, (2, 3, 5), impl=impl, prefix=9)
    with pytest.raises(ValueError, match=r"^lists are .*\nGive int32 .* M = 9") as caught:
        attend(*inputs(249), plan, lists=BlockLists(index, count))
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("method", ["sta", "fps", "bf16", "fp8"])
@pytest.mark.parametrize(("prefix", "suffix"), [(7, 0), (0, 130), (65, 5)])
@pytest.mark.parametrize(("tile", "block"), SIZES[:2])
def test_prefix_and_suffix(tile, block, prefix, suffix, method):
    window = "all" if method in ("bf16", "fp8") else (1, 1, 1) if block is None else (1, 1, 0)
    plan = AttentionPlan(GRID, tile, window, method=method, block=block, prefix=prefix, suffix=suffix)
    leaves = inputs(240 + prefix + suffix, grad=True)
    options = {"tile": tile, "block": block, "window": window, "method": method}
    out, lse = fps_attention(*leaves, grid=GRID, **options, prefix=prefix, suffix=suffix, return_lse=True)
    back = torch.argsort(plan.layout.order())
    mask = mask_from_lists(plan.tile_lists(), plan.layout)[:, back][:, :, back]
    wide = [x.detach().double() for x in leaves]
    if plan.fp8:
        tiled = fake_quantize(*(x.detach()[:, plan.layout.order()] for x in leaves), plan.layout)
        wide = [x[:, back].double() for x in tiled]
    wide = [x.requires_grad_() for x in wide]
    true, height = exact(*wide, mask)
    near = {"atol": 5e-2, "rtol": 5e-2} if plan.fp8 else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(out.double(), true, **near)
    torch.testing.assert_close(lse.double(), height, **near)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(got, torch.autograd.grad(true, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)
    assert plan.density == pytest.approx(mask.double().mean().item())


def test_a_callers_lists_go_with_a_prefix():
    plan = AttentionPlan(GRID, (2, 3, 5), method="sta", prefix=70, suffix=3)
    lists = some_keys(plan, 3)
    q, k, v = inputs(240 + 73)
    given = {"q2k_index": lists.indices, "q2k_count": lists.counts}
    out = fps_attention(q, k, v, grid=GRID, tile=(2, 3, 5), method="sta", prefix=70, suffix=3, **given)
    mask = torch.ones(3, 313, 313, dtype=torch.bool)
    mask[:, 70:310, 70:310] = seen_tokens(AttentionPlan(GRID, (2, 3, 5)), lists)
    torch.testing.assert_close(out.double(), exact(q, k, v, mask)[0], atol=1e-5, rtol=1e-4)


def test_density_of_lists_is_counted_without_waiting_for_the_device():
    tile, block = SIZES[2]
    plan = AttentionPlan(GRID, tile, (0, 1, 3), block=block, prefix=9)
    lists = select_lists(*inputs(), plan)

    def density(index, count):
        return kept_density(BlockLists(index, count), plan)

    counted = torch.compile(density, fullgraph=True, backend="eager")  # whatever waits would break the graph
    assert counted(*lists).item() == pytest.approx(plan.density)
    assert counted(*lists).dtype == torch.float64 and counted(*lists).shape == ()


def test_lists_of_one_call_are_not_kept_for_the_next():
    plan = AttentionPlan(GRID, (2, 3, 5), method="sta")
    q, k, v = inputs()
    index, count = plan.lists("cpu")
    first = attend(q, k, v, plan, lists=BlockLists(index, torch.full_like(count, 1)))
    second = attend(q, k, v, plan, lists=BlockLists(index, torch.full_like(count, 2)))
    assert not torch.equal(first, second) and not torch.equal(second, attend(q, k, v, plan))
    assert torch.equal(first, attend(q, k, v, plan, lists=BlockLists(index, torch.full_like(count, 1))))
