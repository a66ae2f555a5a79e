"""What CPUs run: the same lists as the GPU kernels, as dense SDPA calls over gathered keys.

Q, K and V are rounded to E4M3 or INT8 once where the method says so; P is not. Query tiles with equal lists make one
call. Where the CPU multiplies bf16 in tiles (AMX), products of rounded inputs are in bf16, which holds E4M3's values
exactly and a block's scale to 8 bits: three times as fast as fp32. The exact rule, P's cast included, is in
reference.py.

Legend: B batch, L tokens (tile order), H heads, D head dim.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import BlockLayout

GATHERED = 1 << 18  # values of K gathered for one call: what stays in the cache
Rows = slice | torch.Tensor
# per list group: query rows and key rows of each distinct list
TokenGroups = tuple[tuple[tuple[Rows, Rows], ...], ...]


def token_groups(layout: BlockLayout, index: torch.Tensor, count: torch.Tensor) -> TokenGroups:
    """Tokens of query tiles with equal lists, and of the keys in these lists (ascending); tiles that see nothing are
    left out. index int32 [G, M, K], count int32 [G, M]: lists of kernel blocks.
    """
    start, length = layout.block_start.tolist(), layout.block_len.tolist()
    first = layout.tile_first_block.tolist()
    out = []
    for rows, counts in zip(index.tolist(), count.tolist(), strict=True):
        found: dict[tuple[int, ...], list[int]] = {}
        for tile, (row, n) in enumerate(zip(rows, counts, strict=True)):
            found.setdefault(tuple(sorted(row[:n])), []).append(tile)
        groups = []
        for keys, tiles in found.items():
            if keys:
                queries = [block for tile in tiles for block in range(first[tile], first[tile + 1])]
                groups.append((_tokens(queries, start, length), _tokens(keys, start, length)))
        out.append(tuple(groups))
    return tuple(out)


def _tokens(blocks: list[int] | tuple[int, ...], start: list[int], length: list[int]) -> Rows:
    """Tokens of ascending blocks: a slice where they follow each other (no copy), else an index."""
    if blocks[-1] - blocks[0] + 1 == len(blocks):
        return slice(start[blocks[0]], start[blocks[-1]] + length[blocks[-1]])
    return torch.cat([torch.arange(start[n], start[n] + length[n]) for n in blocks])


@lru_cache(maxsize=1)
def _fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 in tiles; torch before 2.10 does not say, and gets fp32."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False))


def attention_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    groups: TokenGroups,
    fp8: bool,
    granularity: int = 1,
    return_lse: bool = True,
    int8_qk: bool = False,
    scale_of: str = "tile",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of q, k, v [B, L, H, D] (tile order) over token_groups.

    Returns out [B, L, H, D] in q's dtype and LSE fp32 [B, H, L] (natural logarithm; None without return_lse). Rows
    without a key: out 0, LSE -inf. fp8: quantize as quantize.py says, `granularity` blocks to a scale, Q and K in INT8
    with int8_qk; scale_of: see there. Raises ValueError for lists whose number of groups is not 1, H or B*H.
    """
    batch, length, heads, dim = q.shape
    if len(groups) not in (1, heads, batch * heads):
        raise ValueError(
            f"lists have {len(groups)} groups.\nGive 1, {heads} (heads) or {batch * heads} (batch x heads)."
        )
    dtype = q.dtype
    q, k, v = _operands(q, k, v, layout, fp8, granularity, int8_qk, scale_of)
    if len(groups) == 1 and len(groups[0]) == 1 and _number(groups[0][0][0]) == length:  # one list for all
        keys = groups[0][0][1]
        out, lse = _attend(q, _take(k, keys), _take(v, keys), return_lse)
        return out.to(dtype), lse
    covered = all(sum(_number(rows) for rows, _ in lists) == length for lists in groups)
    out = (torch.empty if covered else torch.zeros)(batch, length, heads, dim, dtype=dtype)
    lse = torch.full((batch, heads, length), -math.inf) if return_lse else None
    for g, lists in enumerate(groups):
        line, head = served_by(g, len(groups), heads)
        some_q, some_k, some_v = (x[line, :, head] for x in (q, k, v))
        for rows, keys in lists:
            part, part_lse = _attend(_take(some_q, rows), _take(some_k, keys), _take(some_v, keys), return_lse)
            if isinstance(rows, slice):
                out[line, rows, head] = part
            else:
                out[line, :, head].index_copy_(1, rows, part.to(dtype))
            if lse is not None and part_lse is not None:
                lse[line, head, rows] = part_lse
    return out, lse


