"""Launch configurations of the backward kernels; no triton import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassConfig:
    """How one of the two backward kernels runs.

    own: rows that a program keeps (queries for dQ, keys for dK and dV). step: rows of the other side per iteration.
    Both divide the layout's block; larger values are cut to it. num_warps, num_stages, maxnreg (0: no limit): as Triton
    takes them.
    """

    own: int
    step: int
    num_warps: int
    num_stages: int
    maxnreg: int = 0

    def fit(self, block: int) -> PassConfig:
        """The same for a layout's block of 64 or 128 rows."""
        own = min(self.own, block)
        warps = self.num_warps if own == self.own else max(4, self.num_warps // 2)
        return PassConfig(own, min(self.step, block), warps, self.num_stages, self.maxnreg)


@dataclass(frozen=True)
class BackwardConfig:
    """dq: of the kernel for dQ. dkv: of the kernel for dK and dV."""

    dq: PassConfig
    dkv: PassConfig


def select_backward(block: int, capability: tuple[int, int] = (9, 0)) -> BackwardConfig:
    """The choice for a layout's block (64 or 128) and a GPU's compute capability."""
    if capability[0] == 9:
        config = BackwardConfig(*[PassConfig(64, 64, 4, 2)] * 2)  # two programs share a multiprocessor
    else:  # 99 kB of shared memory; chosen by what compiles without spills, for want of such a GPU to measure on
        config = BackwardConfig(*[PassConfig(64, 32, 8, 2)] * 2)
    return BackwardConfig(config.dq.fit(block), config.dkv.fit(block))
