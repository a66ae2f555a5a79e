"""Put the tokens of a grid into tile order, lay them into kernel blocks, and say which keys a query tile sees.

Legend: L tokens, M query tiles, U units (what lists count: key blocks of a tiling that has them, else tiles), N kernel
blocks, G list groups (1 shared, H, or B*H), K longest list. Sizes are (t, h, w) in tokens, windows in units. Tile order
is a pure permutation of the real tokens: pieces at the far edges are smaller, and padding exists only inside kernels,
which see every piece as whole blocks of 64 or 128 rows. Which sizes fit a grid: windows.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from fpsgen.attention.windows import Size3, Window, count, resolve_tile, resolve_window, size3, window_start


@dataclass(frozen=True)
class Tiling:
    """A token grid, the query tile that cuts it and, if windows count smaller pieces, the key block; all (t, h, w) in
    tokens. A block divides the tile. Raises ValueError for sizes that do not fit.
    """

    grid: Size3
    tile: Size3
    block: Size3 | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", size3(self.grid, "grid"))
        object.__setattr__(self, "tile", size3(self.tile, "tile"))
        if self.block is not None:
            object.__setattr__(self, "block", size3(self.block, "block"))
            if math.prod(self.block) > 128 or any(t % b for t, b in zip(self.tile, self.block, strict=True)):
                raise ValueError(
                    f"block {self.block} does not go with tile {self.tile}.\n"
                    "Give a block of at most 128 tokens that divides the tile in every axis."
                )
        if any(t > g for t, g in zip(self.block or self.tile, self.grid, strict=True)):
            raise ValueError(
                f"{'block' if self.block else 'tile'} {self.block or self.tile} is larger than the token grid "
                f'{self.grid}.\nGive one that fits in every axis, or tile="fit".'
            )

    @property
    def tile_grid(self) -> Size3:
        """Number of query tiles along each axis."""
        return count(self.grid, self.tile)

    @property
    def unit_grid(self) -> Size3:
        """Number of units along each axis."""
        return count(self.grid, self.block or self.tile)

    @property
    def units_per_tile(self) -> Size3:
        """Units of a whole query tile along each axis."""
        return count(self.tile, self.block) if self.block else (1, 1, 1)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def num_tiles(self) -> int:
        return math.prod(self.tile_grid)

    def order(self) -> torch.Tensor:
        """int64 [L]: tiled = raster[order]. Tiles in raster order, blocks in raster order inside a tile, tokens too."""
        piece = _raster(self.grid, self.tile)
        if self.block:
            piece = piece * math.prod(self.unit_grid) + _raster(self.grid, self.block)
        return torch.argsort(piece.flatten(), stable=True)

    def inverse(self) -> torch.Tensor:
        """int64 [L]: raster = tiled[inverse]."""
        return torch.argsort(self.order())

    def sizes(self) -> torch.Tensor:
        """int32 [M]: tokens in each tile; tiles at the far edges may be smaller."""
        return _sizes(self.grid, self.tile).flatten()

    def unit_order(self) -> torch.Tensor:
        """int64 [U]: units as they follow each other in tile order, by their place in raster order."""
        return torch.argsort(_raster(self.unit_grid, self.units_per_tile).flatten(), stable=True)

    def unit_sizes(self) -> torch.Tensor:
        """int32 [U]: tokens in each unit, in tile order."""
        return _sizes(self.grid, self.block or self.tile).flatten()[self.unit_order()]


def _raster(grid: Size3, piece: Size3) -> torch.Tensor:
    """int64 [T, H, W]: number of the piece that each cell of the grid lies in."""
    axes = [torch.arange(g) // s for g, s in zip(grid, piece, strict=True)]
    _, rows, cols = count(grid, piece)
    return (axes[0][:, None, None] * rows + axes[1][:, None]) * cols + axes[2]


def _sizes(grid: Size3, piece: Size3) -> torch.Tensor:
    """int32 [pieces along t, h, w]: cells in each piece."""
    sides = [
        torch.tensor([min(s, g - i * s) for i in range(n)], dtype=torch.int32)
        for g, s, n in zip(grid, piece, count(grid, piece), strict=True)
    ]
    return sides[0][:, None, None] * sides[1][:, None] * sides[2]


def make_tiling(grid: Size3, tile: str | Size3 = "fit", block: Size3 | None = None) -> Tiling:
    """Tiling of `grid` (t, h, w) by a tile that windows.resolve_tile takes, or by a tile in sizes and its 3D block."""
    if block is not None:
        return Tiling(grid, size3(tile, "tile"), block)
    return Tiling(grid, *resolve_tile(grid, tile))


class BlockLayout:
    """How tokens lie in kernel blocks of 64 or 128 rows; no block crosses a unit.

    prefix, suffix: tokens before and after those of the grid, in blocks, units and tiles of their own.

    block: rows of a kernel block, 64 if the largest unit holds at most 64 tokens, else 128. A tile without 3D blocks
    fills its kernel blocks one after the other; where all tiles are alike and can be cut evenly, they are, so that all
    blocks are alike. block_start, block_len int32 [N]: first token (tile order) and number of real tokens.
    tile_first_block int32 [M+1], unit_first_block int32 [U+1]: of query tiles and of units. tile_sizes, unit_sizes
    int64 [M], [U]: tokens. blocks_per_tile: of the largest tile. rows int64 [N, block]: token of each row; rows of
    padding repeat the block's first token. token_block int64 [L]: block of each token. dense_units: units of prefix and
    suffix, dense_tiles: their tiles (before, after).
    """

    def __init__(self, tiling: Tiling, prefix: int = 0, suffix: int = 0) -> None:
        self.tiling, self.prefix, self.suffix = tiling, prefix, suffix
        self.num_tokens = prefix + tiling.num_tokens + suffix
        units = tiling.unit_sizes().long()
        self.block = 64 if int(units.max()) <= 64 else 128
        per_tile = _sizes(tiling.unit_grid, tiling.units_per_tile).flatten().long()  # units
        outer = [_even(tokens, self.block) for tokens in (prefix, suffix)]
        row = max(int(per_tile.max()), 1)
        tiles = [_sizes((1, 1, len(cut)), (1, 1, row)).flatten().long() if len(cut) else cut for cut in outer]
        self.dense_units, self.dense_tiles = tuple(map(len, outer)), tuple(map(len, tiles))
        self.unit_sizes = torch.cat([outer[0], units, outer[1]])
        tile_units = torch.cat([tiles[0], per_tile, tiles[1]])

        per_unit = (self.unit_sizes + self.block - 1) // self.block
        self.unit_first_block = _starts(per_unit).int()
        self.tile_first_block = self.unit_first_block[_starts(tile_units)]
        self.tile_sizes = _starts(self.unit_sizes)[_starts(tile_units)].diff()
        self.num_tiles, self.num_units = len(tile_units), len(per_unit)
        self.num_blocks = int(self.unit_first_block[-1])
        self.blocks_per_tile = int(self.tile_first_block.diff().max())
        unit_of = torch.repeat_interleave(torch.arange(self.num_units), per_unit)
        alike = bool((self.unit_sizes == self.unit_sizes[0]).all()) and not int(self.unit_sizes[0]) % int(per_unit[0])
        step = int(self.unit_sizes[0]) // int(per_unit[0]) if alike else self.block
        offset = (torch.arange(self.num_blocks) - self.unit_first_block[unit_of].long()) * step
        start = _starts(self.unit_sizes)[unit_of] + offset
        length = (self.unit_sizes[unit_of] - offset).clamp(max=step)
        self.block_start, self.block_len = start.int(), length.int()
        self.token_block = torch.repeat_interleave(torch.arange(self.num_blocks), length)
        lane = torch.arange(self.block)
        self.rows = start[:, None] + torch.where(lane < length[:, None], lane, 0)

    @cached_property
    def uniform(self) -> int:
        """Tokens per block where all blocks hold equally many, else 0."""
        return int(self.block_len[0]) if bool((self.block_len == self.block_len[0]).all()) else 0

    @cached_property
    def block_tile(self) -> torch.Tensor:
        """int64 [N]: query tile of each block."""
        return torch.repeat_interleave(torch.arange(self.num_tiles), self.tile_first_block.long().diff())

    @cached_property
    def block_unit(self) -> torch.Tensor:
        """int64 [N]: unit of each block."""
        return torch.repeat_interleave(torch.arange(self.num_units), self.unit_first_block.long().diff())

    def order(self) -> torch.Tensor:
        """int64 [L]: tiled = raster[order], prefix and suffix in place."""
        every = torch.arange(self.num_tokens)
        grid = self.tiling.order() + self.prefix
        return torch.cat([every[: self.prefix], grid, every[self.num_tokens - self.suffix :]])


def _starts(sizes: torch.Tensor) -> torch.Tensor:
    """int64 [n+1]: where pieces of these sizes begin and end."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])