def attention_cpu_lists(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    index: torch.Tensor,
    count: torch.Tensor,
    fp8: bool,
    granularity: int = 1,
    return_lse: bool = True,
    int8_qk: bool = False,
    scale_of: str = "tile",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """attention_cpu over lists of kernel blocks that serve this call alone: index int32 [G, M, K], count int32 [G, M].

    Where blocks and lists are all of one length and a tile is one block, as lists of online methods on small grids are,
    the keys of some tiles are gathered for one SDPA call: for nano's shape 1.4 times as fast as a call for each list.
    """
    batch, length, heads, dim = q.shape
    keys = int(count.max())
    one_size = layout.uniform and layout.num_tiles == layout.num_blocks and bool((count == keys).all())
    if len(count) == 1 or not one_size or not keys or len(count) not in (heads, batch * heads):
        groups = token_groups(layout, index, count)
        return attention_cpu(q, k, v, layout, groups, fp8, granularity, return_lse, int8_qk, scale_of)
    dtype = q.dtype
    q, k, v = _operands(q, k, v, layout, fp8, granularity, int8_qk, scale_of)
    lines, blocks, rows = batch * heads, layout.num_blocks, layout.uniform
    q, k, v = (x.transpose(1, 2).reshape(lines * blocks, rows, dim) for x in (q, k, v))
    index = index[:, :, :keys].repeat(lines // len(count), 1, 1)  # batch-major, as the lines are
    index = (index + torch.arange(0, lines * blocks, blocks)[:, None, None]).flatten(0, 1)
    parts = []
    for some, chosen in zip(q.split(step := max(1, GATHERED // (keys * rows * dim))), index.split(step), strict=True):
        key, value = (x.index_select(0, chosen.flatten()).view(len(chosen), keys * rows, 1, dim) for x in (k, v))
        parts.append(_attend(some[:, :, None], key, value, return_lse))
    out = torch.cat([part for part, _ in parts]).view(batch, heads, length, dim).transpose(1, 2).to(dtype)
    lse = torch.cat([lse for _, lse in parts if lse is not None]).view(batch, heads, length) if return_lse else None
    return out.contiguous(), lse


def served_by(group: int, groups: int, heads: int) -> tuple[slice, slice]:
    """Samples of the batch and heads that one of 1, H or B*H list groups serves."""
    line = slice(None) if groups <= heads else slice(group // heads, group // heads + 1)
    return line, slice(None) if groups == 1 else slice(group % heads, group % heads + 1)


def _operands(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    fp8: bool,
    granularity: int,
    int8_qk: bool,
    scale_of: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v in the type of the products; with fp8 rounded as fake_quantize does."""
    if not fp8:
        return q, k.to(q.dtype), v.to(q.dtype)
    product = torch.bfloat16 if _fast_bf16() or q.dtype == torch.bfloat16 else torch.float32
    return fake_quantize(q, k, v, layout, granularity, product, int8_qk, scale_of)


def _take(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    return x[:, rows] if isinstance(rows, slice) else x.index_select(1, rows)


def _number(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, return_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense attention of [B, rows, H, D] over [B, keys, H, D], and the LSE [B, H, rows]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not return_lse:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out.transpose(1, 2), lse
