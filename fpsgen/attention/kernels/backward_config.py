"""Launch choices of the backward kernels, and the transposed lists they need; no triton import."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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


def select_backward(head_dim: int, block: int, capability: tuple[int, int] = (9, 0)) -> BackwardConfig:
    """The choice for a head dim (64 or 128), a layout's block (64 or 128) and a GPU's compute capability."""
    if capability[0] == 9:
        config = BackwardConfig(PassConfig(128, 64, 8, 2), PassConfig(128, 64, 8, 2))
    else:  # 99 kB of shared memory; chosen by what compiles without spills, for want of such a GPU to measure on
        config = BackwardConfig(PassConfig(64, 32, 4, 2), PassConfig(64, 32, 4, 2))
    return BackwardConfig(config.dq.fit(block), config.dkv.fit(block))


def transpose_lists(
    list_index: torch.Tensor, list_count: torch.Tensor, block_tile: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The query blocks of every key block, from the key blocks of every query tile; on the lists' device, no
    synchronization.

    list_index int32 [G, M, K], list_count int32 [G, M]. block_tile int32 [N]: the tile of a block. Returns int32
    [G, N, N], ascending and padded with -1, and counts int32 [G, N].
    """
    groups, tiles, longest = list_index.shape
    blocks = block_tile.numel()
    device = list_index.device
    valid = torch.arange(longest, device=device) < list_count[..., None]
    seen = torch.zeros(groups, tiles, blocks + 1, dtype=torch.bool, device=device)
    seen.scatter_(2, torch.where(valid, list_index.long(), blocks), True)
    seen = seen[:, :, :blocks].transpose(1, 2)[:, :, block_tile.long()]  # key block, query block
    rank = seen.cumsum(2, dtype=torch.int32)
    place = torch.where(seen, rank - 1, blocks).long()
    queries = torch.arange(blocks, dtype=torch.int32, device=device).expand_as(place)
    index = torch.full((groups, blocks, blocks + 1), -1, dtype=torch.int32, device=device)
    index.scatter_(2, place, queries)  # only what is dropped, in the last column, meets itself
    return index[:, :, :blocks].contiguous(), rank[:, :, -1].contiguous()
