"""Every launch choice of the kernels in one place, and the launch itself; no triton import, no autotuning in user
runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fpsgen.attention.kernels.tape import Tape

HEAD_DIMS = (64, 128)  # others are padded up to the next of these
Slot = tuple[int, int, tuple[int, ...], torch.dtype]  # first byte, end, shape, type


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
    """How a Hopper kernel runs, attend_fp8_sm90.py or attend_16bit_sm90.py.

    consumers: warpgroups of 64 query rows each, 2 or 3. stages: key blocks in flight, 2 or more. poly: one in so many
    exponentials runs on the FMA units, 4 or 8, 0 for none. FP8 only: pingpong, consumers take turns at the tensor core;
    promote, as LaunchConfig's, False is for measuring. registers: of a consumer's thread.
    """

    consumers: int
    stages: int = 3
    poly: int = 0
    pingpong: bool = False
    promote: bool = True

    @property
    def registers(self) -> int:
        return 160 if self.consumers == 3 else 240


@dataclass(frozen=True)
class PrepareConfig:
    """How norm_rope_quantize.py runs.

    rows: whose norms a program finds; cast_rows, cast_heads: what it casts; of head dim 128, twice the rows of 64. lag:
    blocks from measuring to casting, so many that casts do not wait and so few that they read from the L2 cache.
    num_warps, maxnreg: as LaunchConfig's. Measured at 720p: lags of 6 and 32 take 10 % longer than 20.
    """

    rows: int = 16
    cast_rows: int = 16
    cast_heads: int = 6
    lag: int = 20
    num_warps: int = 4
    maxnreg: int = 80


PREPARE = PrepareConfig()


def select_hopper(
    head_dim: int, block: int, blocks_per_tile: int, fp8: bool, capability: tuple[int, int]
) -> HopperConfig | None:
    """The choice for a layout, None where attend_portable.py's kernel is the one: other GPUs, head dims, blocks.

    blocks_per_tile: kernel blocks of the largest tile. Three of 128 rows are six times 64: two rounds of three.
    """
    if capability != (9, 0) or head_dim != 128 or block != 128:
        return None
    if blocks_per_tile >= 3:  # turns gain 6 % and more with three warpgroups, and lose 1 % with two
        return HopperConfig(3, stages=2, pingpong=fp8)
    # measured at 480p and 720p: three warpgroups keep the special function unit busy enough without help, two do not;
    # 16 bits take more of the tensor cores, and 2 stages all of the shared memory
    return HopperConfig(2, poly=8) if fp8 else HopperConfig(2, stages=2)


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


class Pack:
    """Tensors of one allocation, which costs the host less than each its own.

    slots: shape and dtype by name, see pack_slots.
    """

    def __init__(self, slots: dict[str, Slot], device: torch.device) -> None:
        size = max((end for _, end, _, _ in slots.values()), default=0)
        self.slots, self.memory = slots, torch.empty(size, dtype=torch.uint8, device=device)

    def __getattr__(self, name: str) -> torch.Tensor:
        if name not in self.__dict__.get("slots", ()):
            raise AttributeError(name)
        begin, end, shape, dtype = self.slots[name]
        return self.memory[begin:end].view(dtype).view(shape)


def pack_slots(tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Slot]:
    """Slots for a Pack, each at a multiple of 256 bytes."""
    slots, end = {}, 0
    for name, (shape, dtype) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        slots[name] = (end, end + size, shape, dtype)
        end += -(-size // 256) * 256
    return slots


def start(
    tape: Tape | None,
    kernel: Any,
    grid: tuple[int, int, int],
    moving: tuple,
    fixed: tuple,
    constants: dict[str, Any],
    **options: Any,
) -> None:
    """Launch a Triton or Gluon kernel with the arguments moving + fixed, on tape if there is one.

    moving: tensors, or descriptors of tensors, that another call brings anew or makes in its Pack. constants: in the
    order of the kernel's signature, after all else.
    """
    args = (*moving, *fixed)
    assert [*constants] == kernel.arg_names[len(args) :], kernel.__name__
    compiled = kernel[grid](*args, **constants, **options)
    if tape is not None:
        tape.record(compiled, grid, moving, fixed)
