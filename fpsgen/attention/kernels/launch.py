"""Every launch choice of the kernels in one place; no triton import, no autotuning in user runs."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_DIMS = (64, 128)  # others are padded up to the next of these


@dataclass(frozen=True)
class LaunchConfig:
    """How the forward kernel runs.

    block_q: query rows of a program, a divisor of the layout's block. num_warps, num_stages, maxnreg (0: no limit):
    as Triton takes them. promote: move FP8 products of P and V into fp32 registers after every key block; Hopper's
    tensor cores otherwise keep about 14 bits of the running sum. rounded_sum: add up P as rounded to E4M3 (what the
    reference does); False is for measuring.
    """

    block_q: int
    num_warps: int
    num_stages: int
    maxnreg: int = 0
    promote: bool = True
    rounded_sum: bool = True


@dataclass(frozen=True)
class HopperConfig:
    """How the Hopper kernel runs.

    consumers: warpgroups of 64 query rows each, 2 or 3. stages: key blocks in flight. poly: one in so many
    exponentials runs on the FMA units, 4 or 8, 0 for none. registers: of a consumer's thread.
    """

    consumers: int
    stages: int = 3
    poly: int = 0

    @property
    def registers(self) -> int:
        return 160 if self.consumers == 3 else 240


def select_hopper(
    head_dim: int, block: int, blocks_per_tile: int, fp8: bool, capability: tuple[int, int]
) -> HopperConfig | None:
    """The choice for a layout, None where forward.py's kernel is the one: other GPUs, head dims, blocks, precisions.

    blocks_per_tile: kernel blocks of the largest tile. Three of 128 rows are six times 64: two rounds of three.
    """
    if capability != (9, 0) or not fp8 or head_dim != 128 or block != 128:
        return None
    # measured at 480p and 720p: three warpgroups keep the special function unit busy enough without help, two do not
    return HopperConfig(3, stages=2) if blocks_per_tile >= 3 else HopperConfig(2, poly=8)


def select(
    head_dim: int,
    block: int,
    fp8: bool,
    capability: tuple[int, int] = (9, 0),
    triton: tuple[int, int] = (3, 6),
) -> LaunchConfig:
    """The choice for a head dim (64 or 128), a layout's block (64 or 128), a GPU's compute capability and a Triton."""
    if head_dim not in HEAD_DIMS or block not in (64, 128):
        raise ValueError(
            f"head dim is {head_dim}, block is {block}.\nThe kernels take head dims {HEAD_DIMS}, blocks 64 or 128."
        )
    if capability[0] != 9:
        # chosen by what compiles without spills, for want of such a GPU to measure on
        return LaunchConfig(
            block_q=64, num_warps=8 if head_dim == 128 else 4, num_stages=2 + (fp8 and capability > (9, 0))
        )
    if not fp8:
        rows = min(block, 128) if head_dim == 128 else 64
        return LaunchConfig(block_q=rows, num_warps=rows // 16, num_stages=2)
    # 168 registers let three programs share a multiprocessor; the ptxas of Triton 3.9 spills under that limit
    limit = 168 if head_dim == 128 and block == 128 and triton < (3, 9) else 0
    return LaunchConfig(block_q=64, num_warps=4, num_stages=3, maxnreg=limit)
