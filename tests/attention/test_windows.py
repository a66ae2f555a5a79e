import math
from itertools import product

import pytest

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.presets import PRESETS
from fpsgen.attention.tiles import BlockLayout, make_tiling, window_lists
from fpsgen.attention.windows import (
    DENSITIES,
    count,
    density_window,
    filled,
    fit_blocks,
    fit_tile,
    resolve_window,
    window_density,
)

SIDES = {  # tokens in height and width
    "480p": [(30, 52), (52, 30), (30, 30), (39, 39), (40, 40)],
    "720p": [(45, 80), (80, 45), (45, 45), (60, 60), (64, 64)],
}
FRAMES = [33, 49, 81, 121]
GRIDS = [((frames + 3) // 4, *side) for sides in SIDES.values() for frames, side in product(FRAMES, sides)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_density_of_a_preset_is_met_within_a_tenth(grid):
    densities = {p.density for schedule in PRESETS.values() for p in schedule.profiles} - {None}
    block, tile = fit_blocks(grid)
    for density in densities | set(DENSITIES):
        window = density_window(grid, tile, block, density)
        assert abs(window_density(grid, tile, block, window) / density - 1) <= 0.1, (density, window)
        assert all(w % 2 or w == n for w, n in zip(window, count(grid, block), strict=True))
    assert math.prod(block) <= 128 and [t // b for t, b in zip(tile, block, strict=True)].count(1) == 2
    assert min(filled(grid, tile, block)) >= 0.75


def test_the_known_shapes():
    assert fit_blocks((21, 45, 80)) == ((21, 3, 2), (21, 9, 2))  # 1 x 15 x 40 blocks, 126 of 128 rows
    assert fit_blocks((21, 30, 52)) == ((21, 3, 2), (21, 3, 6))  # 1 x 10 x 26
    assert fit_blocks((21, 45, 80), even=True) == ((3, 5, 8), (3, 15, 8))  # 7 x 9 x 10, 120 of 128
    assert fit_blocks((9, 10, 16)) == ((3, 5, 4), (3, 5, 4))  # small: blocks of 64 rows that are tiles


@pytest.mark.parametrize("grid", [(21, 45, 80), (21, 30, 52), (21, 60, 60), (31, 60, 60), (9, 45, 80), (9, 60, 60)])
def test_windows_of_a_stated_density_cost_no_more_for_a_pair_than_those_of_the_tile_that_fills_best(grid):
    block, tile = fit_blocks(grid)
    assert math.prod(filled(grid, tile, block)) >= 0.97 * math.prod(filled(grid, fit_tile(grid), None))


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (2, 2, 4), (1, 300, 300), (5, 1, 1), (3, 90, 160), (1, 1, 5000), (7, 1, 999)]
)
def test_odd_grids_get_blocks_too(grid):
    tiling = make_tiling(grid, "blocks")
    assert BlockLayout(tiling).num_tokens == math.prod(grid)
    assert window_lists(tiling, density_window(grid, tiling.tile, tiling.block, 0.2)).counts.min() >= 1


@pytest.mark.parametrize("tile", ["fit", "blocks", "paper", (2, 4, 4)])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.6])
def test_the_density_that_is_computed_is_that_of_the_lists(tile, density):
    grid = (9, 20, 26)
    tiling = make_tiling(grid, tile)
    window = density_window(grid, tiling.tile, tiling.block, density)
    layout = BlockLayout(tiling)
    lists = window_lists(tiling, window)
    assert window_density(grid, tiling.tile, tiling.block, window) == pytest.approx(lists.density(layout))
    assert len(set(lists.counts.flatten().tolist())) == 1


def test_of_near_windows_the_even_one_is_taken():
    grid = (8, 8, 8)
    assert density_window(grid, (1, 1, 1), None, 27 / 512) == (3, 3, 3)  # not (1, 3, 9) or (1, 5, 5)
    assert density_window(grid, (1, 1, 1), None, 1.0) == (8, 8, 8)


@pytest.mark.parametrize("density", [0, 0.0, 1.1, -0.2, "0.2", float("nan"), None])
def test_bad_densities_are_refused(density):
    with pytest.raises((ValueError, TypeError)) as caught:
        density_window((8, 8, 8), (1, 1, 1), None, density)
    assert str(caught.value).count("\n") == 1


def test_rows_filled_count_what_the_kernel_goes_over():
    assert filled((21, 45, 80), (21, 9, 2), None) == pytest.approx((378 / 384, 378 / 384))
    keys, queries = filled((1, 1, 13 * 120), (1, 1, 360), (1, 1, 120))  # four tiles of three blocks, one of one
    assert keys == pytest.approx(120 / 128) and queries == pytest.approx(13 * 120 / (4 * 384 + 192))


@pytest.mark.parametrize("share", [1.5, -0.5, 0.0, math.nan, math.inf, True])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="window entry"):
        resolve_window((4, 6, 8), (3, share, 3))
    with pytest.raises(ValueError):
        AttentionPlan((4, 6, 8), (2, 2, 2), (share, 3, 3))


def test_a_share_keeps_what_it_says_and_a_whole_tile():
    assert resolve_window((10, 100, 10), (0.3, 0.07, 0.31)) == (3, 7, 5)  # 0.07 * 100 is more than 7 in floating point
    assert resolve_window((9, 9, 9), (0.1, 0.1, 0.5), (1, 3, 1)) == (1, 3, 5)  # three blocks of a tile
