"""The frozen plan that one attention layer runs by, and what kernels read of it on a device."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from fpsgen.attention.implementations import IMPLEMENTATIONS
from fpsgen.attention.methods import Method, Precision, find_method
from fpsgen.attention.methods.base import Option
from fpsgen.attention.profile import Profile
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.sparse_sdpa import TokenGroups, token_groups
from fpsgen.attention.tiles import (
    BlockLayout,
    TileLists,
    Tiling,
    concatenate,
    make_tiling,
    window_lists,
    with_dense_rows,
)
from fpsgen.attention.windows import Size3, Window, head_windows, resolve_window, window_density

GPU_KERNELS = ("triton", "hopper")
PRECISIONS = (  # of Q.K and P.V, that kernels have
    (Precision.BF16, Precision.BF16),
    (Precision.E4M3, Precision.E4M3),
    (Precision.INT8, Precision.E4M3),
)


def leaves_out(pv_threshold: float) -> bool:
    """Whether a threshold of attention_kernel leaves out key blocks that count: from 20 on their P is 2^-20 of the
    largest value or less, which is 0 in E4M3.
    """
    return 0 < pv_threshold < 20


class BlockLists(NamedTuple):
    """Which key blocks each query tile sees, on one device. G is 1 (shared), H, or B*H; M query tiles; K longest list.

    list_index: int32 [G, M, K], key blocks of each query tile, padded with -1. list_count: int32 [G, M].
    """

    list_index: torch.Tensor
    list_count: torch.Tensor


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """Constants of a layout on one device: permutations int64 [L] (order: tile order from raster order; inverse: back),
    and int32 [N] of kernel blocks: first token, tokens, query tile, unit.
    """

    layout: BlockLayout
    order: torch.Tensor
    inverse: torch.Tensor
    block_start: torch.Tensor
    block_len: torch.Tensor
    block_tile: torch.Tensor
    block_unit: torch.Tensor
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
    """Everything about one kind of attention call but the tensors. Hashable; equal plans share their tables.

    grid: tokens (T, H, W). tile, block: see tiles.make_tiling; afterwards the sizes, block None where windows count
    tiles. window: see windows.resolve_window; afterwards in units. granularity: kernel blocks that share a Q or K
    scale. method: a key of METHODS. impl: "auto" (CPU: sparse SDPA, CUDA: Triton, dense 16 bit: SDPA), or "reference" /
    "triton" to insist. smooth_k: take the mean over all tokens off the keys before they are quantized, which softmax
    does not see (arXiv 2410.02367, section 4.2); None is the method's default. prefix, suffix: tokens before and after
    those of the grid, which see and are seen by all. options: of the method's own hyper-parameters, those that differ
    from its defaults. Raises ValueError for what a method does not have, and for unknown names.
    """

    grid: Size3
    tile: str | Size3 = "fit"
    window: Window = "all"
    granularity: int = 1
    method: str = "fps"
    impl: str = "auto"
    smooth_k: bool | None = None
    block: Size3 | None = None
    prefix: int = 0
    suffix: int = 0
    options: Mapping[str, Option] | tuple[tuple[str, Option], ...] = ()
    tiling: Tiling = field(init=False, repr=False, compare=False)
    windows: tuple[Size3, ...] = field(init=False, repr=False, compare=False)  # one for all heads, or one for each
    dense: bool = field(init=False, repr=False, compare=False)  # every query sees every key
    options_text: str = field(init=False, repr=False, compare=False)  # options as JSON, as operators take them

    def __post_init__(self) -> None:
        method = find_method(self.method)
        if (method.qk, method.pv) not in PRECISIONS:
            raise ValueError(
                f"method {self.method!r} multiplies Q.K in {method.qk.value} and P.V in {method.pv.value}.\n"
                f"Give a pair that the kernels have: {', '.join(f'{a.value} and {b.value}' for a, b in PRECISIONS)}."
            )
        if self.impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl is {self.impl!r}.\nGive one of {', '.join(IMPLEMENTATIONS)}.")
        for name, least in (("granularity", 1), ("prefix", 0), ("suffix", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} is {value!r}.\nGive an integer from {least}.")
        if self.smooth_k is None:
            object.__setattr__(self, "smooth_k", method.smooth_k)
        if not isinstance(self.smooth_k, bool):
            raise ValueError(f"smooth_k is {self.smooth_k!r}.\nGive true, false, or None for the method's default.")
        if self.smooth_k and not method.quantized:
            raise ValueError(
                f"smooth_k is for quantized keys, but method {self.method!r} has none.\n"
                "Leave it out, or give a method such as fp8 or fps."
            )
        tiling = make_tiling(self.grid, self.tile, self.block)
        window = resolve_window(tiling.unit_grid, self.window, tiling.units_per_tile)
        windows = head_windows(self._head_windows, tiling.unit_grid, tiling.units_per_tile)
        if windows and window != tiling.unit_grid:
            raise ValueError(f"there are windows of heads and the window {self.window!r}.\nGive one of the two.")
        if window != tiling.unit_grid and not method.windowed:
            raise ValueError(
                f"method {self.method!r} takes no window, but the window is {self.window!r}.\n"
                'Give window="all", or a method with a window such as sta or fps.'
            )
        for name, value in (("grid", tiling.grid), ("tile", tiling.tile), ("block", tiling.block), ("window", window)):
            object.__setattr__(self, name, value)
        if not isinstance(self.options, Mapping | tuple | list):
            raise ValueError(f"options are {self.options!r}.\nGive a table of the method's own.")
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))
        method.check_options(dict(self.options))
        object.__setattr__(self, "options_text", json.dumps(self.options))
        if self.scale != "tile" and self.impl == "triton":
            raise ValueError(
                f'the GPU kernels have one scale per tile, not per {self.scale}.\nGive impl="auto" or "reference".'
            )
        object.__setattr__(self, "tiling", tiling)
        object.__setattr__(self, "windows", windows or (window,))
        object.__setattr__(self, "dense", set(self.windows) == {tiling.unit_grid} and not method.online)

    @classmethod
    def of(cls, profile: Profile, grid: Size3, impl: str = "auto") -> AttentionPlan:
        """The plan of a profile on a grid."""
        tile, block, window, _ = profile.resolve(grid)
        settings = (profile.granularity, profile.method, impl, profile.smooth_k)
        return cls(grid, tile, window, *settings, block, options=profile.options)

    @property
    def fields(self) -> tuple:
        """The plan but for smooth_k as numbers and text, for operators and constants of compiled code; plan_of reads
        them.
        """
        sizes = (self.grid, self.tile, self.block or (), self.window)
        return (*sizes, self.granularity, self.method, self.impl, self.prefix, self.suffix, self.options_text)

    @property
    def rule(self) -> Method:
        """The method itself."""
        return find_method(self.method)

    @property
    def fp8(self) -> bool:
        """V and P are in E4M3, Q and K too or in INT8."""
        return self.rule.pv is Precision.E4M3

    @property
    def int8_qk(self) -> bool:
        """Q and K are in INT8."""
        return self.rule.qk is Precision.INT8 or ("qk" in self.rule.options and self.option("qk") == "int8")

    @property
    def num_tokens(self) -> int:
        """Of the grid, prefix and suffix."""
        return self.prefix + self.tiling.num_tokens + self.suffix

    @property
    def needs_order(self) -> bool:
        """Tokens must lie in tile order: all but dense attention in 16 bits depends on it."""
        return self.rule.quantized or not self.dense

    @property
    def density(self) -> float | None:
        """Kept token pairs over all pairs; None for methods that choose their keys at each call (see kept_density)."""
        if self.rule.online:
            return None
        grid, total = self.tiling.num_tokens**2, self.num_tokens**2
        tiling = self.tiling
        kept = [window_density(self.grid, tiling.tile, tiling.block, window) for window in self.windows]
        return (sum(kept) / len(kept) * grid + total - grid) / total

    def option(self, name: str) -> Option:
        """One of the method's hyper-parameters, its default where the plan has none."""
        return dict(self.options).get(name, self.rule.options[name])

    @property
    def _head_windows(self) -> str:
        return str(self.option("head_windows")) if "head_windows" in self.rule.options else ""

    @property
    def scale(self) -> str:
        """What shares a scale of Q and K, see fake_quantize."""
        return str(self.option("scale")) if "scale" in self.rule.options else "tile"

    @property
    def smooth_v(self) -> bool:
        """Take the mean over all tokens off the values before they are quantized, and give it back to the output."""
        return "smooth_v" in self.rule.options and bool(self.option("smooth_v"))

    @property
    def pv_threshold(self) -> float:
        """See attention_kernel; 0 for methods that leave no key block out."""
        return float(self.option("pvthreshd")) if "pvthreshd" in self.rule.options else 0.0

    def kernel(self, device: torch.device | str, head_dim: int | None = None, listed: bool = False) -> str:
        """Name of what computes this plan on `device`: "sdpa" (dense, 16 bit), "cpu" (sparse SDPA), "reference",
        "triton" (the portable kernel) or "hopper" (the sm_90 kernel). The last takes head dims of 65 to 128 (head_dim
        None: not known, so "triton"), blocks of more than 64 tokens, and no threshold that leaves_out. listed: the
        caller brings lists of keys.
        """
        if self.impl != "auto":
            return self.impl
        if self.dense and not self.rule.quantized and not listed:
            return "sdpa"
        device = torch.device(device)
        if device.type != "cuda":
            return "cpu"
        if self.scale != "tile":
            return "reference"
        fits = head_dim is not None and 64 < head_dim <= 128 and math.prod(self.tiling.block or self.tiling.tile) > 64
        fits = fits and not leaves_out(self.pv_threshold)
        return "hopper" if fits and torch.cuda.get_device_capability(device) == (9, 0) else "triton"

    def fuses_norm_rope(self, device: torch.device | str, head_dim: int | None = None) -> bool:
        """Whether attend's norm_rope is done in the pass that quantizes; an online choice needs its result before."""
        return self.fp8 and not self.rule.online and self.kernel(device, head_dim) in GPU_KERNELS

    @property
    def layout(self) -> BlockLayout:
        return _layout_of(self.fields)

    def tables(self, device: torch.device | str) -> DeviceTables:
        """Permutations and block tables on `device`; built once per layout and device."""
        return _tables_of(self.fields, torch.device(device))

    def lists(self, device: torch.device | str) -> BlockLists:
        """The window's lists of key blocks on `device`; built once per window and device."""
        return _lists_of(self.fields, torch.device(device))

    def quantized(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k, v [B, L, H, D] as the plan's products see them: rounded and de-quantized, in fp32, K without its mean
        where it is smoothed; as they are in 16 bit.
        """
        if not self.fp8:
            return q, k, v
        k = k - k.mean(1, keepdim=True, dtype=torch.float32) if self.smooth_k else k
        mean = v.mean(1, keepdim=True, dtype=torch.float32) if self.smooth_v else torch.zeros((), device=v.device)
        settings = {"int8_qk": self.int8_qk, "scale_of": self.scale}
        q, k, v = fake_quantize(q, k, v - mean, self.layout, self.granularity, **settings)
        return q, k, v + mean

    def constant(self, make: Callable[[AttentionPlan, torch.device], Any], device: torch.device | str) -> Any:
        """make(plan, device), made once and a constant to torch.compile: what an online method needs at every call."""
        return _constant_of(self.fields, make, torch.device(device))

    def tile_lists(self) -> TileLists:
        """The window's lists of units, on the CPU."""
        return _tile_lists(self.layout, self.windows)

    def token_groups(self) -> TokenGroups:
        """The window's lists as the CPU kernel takes them; built once per window."""
        return _token_groups(self.layout, self.windows)


@lru_cache(maxsize=256)
def plan_of(grid, tile, block, window, granularity, method, impl, prefix, suffix, options_text) -> AttentionPlan:
    """The plan that has these fields."""
    settings = (granularity, method, impl, False, block or None, prefix, suffix, json.loads(options_text))
    return AttentionPlan(grid, tile, window, *settings)


# constants to torch.compile, which would trace what lies behind a cache; before 2.12 it takes no dataclass for them
@torch.compiler.assume_constant_result
def _layout_of(fields: tuple) -> BlockLayout:
    plan = plan_of(*fields)
    return _layout(plan.tiling, plan.prefix, plan.suffix)


@torch.compiler.assume_constant_result
def _tables_of(fields: tuple, device: torch.device) -> DeviceTables:
    return _tables(_layout_of(fields), device)


@torch.compiler.assume_constant_result
def _lists_of(fields: tuple, device: torch.device) -> BlockLists:
    return _lists(_layout_of(fields), plan_of(*fields).windows, device)


@torch.compiler.assume_constant_result
def _constant_of(fields: tuple, make: Callable[[AttentionPlan, torch.device], Any], device: torch.device) -> Any:
    return _made(plan_of(*fields), make, device)


@lru_cache(maxsize=64)
def _made(plan: AttentionPlan, make: Callable[[AttentionPlan, torch.device], Any], device: torch.device) -> Any:
    return make(plan, device)


@lru_cache(maxsize=64)
def _layout(tiling: Tiling, prefix: int, suffix: int) -> BlockLayout:
    return BlockLayout(tiling, prefix, suffix)


@lru_cache(maxsize=64)
def _tables(layout: BlockLayout, device: torch.device) -> DeviceTables:
    return device_tables(layout, device)


@lru_cache(maxsize=64)
def _tile_lists(layout: BlockLayout, windows: tuple[Size3, ...]) -> TileLists:
    return with_dense_rows(concatenate([window_lists(layout.tiling, window) for window in windows]), layout)


@lru_cache(maxsize=64)
def _lists(layout: BlockLayout, windows: tuple[Size3, ...], device: torch.device) -> BlockLists:
    return block_lists(layout, _tile_lists(layout, windows), device)


@lru_cache(maxsize=64)
def _token_groups(layout: BlockLayout, windows: tuple[Size3, ...]) -> TokenGroups:
    return token_groups(layout, *_tile_lists(layout, windows).blocks(layout))


def device_tables(layout: BlockLayout, device: torch.device | str) -> DeviceTables:
    """DeviceTables of any layout."""
    order = layout.order()
    moved = (order, torch.argsort(order), layout.block_start, layout.block_len)
    return DeviceTables(layout, *(x.to(device) for x in (*moved, layout.block_tile.int(), layout.block_unit.int())))


def block_lists(layout: BlockLayout, lists: TileLists, device: torch.device | str) -> BlockLists:
    """BlockLists of any lists of units."""
    return BlockLists(*(x.to(device) for x in lists.blocks(layout)))
