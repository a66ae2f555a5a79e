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
    if not fp8:
        rows = min(block, 128) if head_dim == 128 else 64
        return LaunchConfig(block_q=rows, num_warps=rows // 16, num_stages=2)
    # 168 registers let three programs share a multiprocessor; the ptxas of Triton 3.9 spills under that limit
    limit = 168 if head_dim == 128 and block == 128 and triton < (3, 9) else 0
    return LaunchConfig(block_q=64, num_warps=4, num_stages=3 if capability >= (9, 0) else 2, maxnreg=limit)