def _even(tokens: int, most: int) -> torch.Tensor:
    """int64: sizes of the fewest pieces of at most `most` tokens, as equal as can be."""
    pieces = -(-tokens // most)
    return torch.tensor([tokens // pieces + (i < tokens % pieces) for i in range(pieces)], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class TileLists:
    """Units that each query tile sees: indices int32 [G, M, K] padded with -1, counts int32 [G, M]. G is 1 (shared), H
    or B*H.

    An index appears at most once in a list; order is free; empty lists are allowed (output 0, LSE -inf).
    """

    indices: torch.Tensor
    counts: torch.Tensor

    def density(self, layout: BlockLayout) -> float:
        """Kept token pairs over all pairs, mean over groups."""
        units = layout.unit_sizes.double()
        keys = torch.where(self._valid, units[self.indices.long().clamp(min=0)], 0.0).sum(-1)
        return float((keys * layout.tile_sizes).sum(-1).mean() / layout.num_tokens**2)

    @property
    def _valid(self) -> torch.Tensor:
        return torch.arange(self.indices.shape[-1], device=self.counts.device) < self.counts[..., None]

    def blocks(self, layout: BlockLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """The same lists in kernel blocks: indices int32 [G, M, KB] padded with -1, counts int32 [G, M].

        On the lists' device, without waiting for it.
        """
        if layout.num_blocks == layout.num_units:
            return self.indices.contiguous(), self.counts.contiguous()
        first = layout.unit_first_block.long()
        most = int(first.diff().max())
        same = bool((first.diff() == most).all())
        first = first.to(self.indices.device)
        units = self.indices.long().clamp(min=0)
        per = torch.where(self._valid, first[units + 1] - first[units], 0)
        lane = torch.arange(most, device=first.device)
        block = torch.where(lane < per[..., None], first[units][..., None] + lane, -1).flatten(-2)
        if not same:  # close the gaps that smaller units leave
            block = block.gather(-1, torch.argsort((block < 0).int(), dim=-1, stable=True))
        return block.int().contiguous(), per.sum(-1).int()


def concatenate(lists: list[TileLists]) -> TileLists:
    """Groups of several lists one after the other."""
    longest = max(some.indices.shape[-1] for some in lists)
    indices = [F.pad(some.indices, (0, longest - some.indices.shape[-1]), value=-1) for some in lists]
    return TileLists(torch.cat(indices), torch.cat([some.counts for some in lists]))


def window_lists(tiling: Tiling, window: Window = "all") -> TileLists:
    """Lists of one sliding window for all heads (G = 1): indices int32 [1, M, K], K = wt*wh*ww.

    At the border the window shifts inwards and is not cut, so every query tile sees equally many units.
    """
    units, group = tiling.unit_grid, tiling.units_per_tile
    sizes = resolve_window(units, window, group)
    axes = []
    for n, row, size in zip(units, group, sizes, strict=True):
        low = torch.tensor([window_start(i, min(i + row, n), size, n) for i in range(0, n, row)])
        axes.append(low[:, None] + torch.arange(size))
    t, h, w = axes
    _, rows, cols = units
    index = t[:, None, None, :, None, None] * rows + h[None, :, None, None, :, None]
    index = index * cols + w[None, None, :, None, None, :]
    index = index.reshape(1, tiling.num_tiles, math.prod(sizes))
    if tiling.block:  # from raster order to tile order, ascending
        index = torch.argsort(tiling.unit_order())[index].sort(-1).values
    return TileLists(index.int(), torch.full(index.shape[:2], index.shape[-1], dtype=torch.int32))


def with_dense_rows(lists: TileLists, layout: BlockLayout) -> TileLists:
    """Lists of the grid alone, over its own units, to which the layout's prefix and suffix are added: their tiles see
    every unit, and every tile sees theirs. On the lists' device, without waiting for it.
    """
    before, after = layout.dense_units
    if not before + after:
        return lists
    device, (groups, tiles, longest) = lists.indices.device, lists.indices.shape
    every = torch.arange(layout.num_units, device=device, dtype=torch.int32)
    dense = torch.cat([every[:before], every[layout.num_units - after :]])
    width = max(layout.num_units, before + after + longest)
    index = torch.full((groups, layout.num_tiles, width), -1, device=device, dtype=torch.int32)
    counts = torch.full((groups, layout.num_tiles), layout.num_units, device=device, dtype=torch.int32)
    index[:, :, : layout.num_units] = every
    grid = slice(layout.dense_tiles[0], layout.dense_tiles[0] + tiles)
    index[:, grid] = -1
    index[:, grid, : before + after] = dense
    index[:, grid, before + after : before + after + longest] = torch.where(
        lists.indices < 0, lists.indices, lists.indices + before
    )
    counts[:, grid] = lists.counts + (before + after)
    return TileLists(index, counts)


def lists_from_mask(mask: torch.Tensor, longest: int = 0) -> TileLists:
    """TileLists from a bool mask [G, M, U] (query tile, unit), on its device; rows without a key give empty lists.

    longest: K, no shorter than any list, so that a GPU is not waited for; 0 takes the longest list.
    """
    if mask.dim() != 3:
        raise ValueError(f"mask has shape {tuple(mask.shape)}.\nGive bool [G, M, U]: query tile, key unit.")
    counts = mask.sum(-1)
    longest = longest or max(int(counts.max()), 1)
    index = torch.argsort((~mask).int(), dim=-1, stable=True)[..., :longest]
    index = torch.where(torch.arange(longest, device=mask.device) < counts[..., None], index, -1)
    return TileLists(index.int(), counts.int())


def mask_from_lists(lists: TileLists, layout: BlockLayout) -> torch.Tensor:
    """bool [G, L, L] in tile order: which key (last axis) a query sees. Quadratic in L: for small grids and tests."""
    seen = torch.zeros(*lists.counts.shape, layout.num_units + 1, dtype=torch.bool)
    seen.scatter_(-1, torch.where(lists._valid, lists.indices.long(), layout.num_units), True)
    tile_of = torch.repeat_interleave(torch.arange(layout.num_tiles), layout.tile_sizes)
    unit_of = torch.repeat_interleave(torch.arange(layout.num_units), layout.unit_sizes)
    return seen[:, tile_of][:, :, unit_of]
