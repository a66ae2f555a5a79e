"""Every block size and number of warps and stages of the kernels. No triton import, no autotuning in user runs."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_DIMS = (64, 128)  # others are padded up to the next of these
# arguments that differ between the profiles of a schedule: kernels are not compiled anew for some of their values
OF_PROFILE = ("granularity", "cast_distance", "list_groups", "list_length")


@dataclass(frozen=True)
class PortableConfig:
    """How attend_portable.py runs.

    block_q: query rows of a program, a divisor of the layout's block. num_warps, num_stages, maxnreg (0: no limit):
    as Triton takes them. promote: move FP8 products of P and V into fp32 registers after every key block; Hopper's
    tensor cores otherwise keep about 14 bits of the running sum. rounded_sum: add up P as rounded to E4M3, as the
    reference does. promote and rounded_sum are False in measurements only.
    """

    block_q: int
    num_warps: int
    num_stages: int
    maxnreg: int = 0
    promote: bool = True
    rounded_sum: bool = True


@dataclass(frozen=True)
class Sm90Config:
    """How attend_fp8_sm90.py or attend_16bit_sm90.py runs.

    consumers: warpgroups of 64 query rows each, 2 or 3. stages: key blocks in flight, 2 or more. poly: one in so many
    exponentials runs on the FMA units, 4 or 8, 0 for none. FP8 only: pingpong: one consumer at a time issues tensor
    core products; promote: as in PortableConfig.
    """

    consumers: int
    stages: int = 3
    poly: int = 0
    pingpong: bool = False
    promote: bool = True

    @property
    def registers(self) -> int:
        """Per thread of a consumer."""
        return 160 if self.consumers == 3 else 240


@dataclass(frozen=True)
class NormRopeConfig:
    """How norm_rope_quantize.py runs.

    rows: rows that a program measures. cast_rows, cast_heads: rows and heads that a program casts. Rows are for head
    dim 128, twice as many for 64. cast_distance: blocks from measuring to casting: so many that casts do not wait, so
    few that they read from the L2 cache (measured at 720p: 6 and 32 take 10 % longer than 20). num_warps, maxnreg: as
    in PortableConfig; maxnreg_means: where means are found as well.
    """

    rows: int = 16
    cast_rows: int = 16
    cast_heads: int = 6
    cast_distance: int = 20
    num_warps: int = 4
    maxnreg: int = 80
    maxnreg_means: int = 96


NORM_ROPE = NormRopeConfig()


def choose_sm90(
    head_dim: int, block: int, blocks_per_tile: int, fp8: bool, capability: tuple[int, int]
) -> Sm90Config | None:
    """The configuration of an sm_90 kernel, None where attend_portable.py's kernel runs: other GPUs, head dims, blocks.

    blocks_per_tile: kernel blocks of the largest query tile.
    """
    if capability != (9, 0) or head_dim != 128 or block != 128:
        return None
    if blocks_per_tile >= 3:  # 3 x 128 rows are two work tiles of 3 x 64. Ping-pong gains 6 % with three consumers
        return Sm90Config(3, stages=2, pingpong=fp8)
    # Two consumers: ping-pong loses 1 %, and they do not keep the special function unit busy, so the FMA units help
    # (measured at 480p and 720p). In 16 bit, 2 stages take all of the shared memory.
    return Sm90Config(2, poly=8) if fp8 else Sm90Config(2, stages=2)


def choose_portable(
    head_dim: int,
    block: int,
    fp8: bool,
    capability: tuple[int, int] = (9, 0),
    triton: tuple[int, int] = (3, 6),
) -> PortableConfig:
    """The choice for a head dim (64 or 128), a layout's block (64 or 128), a GPU's compute capability and a Triton."""
    if head_dim not in HEAD_DIMS or block not in (64, 128):
        raise ValueError(
            f"head dim is {head_dim}, block is {block}.\nThe kernels take head dims {HEAD_DIMS}, blocks 64 or 128."
        )
    if capability[0] != 9:
        # chosen by what compiles without spills, for want of such a GPU to measure on
        return PortableConfig(
            block_q=64, num_warps=8 if head_dim == 128 else 4, num_stages=2 + (fp8 and capability > (9, 0))
        )
    if not fp8:
        rows = min(block, 128) if head_dim == 128 else 64
        return PortableConfig(block_q=rows, num_warps=rows // 16, num_stages=2)
    # 168 registers let three programs share a multiprocessor; the ptxas of Triton 3.9 spills under that limit
    limit = 168 if head_dim == 128 and block == 128 and triton < (3, 9) else 0
    return PortableConfig(block_q=64, num_warps=4, num_stages=3, maxnreg=limit)
