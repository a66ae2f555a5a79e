"""Which tile, key block and window fit a token grid: arithmetic on counts, without torch.

Two sizes. The query tile is what shares a list of keys; the key block is what lists count. A tile is either one piece
of any size, whose rows are cut into kernel blocks in token order (windows then count tiles), or three compact 3D
blocks of at most 128 tokens in a row (windows then count blocks, which makes them finer and rounder). 384 rows are
what the Hopper kernels take at a time, the size of the paper's (6, 8, 8).

Legend: grid (t, h, w) in tokens; tile and block (t, h, w) in tokens; unit: what a window counts, the block where there
is one, else the tile; extent: entry of a window, in units. Source: arXiv 2506.04648, section 3; the border rule is
that of Sliding Tile Attention (arXiv 2502.04507): at the border a window shifts inwards and is not cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, product

Size3 = tuple[int, int, int]
Window = str | tuple[int | float | str, int | float | str, int | float | str]

TILES = ("fit", "blocks", "even", "paper")
BLOCK_TILES = ("blocks", "even")  # whose windows count blocks
PAPER_TILE = (6, 8, 8)
SMALL_GRID = 4096  # up to this many tokens, 64-token blocks keep enough of them to choose from
MAX_ELONGATION = 5.0  # longest over shortest side of a tile or block, of those sides that a window may cut
MAX_SPAN = 12.0  # the same of all sides
TOLERANCE = 0.1  # of a density: how far the window found may be off, relatively
DENSITIES = (0.12, 0.18, 0.25, 0.35, 0.45, 0.5)  # one block shape should have good windows for all of these
ROW = 3  # blocks of a query tile: three warpgroups of 64 rows go over it twice
# (least share filled, of the best one; weight of the elongation of the block grid), for fit_blocks as it is and `even`
FULL, EVEN = (0.97, 0.02), (0.85, 0.2)


def size3(value: object, name: str) -> Size3:
    """value as three positive integers; raises ValueError that calls it `name`."""
    parts = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(parts) != 3 or any(isinstance(p, bool) or not isinstance(p, int) or p < 1 for p in parts):
        raise ValueError(f"{name} is {value!r}.\nGive three positive integers (t, h, w).")
    return parts[0], parts[1], parts[2]


def count(grid: Size3, side: Size3) -> Size3:
    """How many pieces of size `side` cover each axis."""
    t, h, w = (-(-g // s) for g, s in zip(grid, side, strict=True))
    return t, h, w


def resolve_tile(grid: Size3, tile: str | Size3) -> tuple[Size3, Size3 | None]:
    """(tile, block) of a named or given tile on a grid; block is None where windows count tiles.

    tile: "fit" (one piece that fills kernel blocks best), "blocks" (three 3D blocks in a row), "even" (the same, blocks
    cut all axes alike: for methods that choose blocks by what they hold), "paper" ((6, 8, 8)), or sizes in tokens,
    clipped to the grid. Raises ValueError for anything else.
    """
    grid = size3(grid, "grid")
    if tile in BLOCK_TILES:
        block, whole = fit_blocks(grid, tile == "even")
        return whole, block
    if tile == "fit":
        return fit_tile(grid), None
    if isinstance(tile, str) and tile != "paper":
        names = ", ".join(f'"{name}"' for name in TILES)
        raise ValueError(f"tile is {tile!r}.\nGive {names}, or three positive integers (t, h, w).")
    t, h, w = (min(s, g) for s, g in zip(size3(PAPER_TILE if tile == "paper" else tile, "tile"), grid, strict=True))
    return (t, h, w), None


def resolve_window(units: Size3, window: Window, least: Size3 = (1, 1, 1)) -> Size3:
    """Window in units per axis, every entry odd or the whole axis.

    window: "all", or per axis an odd number of units, 0, "all" or anything not below the axis for the whole axis, or a
    share of the axis as a float in (0, 1] (the smallest odd number of units that covers at least that share). least:
    units of a query tile along each axis, all of which its window must hold. Raises ValueError for anything else.
    """
    if isinstance(window, str):
        if window != "all":
            raise ValueError(
                f'window is {window!r}.\nGive "all" or three entries (odd units, 0, "all" or a share below 1).'
            )
        return units
    if not isinstance(window, (tuple, list)) or len(window) != 3:
        raise ValueError(f"window is {window!r}.\nGive one entry per axis: (wt, wh, ww).")
    out = []
    for entry, n, low in zip(window, units, least, strict=True):
        if entry == "all" or (type(entry) is int and (entry == 0 or entry >= n)):
            out.append(n)
        elif type(entry) is float and 0 < entry <= 1:
            out.append(min(n, max(math.ceil(entry * n - 1e-9) // 2 * 2 + 1, low)))
        elif type(entry) is int and entry >= low and entry % 2:
            out.append(entry)
        else:
            bound = f" of at least {low}" if low > 1 else ""
            raise ValueError(
                f"window entry {entry!r} in {window!r} is not usable.\n"
                f'Give an odd number{bound}, 0 or "all" for the whole axis, or a share such as 0.5.'
            )
    return out[0], out[1], out[2]


def head_windows(text: str, units: Size3, least: Size3 = (1, 1, 1)) -> tuple[Size3, ...]:
    """A window for each head, resolved: "3x3x5 all 3xallx7" becomes three, an axis may be "all". Raises ValueError."""
    found = []
    for word in text.split():
        sides = word.split("x")
        good = word == "all" or (len(sides) == 3 and all(side == "all" or side.isdecimal() for side in sides))
        if not good:
            raise ValueError(
                f"head_windows holds {word!r}.\nGive a window such as 3x3x5 or all for each head, with blanks between."
            )
        t, h, w = (side if side == "all" else int(side) for side in (["all"] * 3 if word == "all" else sides))
        found.append(resolve_window(units, (t, h, w), least))
    return tuple(found)


@lru_cache(maxsize=256)
def fit_tile(grid: Size3, rows: int | None = None) -> Size3:
    """The tile of at most `rows` tokens that fills kernel blocks best on this grid, among compact shapes.

    rows: None takes one block of 64 for grids of up to 4,096 tokens, else three blocks of 128, the size of the paper's
    (6, 8, 8). The score is the share of rows that hold real tokens, less 0.03 for every axis that the tile does not
    divide (a thin edge tile narrows its neighbours' window) and less 0.02 per doubling of longest over shortest side.
    An axis that the tile spans hardly counts as a side: no window cuts it. 81 frames at 720p: (21, 9, 2), 378 of 384
    rows; at 480p: (3, 30, 4), 360 of 384.
    """
    grid = size3(grid, "grid")
    if rows is None:
        rows = 64 if math.prod(grid) <= SMALL_GRID else 384
    best, best_score = (1, 1, 1), -math.inf
    for tile in _shapes(grid, rows):
        tiles = math.prod(count(grid, tile))
        ragged = sum(g % s != 0 for g, s in zip(grid, tile, strict=True))
        score = math.prod(grid) / (tiles * rows) - 0.03 * ragged - 0.02 * math.log2(_elongation(grid, tile))
        if score > best_score + 1e-12:
            best, best_score = tile, score
    return best


def _shapes(grid: Size3, rows: int) -> Iterator[Size3]:
    """Compact pieces of at most `rows` tokens."""
    for t in range(1, min(grid[0], rows) + 1):
        for h in range(1, min(grid[1], rows // t) + 1):
            for w in range(1, min(grid[2], rows // (t * h)) + 1):
                sides = [s for s, g in zip((t, h, w), grid, strict=True) if g > 1] or [1]
                slim = _elongation(grid, (t, h, w)) <= MAX_ELONGATION and max(sides) <= MAX_SPAN * min(sides)
                if slim or t == h == w == 1:
                    yield t, h, w


def _elongation(grid: Size3, piece: Size3) -> float:
    """Longest over shortest side, of those that do not span the grid."""
    cut = [s for s, g in zip(piece, grid, strict=True) if s < g]
    return max(cut) / min(cut) if cut else 1.0


@lru_cache(maxsize=4096)
def _extents(size: int, side: int, row: int) -> tuple[tuple[int, float], ...]:
    """Extents that a window may have on an axis of `size` tokens cut into units of `side`, `row` units to a query
    tile, each with the share of token pairs that it keeps.
    """
    units = -(-size // side)
    ends = list(accumulate((min(side, size - i * side) for i in range(units)), initial=0))
    out = []
    for extent in sorted({*range(1, units, 2), units}):
        if extent < min(row, units):
            continue
        kept = 0
        for first in range(0, units, row):
            last = min(first + row, units)
            low = window_start(first, last, extent, units)
            kept += (ends[last] - ends[first]) * (ends[low + extent] - ends[low])
        out.append((extent, kept / size**2))
    return tuple(out)


def window_start(first: int, last: int, extent: int, units: int) -> int:
    """First unit that the query tile of units [first, last) sees: centred on it, shifted inwards at the border."""
    return min(max((first + last - 1) // 2 - extent // 2, 0), units - extent)


def _axes(grid: Size3, tile: Size3, block: Size3 | None) -> list[tuple[tuple[int, float], ...]]:
    unit = block or tile
    return [_extents(g, u, -(-t // u)) for g, u, t in zip(grid, unit, tile, strict=True)]


def axis_extents(grid: Size3, tile: Size3, block: Size3 | None) -> tuple[list[int], list[int], list[int]]:
    """Extents in units that a window may have along each axis, ascending; the last is the whole axis."""
    t, h, w = ([extent for extent, _ in axis] for axis in _axes(grid, tile, block))
    return t, h, w


def window_density(grid: Size3, tile: Size3, block: Size3 | None, window: Size3) -> float:
    """Token pairs that a resolved window keeps, over all pairs. Windows are separable, so shares multiply."""
    return math.prod(dict(axis)[extent] for axis, extent in zip(_axes(grid, tile, block), window, strict=True))


@lru_cache(maxsize=1024)
def density_window(grid: Size3, tile: Size3, block: Size3 | None, density: float) -> Size3:
    """The window that keeps about `density` of all pairs and is as even as the grid allows.

    Of the windows within 10 % of `density`, the one with the best evenness less relative error; where there is none,
    the nearest. Evenness: smallest over largest share that the window keeps of an axis, less 0.15 for every axis on
    which blocks see nothing beyond themselves.
    """
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(f"density is {density!r}.\nGive a share of all pairs above 0, at most 1.")
    return _best(_windows(grid, tile, block), density)[1]


def _windows(grid: Size3, tile: Size3, block: Size3 | None) -> list[tuple[float, float, Size3]]:
    """(density, evenness, window) of all windows."""
    out = []
    axes = _axes(grid, tile, block)
    cut = [g > 1 for g in grid]
    for t, h, w in product(*axes):
        shares = [entry[1] for entry, c in zip((t, h, w), cut, strict=True) if c] or [1.0]
        alone = sum(entry[0] == 1 and len(axis) > 1 for entry, axis in zip((t, h, w), axes, strict=True))
        out.append((t[1] * h[1] * w[1], min(shares) / max(shares) - 0.15 * alone, (t[0], h[0], w[0])))
    return out


def _best(windows: list[tuple[float, float, Size3]], density: float) -> tuple[bool, Size3, float]:
    """Whether the best window is within the tolerance, the window, its evenness."""
    near = [w for w in windows if abs(w[0] / density - 1) <= TOLERANCE]
    if near:
        _, evenness, window = max(near, key=lambda w: w[1] - abs(w[0] / density - 1))
    else:
        _, evenness, window = min(windows, key=lambda w: (abs(w[0] / density - 1), -w[1]))
    return bool(near), window, evenness


def filled(grid: Size3, tile: Size3, block: Size3 | None) -> tuple[float, float]:
    """Shares of the kernel's key rows and query rows that hold tokens, for blocks of 64 or 128 rows.

    Query rows go by the 192 that three warpgroups take at a time, where a tile has three blocks.
    """
    unit = block or tile
    rows = 64 if math.prod(unit) <= 64 else 128
    per_unit = -(-math.prod(unit) // rows)
    keys = math.prod(count(grid, unit)) * per_unit * rows
    per_axis = [-(-t // u) for t, u in zip(tile, unit, strict=True)]
    step = 192 if rows == 128 and per_unit * math.prod(per_axis) >= 3 else rows
    queries = 0
    for held in product(*(_tile_units(n, r) for n, r in zip(count(grid, unit), per_axis, strict=True))):
        queries += -(-math.prod(held) * per_unit * rows // step) * step
    return math.prod(grid) / keys, math.prod(grid) / queries


def _tile_units(units: int, row: int) -> list[int]:
    """Units in each tile along one axis."""
    return [min(row, units - first) for first in range(0, units, row)]


@lru_cache(maxsize=256)
def fit_blocks(grid: Size3, even: bool = False) -> tuple[Size3, Size3]:
    """(block, tile) for a grid: one shape for every density, so that all profiles of a schedule share a token order.

    Blocks of at most 128 tokens, three in a row along one axis as the query tile; for grids of up to 4,096 tokens,
    blocks of at most 64 that are tiles themselves. Shapes that have a window within 10 % of most of DENSITIES come
    first; of these, those that fill as much of the kernel's work as the best does, less 3 %: time for a kept pair goes
    by that. Of what is left, the best sum counts the share filled, evenness of the windows and, against, elongation of
    the block in tokens and of the block grid. 81 frames at 720p: (21, 3, 2) on 1 x 15 x 40 blocks, tile (21, 9, 2); 126
    of 128 rows each. even: 15 % less may be filled, so that blocks cut all axes: (3, 5, 8) on 7 x 9 x 10.
    """
    grid = size3(grid, "grid")
    small = math.prod(grid) <= SMALL_GRID
    rows = 64 if small else 128
    share, elongation = EVEN if even else FULL
    shapes: list[tuple[int, float, float, Size3, Size3]] = []
    for block in _shapes(grid, rows):
        if math.prod(grid) / (math.prod(count(grid, block)) * rows) >= 0.75:
            for tile in _tiles_of(grid, block, small):
                near, evenness = _rank(grid, tile, block, elongation)
                fill = math.prod(filled(grid, tile, block))
                shapes.append((near, fill, fill + evenness, block, tile))
    if not shapes:  # a grid so thin that no compact block fills its rows
        block = fit_tile(grid, rows)
        return block, block
    most = max(near for near, *_ in shapes)
    shapes = [shape for shape in shapes if shape[0] == most]
    least = max(fill for _, fill, *_ in shapes) * share
    _, _, _, block, tile = max((shape for shape in shapes if shape[1] >= least), key=lambda shape: shape[2])
    return block, tile


def _tiles_of(grid: Size3, block: Size3, small: bool) -> list[Size3]:
    if small:
        return [block]
    tiles = []
    for axis in range(3):
        if block[axis] < grid[axis]:
            sides = [side * (ROW if i == axis else 1) for i, side in enumerate(block)]
            tiles.append((sides[0], sides[1], sides[2]))
    return tiles or [block]


def _rank(grid: Size3, tile: Size3, block: Size3, elongation: float) -> tuple[int, float]:
    """How many of DENSITIES the blocks have a window for, and how even those are, less elongation of the block and,
    with a weight, of the block grid.
    """
    windows = _windows(grid, tile, block)
    found = [_best(windows, density) for density in DENSITIES]
    evenness = sum(evenness for _, _, evenness in found) / len(found)
    units = [n for n, g in zip(count(grid, block), grid, strict=True) if g > 1] or [1]
    thin = 0.02 * math.log2(_elongation(grid, block)) + elongation * math.log2(max(units) / min(units))
    return sum(near for near, _, _ in found), evenness - thin
