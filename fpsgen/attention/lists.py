"""Lists of keys that are chosen at each call: by an online method, or by the caller.

Legend: B batch, H heads, M query tiles, U units (key blocks of a tiling that has them, else tiles), G list groups: 1
(shared), H, or B*H.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fpsgen.attention.plan import AttentionPlan, BlockLists, block_lists, plan_of
from fpsgen.attention.tiles import TileLists, with_dense_rows

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def select_lists(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> BlockLists:
    """Lists of one call of a plan's method: fixed ones are built once, online ones chosen from q, k and v.

    q, k, v: [B, L, H, D] in tile order, q and k normed and with rotary embedding. No gradient flows through the choice.
    """
    if not plan.rule.online:
        return plan.lists(q.device)
    grid = slice(plan.prefix, plan.num_tokens - plan.suffix)
    with torch.no_grad():
        q, k, v = (x.detach()[:, grid] for x in (q, k, v))
        alone = _grid_alone(plan.fields, plan.smooth_k) if plan.prefix or plan.suffix else plan
        chosen = plan.rule.selection.select(q, k, v, alone)
    return block_lists(plan.layout, with_dense_rows(chosen, plan.layout), q.device)


@torch.compiler.assume_constant_result
def _grid_alone(fields: tuple, smooth_k: bool | None) -> AttentionPlan:
    """The plan of these fields without prefix and suffix."""
    return replace(plan_of(*fields), prefix=0, suffix=0, smooth_k=smooth_k)


def given_lists(index: torch.Tensor, count: torch.Tensor, plan: AttentionPlan, batch: int, heads: int) -> BlockLists:
    """A caller's lists of units as lists of kernel blocks, prefix and suffix added.

    index: integers [G, M, K] or [B or 1, H, M, K], each list's units first, what follows them is not read. count:
    integers, the same without K. M query tiles and U units are those of plan.tiling; units are numbered in tile order,
    one tile after the other. Raises ValueError for other shapes, and on a CPU for numbers out of range or twice in a
    list; on a GPU they are not looked at, since that would wait for it.
    """
    groups, tiles = {1, heads, batch * heads}, plan.tiling.num_tiles
    good = (
        isinstance(index, torch.Tensor)
        and isinstance(count, torch.Tensor)
        and index.dim() in (3, 4)
        and index.shape[:-1] == count.shape
        and index.dtype in _INTEGERS
        and count.dtype in _INTEGERS
        and index.device == count.device
        and index.shape[-2] == tiles
        and (index.shape[0] in groups if index.dim() == 3 else index.shape[:2] in ((batch, heads), (1, heads), (1, 1)))
    )
    if not good:
        shapes = [tuple(getattr(x, "shape", ())) for x in (index, count)]
        raise ValueError(
            f"q2k_index and q2k_count are {shapes[0]} and {shapes[1]} for {batch} x {heads} heads and {tiles} query "
            f"tiles.\nGive integers [1, H or B*H, M, K] or [B, H, M, K] with M = {tiles}, and the same without K."
        )
    index, count = (x.flatten(0, 1) if x.dim() > n else x for x, n in ((index, 3), (count, 2)))
    units = plan.layout.num_units - sum(plan.layout.dense_units)
    valid = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    if not index.is_cuda:
        wrong = index[valid & ((index < 0) | (index >= units))]
        if len(wrong) or bool(((count < 0) | (count > index.shape[-1])).any()):
            what = f"names key {int(wrong[0])} of {units}" if len(wrong) else "has a count beyond its length"
            raise ValueError(f"a list in q2k_index {what}.\nGive keys from 0 to {units - 1} and counts up to K.")
        ascending = torch.where(valid, index.long(), units).sort(-1).values
        if bool(((ascending.diff(dim=-1) == 0) & (ascending[..., 1:] < units)).any()):
            raise ValueError("a list in q2k_index names a key twice, which would count twice.\nName each key once.")
    lists = TileLists(torch.where(valid, index, -1).int(), count.int())
    return block_lists(plan.layout, with_dense_rows(lists, plan.layout), index.device)


def check_lists(lists: BlockLists, plan: AttentionPlan, q: torch.Tensor) -> None:
    """Raises ValueError for lists of key blocks that do not suit a plan and q [B, L, H, D]; their numbers are not
    looked at.
    """
    index, count = lists
    batch, _, heads, _ = q.shape
    tiles, groups = plan.layout.num_tiles, {1, heads, batch * heads}
    good = index.dim() == 3 and index.shape[:2] == count.shape and index.shape[0] in groups and index.shape[1] == tiles
    if not (good and index.dtype == count.dtype == torch.int32 and index.device == count.device == q.device):
        kinds = " and ".join(f"{x.dtype} {tuple(x.shape)} on {x.device}" for x in lists)
        raise ValueError(
            f"lists are {kinds} for {batch} x {heads} heads and {tiles} query tiles on {q.device}.\n"
            f"Give int32 [G, M, K] with G of 1, H or B*H and M = {tiles}, and the same without K, on q's device."
        )


def kept_density(lists: BlockLists, plan: AttentionPlan) -> torch.Tensor:
    """Token pairs that lists keep over all pairs, mean over groups: fp64, no dimension, on the lists' device, without
    waiting for it.
    """
    tables = plan.tables(lists.list_count.device)
    valid = torch.arange(lists.list_index.shape[-1], device=lists.list_count.device) < lists.list_count[..., None]
    keys = torch.where(valid, tables.block_len[lists.list_index.long().clamp(min=0)], 0).sum(-1)  # [G, M]
    queries = torch.zeros(keys.shape[1], dtype=torch.int64, device=keys.device)
    queries = queries.index_add(0, tables.block_tile.long(), tables.block_len.long())
    return (keys * queries).sum(-1).double().mean() / plan.num_tokens**2
