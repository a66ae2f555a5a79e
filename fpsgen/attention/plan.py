"""Methods (policy x precision) as table rows, and the frozen plan that one attention layer runs by.

Source: arXiv 2506.04648, table of ablations (BF16, FP8 alone, STA alone, both).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

from fpsgen.attention.tiles import (
    BlockLayout,
    Size3,
    TileLists,
    Tiling,
    Window,
    make_tiling,
    resolve_window,
    window_lists,
)

IMPLEMENTATIONS = ("auto", "reference", "triton")


@dataclass(frozen=True)
class Method:
    """fp8: Q, K, V and P in E4M3. windowed: a query tile sees a sliding window of key tiles, else all."""

    name: str
    fp8: bool
    windowed: bool


METHODS = {
    method.name: method
    for method in (
        Method("bf16", fp8=False, windowed=False),
        Method("fp8", fp8=True, windowed=False),
        Method("sta", fp8=False, windowed=True),
        Method("fps", fp8=True, windowed=True),
    )
}


class BlockLists(NamedTuple):
    """Which key blocks each query tile sees, on one device. G is 1 (shared), H, or B*H; M query tiles; K longest list.

    list_index: int32 [G, M, K], key blocks of each query tile, padded with -1. list_count: int32 [G, M].
    """

    list_index: torch.Tensor
    list_count: torch.Tensor


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """Constants of a layout on one device: permutations int64 [L] (order: tile order from raster order; inverse: back),
    and int32 [N] of kernel blocks: first token, tokens, query tile.
    """

    layout: BlockLayout
    order: torch.Tensor
    inverse: torch.Tensor
    block_start: torch.Tensor
    block_len: torch.Tensor
    block_tile: torch.Tensor
    _work_tiles: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def work_tiles(self, consumers: int) -> torch.Tensor:
        """int32 [n, 4], work tiles of the sm_90 kernels, 64 query rows for each consumer warpgroup: first row and
        end of its query tile (both in padded rows), query tile, 0. Units without a token are left out.
        """
        if consumers not in self._work_tiles:
            step, block = 64 * consumers, self.layout.block
            bounds = (self.layout.tile_first_block.long() * block).tolist()
            last = self.layout.block_len[(self.layout.tile_first_block[1:] - 1).long()].tolist()
            rows = [
                (row, end, tile, 0)
                for tile, (start, end) in enumerate(pairwise(bounds))
                for row in range(start, end - block + last[tile], step)
            ]
            self._work_tiles[consumers] = torch.tensor(rows, dtype=torch.int32).to(self.block_start.device)
        return self._work_tiles[consumers]


@dataclass(frozen=True)
class AttentionPlan:
    """Everything that shapes one attention call but the tensors; hashable, with `tile` and `window` resolved on
    construction, which also sets `tiling` and `dense`.

    grid: (T, H, W) tokens. tile: "fit" or (t, h, w). window: "all" or one entry per axis, see tiles.resolve_window.
    granularity: kernel blocks that share a Q or K scale. method: a key of METHODS. impl: "auto" (CPU: reference,
    CUDA: Triton, dense bf16: SDPA), or "reference" / "triton" to insist. smooth_k: take the mean over all tokens off
    the keys before they are quantized, which softmax does not see (arXiv 2410.02367, section 4.2); FP8 methods only.
    Raises ValueError for what a method does not have, and for unknown names.
    """

    grid: Size3
    tile: str | Size3 = "fit"
    window: Window = "all"
    granularity: int = 1
    method: str = "fps"
    impl: str = "auto"
    smooth_k: bool = False
    tiling: Tiling = field(init=False, repr=False, compare=False)
    dense: bool = field(init=False, repr=False, compare=False)  # every query sees every key

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}.\nGive one of {', '.join(METHODS)}.")
        if self.impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl is {self.impl!r}.\nGive one of {', '.join(IMPLEMENTATIONS)}.")
        if isinstance(self.granularity, bool) or not isinstance(self.granularity, int) or self.granularity < 1:
            raise ValueError(
                f"granularity is {self.granularity!r}.\nGive the number of kernel blocks that share a scale, 1 or more."
            )
        if self.smooth_k and not METHODS[self.method].fp8:
            raise ValueError(
                f"smooth_k is for FP8, but the method is {self.method!r}.\nLeave it out, or give method fp8 or fps."
            )
        tiling = make_tiling(self.grid, self.tile)
        window = resolve_window(tiling.tile_grid, self.window)
        if window != tiling.tile_grid and not METHODS[self.method].windowed:
            raise ValueError(
                f"method {self.method!r} sees all tiles, but the window is {self.window!r}.\n"
                'Give window="all", or a method with a window (sta, fps).'
            )
        object.__setattr__(self, "grid", tiling.grid)
        object.__setattr__(self, "tile", tiling.tile)
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "tiling", tiling)
        object.__setattr__(self, "dense", window == tiling.tile_grid)

    @property
    def fp8(self) -> bool:
        return METHODS[self.method].fp8

    @property
    def density(self) -> float:
        """Kept token pairs over L squared."""
        return _density(self)

    def kernel(self, device: torch.device | str, head_dim: int | None = None) -> str:
        """What computes this plan on `device`: "sdpa", "reference", "triton" (the portable kernel), or "hopper", its
        like on sm_90 at head dims of 65 to 128 and tiles of more than 64 tokens, if head_dim says so.
        """
        if self.impl != "auto":
            return self.impl
        if self.dense and not self.fp8:
            return "sdpa"
        device = torch.device(device)
        if device.type != "cuda":
            return "reference"
        fits = head_dim is not None and 64 < head_dim <= 128 and math.prod(self.tiling.tile) > 64
        return "hopper" if fits and torch.cuda.get_device_capability(device) == (9, 0) else "triton"

    def tables(self, device: torch.device | str) -> DeviceTables:
        """Permutations and block tables on `device`; built once per plan and device."""
        return _tables(self.tiling, torch.device(device))

    def lists(self, device: torch.device | str) -> BlockLists:
        """The window's lists of key blocks on `device`; built once per plan and device."""
        return _lists(self, torch.device(device))

    def tile_lists(self) -> TileLists:
        """The window's lists of key tiles, on the CPU."""
        return _tile_lists(self)


@lru_cache(maxsize=256)
def _density(plan: AttentionPlan) -> float:
    return 1.0 if plan.dense else plan.tile_lists().density(plan.tiling)


@lru_cache(maxsize=64)
def _tile_lists(plan: AttentionPlan) -> TileLists:
    return window_lists(plan.tiling, plan.window)


@lru_cache(maxsize=64)
def _tables(tiling: Tiling, device: torch.device) -> DeviceTables:
    return device_tables(BlockLayout(tiling), device)


@lru_cache(maxsize=64)
def _lists(plan: AttentionPlan, device: torch.device) -> BlockLists:
    return block_lists(plan.tables(device).layout, plan.tile_lists(), device)


def device_tables(layout: BlockLayout, device: torch.device | str) -> DeviceTables:
    """DeviceTables of any layout."""
    first = layout.tile_first_block.long()
    block_tile = torch.repeat_interleave(torch.arange(len(first) - 1), first[1:] - first[:-1]).int()
    order = layout.tiling.order()
    moved = (order, torch.argsort(order), layout.block_start, layout.block_len, block_tile)
    return DeviceTables(layout, *(x.to(device) for x in moved))


def block_lists(layout: BlockLayout, lists: TileLists, device: torch.device | str) -> BlockLists:
    """BlockLists of any lists of key tiles."""
    return BlockLists(*(x.to(device) for x in lists.blocks(layout)))
