import itertools
import math

import pytest
import torch

from fpsgen.attention.sparse_sdpa import token_groups
from fpsgen.attention.tiles import (
    BlockLayout,
    Tiling,
    lists_from_mask,
    make_tiling,
    mask_from_lists,
    window_lists,
    with_dense_rows,
)
from fpsgen.attention.windows import fit_tile, resolve_window

GRIDS = [
    ((5, 6, 7), (2, 4, 4)),
    ((4, 4, 4), (4, 4, 4)),
    ((3, 5, 2), (3, 2, 1)),
    ((1, 9, 10), (1, 4, 3)),
    ((1, 1, 1), (1, 1, 1)),
]


@pytest.mark.parametrize(("grid", "tile"), GRIDS)
def test_order_is_a_permutation_into_contiguous_tiles(grid, tile):
    tiling = Tiling(grid, tile)
    order = tiling.order()
    assert sorted(order.tolist()) == list(range(math.prod(grid)))
    assert torch.equal(order[tiling.inverse()], torch.arange(tiling.num_tokens))
    expected = []
    for corner in itertools.product(*(range(0, g, s) for g, s in zip(grid, tile, strict=True))):
        cells = itertools.product(*(range(c, min(c + s, g)) for c, s, g in zip(corner, tile, grid, strict=True)))
        expected += [(t * grid[1] + h) * grid[2] + w for t, h, w in cells]
    assert order.tolist() == expected
    assert int(tiling.sizes().sum()) == tiling.num_tokens and len(tiling.sizes()) == tiling.num_tiles


def test_fit_finds_the_known_shapes():
    assert fit_tile((21, 45, 80)) == (21, 9, 2)  # 378 of 384 rows
    assert fit_tile((21, 30, 52)) == (3, 30, 4)  # 360 of 384
    assert fit_tile((9, 10, 16)) == (3, 10, 2)  # 60 of 64: a small grid
    assert math.prod(fit_tile((1, 300, 300))) > 350
    assert fit_tile((1, 1, 1)) == (1, 1, 1)


@pytest.mark.parametrize(
    "grid", [(21, 45, 80), (21, 30, 52), (13, 7, 11), (1, 30, 52), (2, 2, 4), (31, 45, 80), (5, 1, 1)]
)
def test_fit_fits_its_rows(grid):
    tile = fit_tile(grid)
    layout = BlockLayout(make_tiling(grid))
    assert layout.num_blocks == layout.tiling.num_tiles * layout.blocks_per_tile or not layout.uniform
    assert all(t <= g for t, g in zip(tile, grid, strict=True))
    assert math.prod(tile) <= layout.block * layout.blocks_per_tile <= 384


def test_equal_tiles_are_cut_evenly():
    layout = BlockLayout(Tiling((21, 45, 80), (21, 9, 2)))
    assert (layout.uniform, layout.blocks_per_tile, layout.block) == (126, 3, 128)
    ragged = BlockLayout(Tiling((21, 45, 80), (6, 8, 8)))
    assert ragged.uniform == 0 and ragged.block_len[:3].tolist() == [128, 128, 128]
    assert set(ragged.block_len.tolist()) == {128, 112, 64, 120}  # edge tiles fill their blocks one after the other


