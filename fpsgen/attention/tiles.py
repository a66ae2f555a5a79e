"""Cut the token grid (T, H, W) into 3D tiles, put tokens into tile order, and say which key tiles a query tile sees.

Legend: L tokens, M tiles, N kernel blocks, G list groups (1 shared, H, or B*H), K longest list. Sizes are (t, h, w)
in tokens, windows are (wt, wh, ww) in tiles. Source: arXiv 2506.04648, section 3 (tiles, windows); the border rule is
that of Sliding Tile Attention (arXiv 2502.04507). Tile order is a pure permutation of the real tokens: tiles at the
far edges are smaller, and padding exists only inside kernels, which see every tile as whole blocks of 64 or 128 rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

Size3 = tuple[int, int, int]
Window = str | tuple[int | float | str, int | float | str, int | float | str]

SMALL_GRID = 4096  # up to this many tokens, 64-token blocks keep enough tiles to choose from
MAX_ELONGATION = 5.0  # longest over shortest side of a fitted tile, of those that a window may cut
MAX_SPAN = 12.0  # the same of all sides


def _size3(value: object, name: str) -> Size3:
    parts = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(parts) != 3 or any(isinstance(p, bool) or not isinstance(p, int) or p < 1 for p in parts):
        raise ValueError(f"{name} is {value!r}.\nGive three positive integers (t, h, w).")
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class Tiling:
    """A token grid and the tile that cuts it; both (t, h, w) in tokens. Raises ValueError for sizes that do not fit."""

    grid: Size3
    tile: Size3

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _size3(self.grid, "grid"))
        object.__setattr__(self, "tile", _size3(self.tile, "tile"))
        if any(t > g for t, g in zip(self.tile, self.grid, strict=True)):
            raise ValueError(
                f"tile {self.tile} is larger than the token grid {self.grid}.\n"
                'Give a tile that fits in every axis, or tile="fit".'
            )

    @property
    def tile_grid(self) -> Size3:
        """Number of tiles along each axis."""
        t, h, w = (-(-g // s) for g, s in zip(self.grid, self.tile, strict=True))
        return t, h, w

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def num_tiles(self) -> int:
        return math.prod(self.tile_grid)

    def order(self) -> torch.Tensor:
        """int64 [L]: tiled = raster[order]. Tiles in raster order, tokens inside a tile in raster order."""
        axes = [torch.arange(g) // s for g, s in zip(self.grid, self.tile, strict=True)]
        _, rows, cols = self.tile_grid
        tile_id = (axes[0][:, None, None] * rows + axes[1][:, None]) * cols + axes[2]
        return torch.argsort(tile_id.flatten(), stable=True)

    def inverse(self) -> torch.Tensor:
        """int64 [L]: raster = tiled[inverse]."""
        return torch.argsort(self.order())

    def sizes(self) -> torch.Tensor:
        """int32 [M]: tokens in each tile; tiles at the far edges may be smaller."""
        sides = [
            torch.tensor([min(s, g - i * s) for i in range(n)], dtype=torch.int32)
            for g, s, n in zip(self.grid, self.tile, self.tile_grid, strict=True)
        ]
        return (sides[0][:, None, None] * sides[1][:, None] * sides[2]).flatten()


@lru_cache(maxsize=256)
def fit_tile(grid: Size3, rows: int | None = None) -> Size3:
    """The tile of at most `rows` tokens that fills kernel blocks best on this grid, among compact shapes.

    rows: None takes one block of 64 for grids of up to 4,096 tokens, else three blocks of 128, the size of the paper's
    (6, 8, 8). The score is the share of rows that hold real tokens, less 0.03 for every axis that the tile does not
    divide (a thin edge tile narrows its neighbours' window) and less 0.02 per doubling of longest over shortest side.
    An axis that the tile spans hardly counts as a side: no window cuts it. 81 frames at 720p: (21, 9, 2), 378 of 384
    rows; at 480p: (3, 30, 4), 360 of 384.
    """
    grid = _size3(grid, "grid")
    if rows is None:
        rows = 64 if math.prod(grid) <= SMALL_GRID else 384
    best, best_score = (1, 1, 1), -math.inf
    for t in range(1, min(grid[0], rows) + 1):
        for h in range(1, min(grid[1], rows // t) + 1):
            for w in range(1, min(grid[2], rows // (t * h)) + 1):
                tile = (t, h, w)
                free = [s for s, g in zip(tile, grid, strict=True) if s < g]
                sides = [s for s, g in zip(tile, grid, strict=True) if g > 1] or [1]
                long = max(free) / min(free) if free else 1.0
                if (long > MAX_ELONGATION or max(sides) > MAX_SPAN * min(sides)) and tile != (1, 1, 1):
                    continue
                tiles = math.prod(-(-g // s) for g, s in zip(grid, tile, strict=True))
                ragged = sum(g % s != 0 for g, s in zip(grid, tile, strict=True))
                score = math.prod(grid) / (tiles * rows) - 0.03 * ragged - 0.02 * math.log2(long)
                if score > best_score + 1e-12:
                    best, best_score = tile, score
    return best


def make_tiling(grid: Size3, tile: str | Size3 = "fit") -> Tiling:
    """Tiling of `grid` (t, h, w) by a given tile, clipped to the grid, or by the best-fitting one."""
    grid = _size3(tuple(grid), "grid")
    if isinstance(tile, str):
        if tile != "fit":
            raise ValueError(f'tile is {tile!r}.\nGive "fit" or three positive integers (t, h, w).')
        return Tiling(grid, fit_tile(grid))
    t, h, w = (min(s, g) for s, g in zip(_size3(tile, "tile"), grid, strict=True))
    return Tiling(grid, (t, h, w))


class BlockLayout:
    """How tiles lie in kernel blocks: every tile is padded to whole blocks, so no block crosses a tile.

    block: rows of a block, 64 if the largest tile holds at most 64 tokens, else 128. A tile fills its blocks one after
    the other; where all tiles are alike and can be cut evenly, they are, so that all blocks are alike. block_start,
    block_len int32 [N]: first token (tile order) and number of real tokens. tile_first_block int32 [M+1].
    blocks_per_tile: of the largest tile. rows int64 [N, block]: token of each row; rows of padding repeat the block's
    first token. token_block int64 [L]: block of each token.
    """

    def __init__(self, tiling: Tiling) -> None:
        sizes = tiling.sizes().long()
        self.tiling = tiling
        self.block = 64 if int(sizes.max()) <= 64 else 128
        per_tile = (sizes + self.block - 1) // self.block
        first = torch.cat([torch.zeros(1, dtype=torch.int64), per_tile.cumsum(0)])
        self.num_blocks = int(first[-1])
        tile_of = torch.repeat_interleave(torch.arange(len(sizes)), per_tile)
        self.blocks_per_tile = int(per_tile.max())
        size = int(sizes[0])
        even = bool((sizes == size).all()) and size % self.blocks_per_tile == 0
        step = size // self.blocks_per_tile if even else self.block
        offset = (torch.arange(self.num_blocks) - first[tile_of]) * step
        start = (sizes.cumsum(0) - sizes)[tile_of] + offset
        length = (sizes[tile_of] - offset).clamp(max=step)
        self.block_start, self.block_len = start.int(), length.int()
        self.tile_first_block = first.int()
        self.token_block = torch.repeat_interleave(torch.arange(self.num_blocks), length)
        lane = torch.arange(self.block)
        self.rows = start[:, None] + torch.where(lane < length[:, None], lane, 0)

    @cached_property
    def uniform(self) -> int:
        """Tokens per block where all blocks hold equally many, else 0."""
        return int(self.block_len[0]) if bool((self.block_len == self.block_len[0]).all()) else 0


@dataclass(frozen=True, eq=False)
class TileLists:
    """Key tiles of every query tile: indices int32 [G, M, K] padded with -1, counts int32 [G, M]. G is 1 (shared), H
    or B*H.

    An index appears at most once in a list; order is free; empty lists are allowed (output 0, LSE -inf).
    """

    indices: torch.Tensor
    counts: torch.Tensor

    def density(self, tiling: Tiling) -> float:
        """Kept token pairs over L squared, mean over groups."""
        sizes = tiling.sizes().double()
        keys = torch.where(self._valid, sizes[self.indices.long().clamp(min=0)], 0.0).sum(-1)
        return float((keys * sizes).sum(-1).mean() / tiling.num_tokens**2)

    @property
    def _valid(self) -> torch.Tensor:
        return torch.arange(self.indices.shape[-1]) < self.counts[..., None]

    def blocks(self, layout: BlockLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """The same lists in kernel blocks: indices int32 [G, M, KB] padded with -1, counts int32 [G, M]."""
        if layout.num_blocks == layout.tiling.num_tiles:
            return self.indices.contiguous(), self.counts.contiguous()
        first = layout.tile_first_block.long()
        tiles = self.indices.long().clamp(min=0)
        per = torch.where(self._valid, first[tiles + 1] - first[tiles], 0)
        most = int((first[1:] - first[:-1]).max())
        lane = torch.arange(most)
        block = torch.where(lane < per[..., None], first[tiles][..., None] + lane, -1).flatten(-2)
        rank = torch.argsort((block < 0).int(), dim=-1, stable=True)
        counts = per.sum(-1)
        longest = max(int(counts.max()), 1)
        return block.gather(-1, rank)[..., :longest].int().contiguous(), counts.int()

    @cached_property
    def groups(self) -> tuple[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], ...]:
        """Per list group: (query tiles, their common key tiles, sorted), one entry per distinct list."""
        out = []
        for index, count in zip(self.indices.tolist(), self.counts.tolist(), strict=True):
            found: dict[tuple[int, ...], list[int]] = {}
            for u, (row, n) in enumerate(zip(index, count, strict=True)):
                found.setdefault(tuple(sorted(row[:n])), []).append(u)
            out.append(tuple((tuple(queries), keys) for keys, queries in found.items()))
        return tuple(out)


def resolve_window(tile_grid: Size3, window: Window) -> Size3:
    """Window in tiles per axis, every entry odd or the whole axis.

    window: "all", or per axis an odd number of tiles, 0, "all" or anything not below the axis for the whole axis, or
    a share of the axis as a float in (0, 1] (the smallest odd number of tiles that covers at least that share).
    Raises ValueError for anything else.
    """
    if isinstance(window, str):
        if window != "all":
            raise ValueError(
                f'window is {window!r}.\nGive "all" or three entries (odd tiles, 0, "all" or a share below 1).'
            )
        return tile_grid
    if len(window) != 3:
        raise ValueError(f"window is {window!r}.\nGive one entry per axis: (wt, wh, ww).")
    out = []
    for entry, tiles in zip(window, tile_grid, strict=True):
        whole = type(entry) is int and (entry == 0 or entry >= tiles)
        if entry == "all" or whole:
            out.append(tiles)
        elif type(entry) is float and 0 < entry <= 1:
            out.append(min(tiles, math.ceil(entry * tiles - 1e-9) // 2 * 2 + 1))
        elif type(entry) is int and entry > 0 and entry % 2:
            out.append(entry)
        else:
            raise ValueError(
                f"window entry {entry!r} in {window!r} is not usable.\n"
                'Give an odd number of tiles, 0 or "all" for the whole axis, or a share such as 0.5.'
            )
    return out[0], out[1], out[2]


def window_lists(tiling: Tiling, window: Window = "all") -> TileLists:
    """Lists of one sliding window for all heads (G = 1): indices int32 [1, M, K], K = wt*wh*ww.

    At the border the window shifts inwards and is not cut, so every query tile sees equally many key tiles.
    """
    tiles = tiling.tile_grid
    sizes = resolve_window(tiles, window)
    axes = []
    for n, size in zip(tiles, sizes, strict=True):
        low = (torch.arange(n) - size // 2).clamp(0, n - size)
        axes.append(low[:, None] + torch.arange(size))
    t, h, w = axes
    _, rows, cols = tiles
    index = t[:, None, None, :, None, None] * rows + h[None, :, None, None, :, None]
    index = index * cols + w[None, None, :, None, None, :]
    index = index.reshape(1, tiling.num_tiles, math.prod(sizes)).int()
    return TileLists(index, torch.full(index.shape[:2], index.shape[-1], dtype=torch.int32))


def dense_lists(tiling: Tiling) -> TileLists:
    """Lists that keep every pair."""
    return window_lists(tiling, "all")


def lists_from_mask(mask: torch.Tensor) -> TileLists:
    """TileLists from a bool mask [G, M, M] (query tile, key tile); rows without a key give empty lists."""
    if mask.dim() != 3 or mask.shape[1] != mask.shape[2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}.\nGive bool [G, M, M]: query tile, key tile.")
    counts = mask.sum(-1)
    longest = max(int(counts.max()), 1)
    index = torch.argsort((~mask).int(), dim=-1, stable=True)[..., :longest]
    index = torch.where(torch.arange(longest) < counts[..., None], index, -1)
    return TileLists(index.int(), counts.int())


def mask_from_lists(lists: TileLists, layout: BlockLayout) -> torch.Tensor:
    """bool [G, L, L] in tile order: which key (last axis) a query sees. Quadratic in L: for small grids and tests."""
    tiles = layout.tiling.num_tiles
    seen = torch.zeros(*lists.counts.shape, tiles + 1, dtype=torch.bool)
    seen.scatter_(-1, torch.where(lists._valid, lists.indices.long(), tiles), True)
    tile_of = torch.repeat_interleave(torch.arange(tiles), layout.tiling.sizes().long())
    return seen[:, tile_of][:, :, tile_of]


__all__ = [
    "BlockLayout",
    "Size3",
    "TileLists",
    "Tiling",
    "Window",
    "dense_lists",
    "fit_tile",
    "lists_from_mask",
    "make_tiling",
    "mask_from_lists",
    "resolve_window",
    "window_lists",
]
