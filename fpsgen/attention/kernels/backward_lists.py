"""Lists of key blocks turned round: which query blocks see a key block."""

from __future__ import annotations

import torch


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