@pytest.mark.parametrize(("grid", "tile"), [*GRIDS, ((6, 16, 9), (6, 8, 8))])
def test_blocks_never_cross_tiles(grid, tile):
    tiling = Tiling(grid, tile)
    layout = BlockLayout(tiling)
    assert layout.block == (64 if int(tiling.sizes().max()) <= 64 else 128)
    covered = []
    for u, size in enumerate(tiling.sizes().tolist()):
        first, last = layout.tile_first_block[u].item(), layout.tile_first_block[u + 1].item()
        assert last - first == -(-size // layout.block)
        for n in range(first, last):
            start, length = layout.block_start[n].item(), layout.block_len[n].item()
            assert 1 <= length <= layout.block
            assert layout.rows[n, :length].tolist() == list(range(start, start + length))
            assert set(layout.rows[n, length:].tolist()) <= {start}
            assert (layout.token_block[start : start + length] == n).all()
            covered += range(start, start + length)
    assert covered == list(range(tiling.num_tokens)) and layout.num_blocks == layout.tile_first_block[-1]


def test_window_shifts_at_the_border():
    tiling = Tiling((10, 2, 6), (2, 2, 2))  # 5 x 1 x 3 tiles
    lists = window_lists(tiling, (3, 1, 1))
    assert lists.counts.tolist() == [[3] * 15]
    assert lists.indices[0, 0].tolist() == [0, 3, 6]  # first in time: shifted to the right
    assert lists.indices[0, 6].tolist() == [3, 6, 9]  # in the middle: centred
    assert lists.indices[0, 14].tolist() == [8, 11, 14]  # last: shifted to the left
    assert lists.density(BlockLayout(tiling)) == pytest.approx(3 / 15)


def test_density_counts_tokens_of_ragged_tiles():
    tiling = Tiling((5, 6, 7), (2, 4, 4))
    lists = window_lists(tiling, (3, 1, 1))
    layout = BlockLayout(tiling)
    assert lists.density(layout) == pytest.approx(mask_from_lists(lists, layout).double().mean().item())
    assert window_lists(tiling, "all").density(layout) == 1.0


@pytest.mark.parametrize(
    ("window", "resolved"),
    [
        ("all", (3, 5, 40)),
        ((0, "all", 3), (3, 5, 3)),
        ((9, 9, 9), (3, 5, 9)),
        ((4, 6, 41), (3, 5, 40)),  # not below the axis: the whole of it
        ((0.3, 0.3, 0.3), (1, 3, 13)),
        ((1.0, 0.99, 0.01), (3, 5, 1)),
    ],
)
def test_windows_resolve(window, resolved):
    assert resolve_window((3, 5, 40), window) == resolved
    assert resolve_window((3, 5, 40), resolved) == resolved


@pytest.mark.parametrize("window", [(2, 1, 1), (-1, 1, 1), (1.5, 1, 1), (1, 1), "some", (True, 1, 1), (0.0, 1, 1)])
def test_bad_windows_are_refused_in_two_lines(window):
    with pytest.raises(ValueError) as caught:
        resolve_window((3, 5, 40), window)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    "make",
    [lambda: Tiling((2, 2, 2), (3, 1, 1)), lambda: make_tiling((2, 0, 2)), lambda: make_tiling((4, 4, 4), "big")],
)
def test_bad_sizes_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_block_lists_follow_tile_lists():
    tiling = Tiling((6, 16, 9), (6, 8, 8))  # tiles of 3 blocks, edge tiles of 1
    layout = BlockLayout(tiling)
    mask = torch.tensor([[[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]], dtype=torch.bool)
    index, count = lists_from_mask(mask).blocks(layout)
    first = layout.tile_first_block.tolist()
    for u in range(4):
        expected = [n for j in range(4) if mask[0, u, j] for n in range(first[j], first[j + 1])]
        assert index[0, u, : count[0, u]].tolist() == expected
        assert (index[0, u, count[0, u] :] == -1).all()


def test_groups_join_equal_lists_whatever_their_order():
    tiling = Tiling((3, 2, 2), (1, 2, 2))
    layout = BlockLayout(tiling)
    own = lists_from_mask(torch.eye(3, dtype=torch.bool)[None])
    rows = [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert token_groups(layout, *own.blocks(layout)) == (tuple((r, r) for r in rows),)
    every = window_lists(tiling)
    every.indices[0, 1] = every.indices[0, 1].flip(0)
    assert token_groups(layout, *every.blocks(layout)) == (((slice(0, 12), slice(0, 12)),),)


@pytest.mark.parametrize("size", [129, 130, 131, 257, 385])
def test_alike_tiles_lose_no_token_whether_they_can_be_cut_evenly_or_not(size):
    layout = BlockLayout(Tiling((1, 1, 2 * size), (1, 1, size)))
    assert int(layout.block_len.sum()) == 2 * size == len(layout.token_block)
    assert layout.uniform == (65 if size == 130 else 0)


BLOCKED = [
    ((7, 9, 10), (1, 3, 1), (1, 1, 1)),
    ((5, 7, 11), (2, 3, 6), (2, 3, 2)),
    ((6, 10, 9), (9, 5, 4), (3, 5, 4)),  # a tile longer than the grid
    ((4, 4, 4), (2, 2, 2), (2, 2, 2)),
]


@pytest.mark.parametrize(("grid", "tile", "block"), BLOCKED)
def test_3d_blocks_lie_one_after_the_other_in_their_tiles(grid, tile, block):
    """Every kernel block is one box of the grid, every tile's blocks follow each other."""
    tiling = Tiling(grid, tile, block)
    layout = BlockLayout(tiling)
    place = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1).flatten(0, 2)[layout.order()]
    assert sorted(layout.order().tolist()) == list(range(math.prod(grid)))
    assert layout.num_blocks == math.prod(tiling.unit_grid)
    boxes = set()
    blocks = zip(*(x.tolist() for x in (layout.block_start, layout.block_len, layout.block_tile)), strict=True)
    for start, length, owner in blocks:
        box = place[start : start + length] // torch.tensor(block)
        assert (box == box[0]).all()
        boxes.add(tuple(box[0].tolist()))
        t, h, w = (place[start] // torch.tensor(tile)).tolist()
        assert owner == (t * tiling.tile_grid[1] + h) * tiling.tile_grid[2] + w
    assert len(boxes) == layout.num_blocks and int(layout.block_len.sum()) == tiling.num_tokens
    assert int(layout.tile_sizes.sum()) == tiling.num_tokens == int(layout.unit_sizes.sum())


def test_windows_in_blocks_are_centred_on_the_row_of_three_and_shift_inwards():
    tiling = Tiling((5, 9, 5), (1, 3, 1), (1, 1, 1))
    layout = BlockLayout(tiling)
    seen = mask_from_lists(window_lists(tiling, (3, 5, 3)), layout)[0]
    back = torch.argsort(layout.order())
    seen = seen[back][:, back].view(5, 9, 5, 5, 9, 5)

    def around(t, h, w):
        found = seen[t, h, w].nonzero()
        return [(int(x.min()), int(x.max())) for x in found.T], len(found)

    for h in (3, 4, 5):  # three in a row share a window
        assert around(2, h, 2) == ([(1, 3), (2, 6), (1, 3)], 45)
    assert around(0, 0, 4) == ([(0, 2), (0, 4), (2, 4)], 45)
    assert around(4, 8, 0) == ([(2, 4), (4, 8), (0, 2)], 45)


def test_a_window_holds_its_own_tile():
    tiling = Tiling((5, 9, 5), (1, 3, 1), (1, 1, 1))
    with pytest.raises(ValueError):
        window_lists(tiling, (1, 1, 1))
    assert window_lists(tiling, (0.1, 0.1, 0.1)).counts[0, 0] == 3


@pytest.mark.parametrize(("prefix", "suffix"), [(5, 0), (0, 200), (70, 3)])
@pytest.mark.parametrize(("grid", "tile", "block"), [((5, 6, 7), (2, 4, 4), None), BLOCKED[1]])
def test_prefix_and_suffix_see_and_are_seen_by_all(grid, tile, block, prefix, suffix):
    tiling = Tiling(grid, tile, block)
    layout = BlockLayout(tiling, prefix, suffix)
    inner = window_lists(tiling, (1, 0, 0))
    mask = mask_from_lists(with_dense_rows(inner, layout), layout)[0]
    end = prefix + tiling.num_tokens
    assert mask.shape[0] == end + suffix == len(layout.token_block)
    assert mask[:prefix].all() and mask[end:].all() and mask[:, :prefix].all() and mask[:, end:].all()
    assert torch.equal(mask[prefix:end, prefix:end], mask_from_lists(inner, BlockLayout(tiling))[0])
    order = layout.order()
    assert torch.equal(order[:prefix], torch.arange(prefix)) and torch.equal(
        order[end:], torch.arange(end, end + suffix)
    )
    assert torch.equal(order[prefix:end] - prefix, tiling.order())
    assert with_dense_rows(inner, layout).density(layout) == pytest.approx(mask.double().mean().item())


@pytest.mark.parametrize("block", [(3, 1, 1), (2, 2, 64), (1, 5, 1)])
def test_blocks_that_do_not_divide_their_tile_or_are_too_large_are_refused(block):
    with pytest.raises(ValueError) as caught:
        Tiling((8, 8, 128), (2, 4, 64), block)
    assert str(caught.value).count("\n") == 1
