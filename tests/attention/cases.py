"""Shapes and lists that every implementation is tested on, shared by CPU, interpreter and GPU tests."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import BlockLists, DeviceTables, block_lists, device_tables
from fpsgen.attention.tiles import BlockLayout, TileLists, Tiling, lists_from_mask, window_lists, with_dense_rows


class Laid(NamedTuple):
    """A case's tables and lists on a device, and the same lists in tiles, as the reference takes them."""

    tables: DeviceTables
    lists: BlockLists
    tile_lists: TileLists

    @property
    def layout(self) -> BlockLayout:
        return self.tables.layout


@dataclass(frozen=True)
class Case:
    """lists: a window, or "unsorted", "empty" (rows and tiles without keys), "per_head", "per_batch_head". block: 3D
    key block that divides the tile. prefix, suffix: tokens that see and are seen by all.
    """

    name: str
    grid: tuple[int, int, int]
    tile: tuple[int, int, int]
    lists: str | tuple[int, int, int] = "all"
    batch: int = 1
    heads: int = 1
    dim: int = 64
    granularity: int = 1
    block: tuple[int, int, int] | None = None
    prefix: int = 0
    suffix: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix + math.prod(self.grid) + self.suffix

    def lay(self, device: str = "cpu") -> Laid:
        tiling = Tiling(self.grid, self.tile, self.block)
        layout = BlockLayout(tiling, self.prefix, self.suffix)
        lists = with_dense_rows(self._lists(tiling), layout)
        return Laid(device_tables(layout, device), block_lists(layout, lists, device), lists)

    def _lists(self, tiling: Tiling) -> TileLists:
        if isinstance(self.lists, tuple) or self.lists == "all":
            return window_lists(tiling, self.lists)
        tiles, units = tiling.num_tiles, math.prod(tiling.unit_grid)
        groups = {"per_head": self.heads, "per_batch_head": self.batch * self.heads}.get(self.lists, 1)
        random = torch.Generator().manual_seed(3)
        mask = torch.rand(groups, tiles, units, generator=random) < 0.5
        mask |= torch.eye(tiles, units, dtype=torch.bool)
        if self.lists == "empty":
            mask[:, ::2] = False
            mask[:, :, 1] = False
        lists = lists_from_mask(mask)
        if self.lists == "unsorted":
            for row, count in zip(lists.indices[0], lists.counts[0].tolist(), strict=True):
                row[:count] = row[:count][torch.randperm(count, generator=random)]
        return lists

    def inputs(self, dtype=torch.float32, device: str = "cpu", seed: int = 11) -> tuple[torch.Tensor, ...]:
        """q, k, v [B, L, H, D] on `device`, the same for every device; V has a mean, so scale errors show."""
        random = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.tokens, self.heads, self.dim)
        q, k, v = (torch.randn(shape, generator=random) for _ in range(3))
        return tuple(x.to(device, dtype) for x in (q * 1.5, k, v + 0.2))

    def norm_rope(self, dtype=torch.float32, device: str = "cpu") -> NormRope:
        """Weights unlike each other, angles that differ in every token and pair, an eps that shows."""
        random = torch.Generator().manual_seed(12)
        norm_q, norm_k = torch.rand(2, self.heads * self.dim, generator=random) + 0.5
        angle = torch.rand(self.tokens, self.dim // 2, generator=random) * 6.28
        table = torch.cat((angle.cos(), angle.sin()), -1)
        return NormRope(norm_q.to(device, dtype), norm_k.to(device, dtype), table.to(device), 0.25)


CASES = [
    Case("one_tile", (2, 4, 4), (2, 4, 4)),
    Case("full_blocks", (4, 8, 4), (4, 4, 4), batch=2),
    Case("ragged", (5, 6, 7), (2, 4, 4)),
    Case("ragged_window", (5, 6, 7), (2, 4, 4), (3, 1, 1), heads=2),
    Case("tile_of_three_blocks", (6, 8, 9), (6, 8, 8), (1, 1, 1), dim=128),
    Case("shared_scales", (5, 6, 7), (2, 4, 4), granularity=3),
    Case("unsorted", (4, 6, 6), (2, 3, 3), "unsorted"),
    Case("empty_rows", (4, 6, 6), (2, 3, 3), "empty", heads=2),
    Case("per_head", (4, 6, 6), (2, 3, 3), "per_head", batch=2, heads=2),
    Case("per_batch_head", (4, 6, 6), (2, 3, 3), "per_batch_head", batch=2, heads=2),
    Case("small_head_dim", (3, 5, 4), (3, 5, 2), dim=24),
    Case("blocks_in_a_row", (4, 7, 9), (2, 3, 12), (1, 0, 3), heads=2, granularity=2, block=(2, 3, 4)),
    Case("blocks_per_head", (4, 6, 6), (2, 3, 6), "per_head", batch=2, heads=2, block=(2, 3, 2)),
    Case("dense_rows", (5, 6, 7), (2, 4, 4), (3, 1, 1), heads=2, prefix=70, suffix=3),
]
# layouts of the kernels for Hopper: head dim 128, blocks of 128
HOPPER_CASES = [
    Case("one_tile", (4, 5, 6), (4, 5, 6), dim=128),
    Case("ragged_window", (9, 11, 13), (4, 5, 6), (3, 1, 3), heads=2, dim=128),
    Case("three_blocks", (6, 8, 9), (6, 8, 8), (1, 1, 1), dim=128),
    Case("ragged_three", (13, 17, 19), (6, 8, 8), (3, 3, 1), batch=2, dim=128),
    Case("even_three", (21, 18, 8), (21, 9, 2), (1, 1, 3), heads=2, dim=128),
    Case("unsorted", (6, 12, 18), (3, 6, 9), "unsorted", dim=128),
    Case("empty_rows", (6, 12, 18), (3, 6, 9), "empty", heads=2, dim=128),
    Case("per_head", (6, 12, 18), (3, 6, 9), "per_head", batch=2, heads=2, dim=128),
    Case("per_batch_head", (6, 12, 18), (6, 8, 8), "per_batch_head", batch=2, heads=2, dim=128),
    Case("shared_scales", (9, 11, 13), (4, 5, 6), dim=128, granularity=3),
    Case("head_dim_96", (9, 11, 13), (4, 5, 6), (3, 3, 1), heads=3, dim=96),
    Case("blocks_in_a_row", (9, 20, 26), (3, 15, 8), (1, 3, 3), heads=2, dim=128, granularity=2, block=(3, 5, 8)),
    Case("blocks_per_head", (6, 12, 18), (3, 12, 6), "per_head", batch=2, heads=2, dim=128, block=(3, 4, 6)),
    Case("dense_rows", (9, 20, 26), (3, 15, 8), (1, 3, 3), heads=2, dim=128, block=(3, 5, 8), prefix=226, suffix=5),
]
BY_NAME = {case.name: case for case in CASES}
IDS = list(BY_NAME)
EDGES = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193]  # key lengths around block edges


def line_case(length: int) -> Case:
    """A grid of one row: tiles of up to 64 tokens, the last as long as remains."""
    return Case(f"line_{length}", (1, 1, length), (1, 1, min(length, 64)))
