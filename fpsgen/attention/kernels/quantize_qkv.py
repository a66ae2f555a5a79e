"""Quantize q, k, v into padded kernel blocks: E4M3 values (of Q and K also INT8), fp32 scales, V transposed so that
keys are contiguous. On the way Q and K may take their RMSNorm and rotary embedding (norm_rope_quantize.py), K lose its
mean over all tokens (smooth_k: softmax does not see it, arXiv 2410.02367, section 4.2), and V too (center_v: the output
gets it back).

FP8 tensor cores on Hopper want both operands contiguous along the summed axis; for P.V that axis is the keys, so V is
stored [D, keys]. Rows of padding hold zeros. Scales follow quantize.py exactly: amax * (1/448), values times the
inverse. The range needs no clamp here: the largest value meets its own scale, and NaN stays NaN.

Two launches: first what takes all tokens (the largest magnitudes of V's channels, means), then the casts. Q and K with
a norm are cast in the first, but K without its mean in the second.

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim, bh is batch * H +
head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fpsgen.attention.kernels.launch_config import HEAD_DIMS, NORM_ROPE, OF_PROFILE
from fpsgen.attention.kernels.norm_rope_quantize import norm_rope_quantize
from fpsgen.attention.kernels.quantize_parts import (
    INVERSE_MAX,
    block_scale,
    block_scale_int8,
    cast_int8,
    load_angles,
    load_largest,
    load_mean,
    load_pairs,
    measure_channels,
    split_pairs,
    sum_channels,
)
from fpsgen.attention.kernels.workspace import Workspace, make_workspace
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import DeviceTables
from fpsgen.attention.quantize import AMAX_FLOOR

_FLOOR = tl.constexpr(AMAX_FLOOR)


@triton.jit
def measure_kv(
    k,
    v,
    k_sum,
    v_amax,
    v_largest,
    v_sum,
    block_start,
    block_len,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    batches,
    heads,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SMOOTH_K: tl.constexpr,
    CENTER_V: tl.constexpr,
):
    """Programs (batch x head x block; 0 for values, 1 for keys): V's channels measured, K's added up."""
    program = tl.program_id(0)
    bh = program % (batches * heads)
    block = program // (batches * heads)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    start = tl.load(block_start + block).to(tl.int64)
    length = tl.load(block_len + block)
    line = bh.to(tl.int64) * D
    if not SMOOTH_K or tl.program_id(1) == 0:
        values = v + batch * stride_vb + head * stride_vh + start * stride_vl
        if CENTER_V:
            sum_channels(values, v_sum + line, v_largest + 2 * line, length, stride_vl, D, BLOCK, True)
        else:
            measure_channels(values, v_amax + line, length, stride_vl, D, BLOCK)
    else:
        keys = k + batch * stride_kb + head * stride_kh + start * stride_kl
        sum_channels(keys, k_sum + line, v_largest, length, stride_kl, D, BLOCK, False)


@triton.jit
def _load_block(x, start, length, stride_l, D: tl.constexpr, BLOCK: tl.constexpr):
    """fp32 [BLOCK, D], zeros in the padding."""
    rows = tl.arange(0, BLOCK)
    pointers = x + (start + rows)[:, None] * stride_l + tl.arange(0, D)[None, :]
    return tl.load(pointers, mask=rows[:, None] < length, other=0.0).to(tl.float32)


@triton.jit
def _load_normed_block(x, start, length, stride_l, norms, weight, table, D: tl.constexpr, BLOCK: tl.constexpr):
    """The same, normed and rotated. norms, weight: of this batch, and head."""
    rows = tl.arange(0, BLOCK)
    real = rows < length
    token = start + rows
    pair = tl.arange(0, D // 2)
    cos, sin = load_angles(table, token, real, D)
    norm = tl.load(norms + token, mask=real, other=0.0)[:, None]
    gain_even, gain_odd = split_pairs(load_pairs(weight, pair, pair >= 0, ""), weight.dtype.element_ty)
    words = load_pairs(x, token[:, None] * (stride_l // 2) + pair[None, :], real[:, None], "")
    even, odd = split_pairs(words, x.dtype.element_ty)
    even = even * gain_even[None, :] * norm
    odd = odd * gain_odd[None, :] * norm
    return tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(BLOCK, D)


@triton.jit
def _load_rows(source, block, D: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, CENTER: tl.constexpr):
    """fp32 [BLOCK, D] of one head: normed and rotated with NORM, less the mean [D] with CENTER."""
    x, stride_l, layout, norms, weight, table, mean = source
    block_start, block_len = layout
    start = tl.load(block_start + block).to(tl.int64)
    length = tl.load(block_len + block)
    if NORM:
        values = _load_normed_block(x, start, length, stride_l, norms, weight, table, D, BLOCK)
    else:
        values = _load_block(x, start, length, stride_l, D, BLOCK)
    if CENTER:
        values = tl.where(tl.arange(0, BLOCK)[:, None] < length, values - mean[None, :], 0.0)
    return values


@triton.jit
def _largest(values, KEEPS_NAN: tl.constexpr):
    """The largest magnitude. KEEPS_NAN: NaN if one is among them, else it may be ignored."""
    amax = tl.max(tl.max(tl.abs(values), 1), 0)
    return amax + tl.sum(tl.sum(values * 0.0, 1), 0) if KEEPS_NAN else amax


@triton.jit
def _cast_rows(
    source,
    out,
    scales,
    group,
    bh,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
    NORM: tl.constexpr,
    CENTER: tl.constexpr,
):
    """amax over a scale group's blocks, then the cast to out's type. SINGLE: a group is one block, which stays in
    registers.
    """
    INT8: tl.constexpr = out.dtype.element_ty == tl.int8
    first = group * granularity
    last = tl.minimum(first + granularity, num_blocks)
    amax = 0.0
    if SINGLE:
        values = _load_rows(source, first, D, BLOCK, NORM, CENTER)
        amax = _largest(values, INT8)
    else:
        for block in range(first, last):
            values = _load_rows(source, block, D, BLOCK, NORM, CENTER)
            amax = tl.maximum(amax, _largest(values, INT8), propagate_nan=tl.PropagateNan.ALL)
    scale = block_scale_int8(amax) if INT8 else block_scale(amax)
    inverse = tl.math.div_rn(1.0, scale)
    cells = tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :]
    for block in range(first, last):
        if not SINGLE:
            values = _load_rows(source, block, D, BLOCK, NORM, CENTER)
        slot = bh.to(tl.int64) * num_blocks + block
        if INT8:
            tl.store(out + slot * (BLOCK * D) + cells, cast_int8(values * inverse))
        else:
            tl.store(out + slot * (BLOCK * D) + cells, (values * inverse).to(tl.float8e4nv))
        tl.store(scales + slot, scale)


@triton.jit
def _cast_values(
    source,
    amax,
    out,
    scales,
    block,
    bh,
    num_blocks,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PERMUTED: tl.constexpr,
    CENTER: tl.constexpr,
):
    """One block of V by its channels' amax [D]. PERMUTED: key 8a + 2b + c of every 16 (a, c below 2, b below 4) lies at
    4b + 2a + c, the order in which a thread of a warpgroup holds a row of Q.K.
    """
    line = bh.to(tl.int64) * D + tl.arange(0, D)
    # a channel of nothing but NaN keeps it
    scale = tl.maximum(amax, _FLOOR, propagate_nan=tl.PropagateNan.ALL) * INVERSE_MAX
    if block == 0:
        tl.store(scales + line, scale)
    inverse = tl.math.div_rn(tl.full([D], 1.0, tl.float32), scale)
    values = _load_rows(source, block, D, BLOCK, False, CENTER)
    transposed = tl.trans((values * inverse[None, :]).to(tl.float8e4nv))  # [D, BLOCK]
    if PERMUTED:
        transposed = tl.permute(transposed.reshape(D, BLOCK // 16, 2, 4, 2), 0, 1, 3, 2, 4).reshape(D, BLOCK)
    pointers = out + line[:, None] * (num_blocks * BLOCK) + block * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(pointers, transposed)


@triton.jit(do_not_specialize=OF_PROFILE)
def quantize_qkv(
    q,
    k,
    v,
    q_out,
    k_out,
    v_out,
    q_scale,
    k_scale,
    v_scale,
    k_mean,
    v_mean,
    k_sum,
    v_amax,
    v_largest,
    v_sum,
    norms,
    weight_k,
    table,
    block_start,
    block_len,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    batches,
    heads,
    tokens,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
    PERMUTED: tl.constexpr,
    NORM: tl.constexpr,
    SMOOTH_K: tl.constexpr,
    CENTER_V: tl.constexpr,
):
    """Programs (batch x head; scale group or, of V, block; 0 for values, 1 for keys, 2 for queries). With NORM there
    are no queries, they are cast before, and keys only with SMOOTH_K. norms [2, B, L], weight_k, table: see
    norm_rope_quantize. k_mean, v_mean [B, H, D]: stored where they are taken off.
    """
    bh, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    channels = bh.to(tl.int64) * D + tl.arange(0, D)
    layout = (block_start, block_len)
    VALUES_ONLY: tl.constexpr = NORM and not SMOOTH_K
    if VALUES_ONLY or which == 0:
        center = 0.0
        if CENTER_V:
            center = load_mean(v_sum, channels, tokens)
            codes = channels + bh.to(tl.int64) * D
            amax = tl.maximum(load_largest(v_largest, codes) - center, load_largest(v_largest, codes + D) + center)
            if part == 0:
                tl.store(v_mean + channels, center)
        else:
            amax = tl.load(v_amax + channels)
        values = v + batch * stride_vb + head * stride_vh
        source = (values, stride_vl, layout, norms, weight_k, table, center)
        _cast_values(source, amax, v_out, v_scale, part, bh, num_blocks, D, BLOCK, PERMUTED, CENTER_V)
    elif part * granularity < num_blocks:
        if NORM or which == 1:
            mean = 0.0
            if SMOOTH_K:
                mean = load_mean(k_sum, channels, tokens)
                if part == 0:
                    tl.store(k_mean + channels, mean)
            keys = k + batch * stride_kb + head * stride_kh
            norms += (batches + batch) * tokens
            _cast_rows(
                *((keys, stride_kl, layout, norms, weight_k + head * D, table, mean), k_out, k_scale, part, bh),
                *(num_blocks, granularity, D, BLOCK, SINGLE, NORM, SMOOTH_K),
            )
        else:
            queries = q + batch * stride_qb + head * stride_qh
            _cast_rows(
                *((queries, stride_ql, layout, norms, weight_k, table, 0.0), q_out, q_scale, part, bh),
                *(num_blocks, granularity, D, BLOCK, SINGLE, False, False),
            )


def quantize(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    granularity: int = 1,
    permuted: bool = False,
    norm_rope: NormRope | None = None,
    smooth_k: bool = False,
    center_v: bool = False,
    int8_qk: bool = False,
) -> Workspace:
    """The tensors of workspace_layout from q, k, v [B, L, H, D] (tile order, last stride 1); D is 64 or 128.

    permuted: V's keys in the order of attend_fp8_sm90.py, see _cast_values. norm_rope: q and k are normed and rotated
    first. smooth_k, center_v: k and v less their mean over all tokens, which k_mean and v_mean hold. int8_qk: q and k
    in INT8.
    """
    workspace = make_workspace(q, tables, int8_qk=int8_qk)
    quantize_into(workspace, q, k, v, tables, granularity, permuted, norm_rope, smooth_k, center_v)
    return workspace


def quantize_into(
    workspace: Workspace,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    granularity: int,
    permuted: bool,
    norm_rope: NormRope | None,
    smooth_k: bool = False,
    center_v: bool = False,
) -> None:
    """quantize() into a new workspace of make_workspace, whose q and k say their type."""
    batch, tokens, heads, dim = q.shape
    layout, w = tables.layout, workspace
    blocks = layout.num_blocks
    constants = {"D": dim, "BLOCK": layout.block, "SMOOTH_K": smooth_k, "CENTER_V": center_v}
    tokens_of = (tables.block_start, tables.block_len)
    unused = w.v_scale  # for a pointer that a kernel does not read
    weight_k = table = unused
    norms = unused if norm_rope is None else w.norms
    k_sum, k_mean = (w.k_sum, w.k_mean) if smooth_k else (unused, unused)
    v_largest, v_sum, v_mean = (w.v_largest, w.v_sum, w.v_mean) if center_v else (unused, unused, unused)
    if norm_rope is not None:
        q, k = _alike(q, k)
        weight_q, weight_k = _alike(norm_rope.norm_q, norm_rope.norm_k)
        table = norm_rope.table
        config = NORM_ROPE
        rows, cast_rows = (n * HEAD_DIMS[-1] // dim for n in (config.rows, config.cast_rows))
        # from a scale group's first block, which waits for its last
        distance = config.cast_distance + min(granularity, blocks) - 1
        parts, cast_parts = layout.block // rows, layout.block // cast_rows
        units = 2 * parts + 2 * cast_parts * -(-heads // config.cast_heads) + heads
        norm_rope_quantize[((batch * blocks + distance) * units,)](
            *(q, k, v, weight_q, weight_k, table, w.q, w.k, w.q_scale, w.k_scale, norms, w.q_amax, w.k_amax),
            *(w.v_amax, v_largest, v_sum, k_sum, w.finished, w.next_unit, *tokens_of),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *(batch, heads, tokens, blocks, granularity, distance, norm_rope.eps),
            **constants,
            ROWS=rows,
            CAST_ROWS=cast_rows,
            CAST_HEADS=config.cast_heads,
            HEADS=max(dim // 2, triton.next_power_of_2(heads)),
            num_warps=config.num_warps,
            maxnreg=config.maxnreg_means if smooth_k or center_v else config.maxnreg,
        )
    else:
        measure_kv[blocks * batch * heads, 1 + smooth_k](
            *(k, v, k_sum, w.v_amax, v_largest, v_sum, *tokens_of, *k.stride()[:3], *v.stride()[:3]),
            *(batch, heads),
            **constants,
            num_warps=4,
        )
    quantize_qkv[batch * heads, blocks, 3 if norm_rope is None else 1 + smooth_k](
        *(q, k, v, w.q, w.k, w.v, w.q_scale, w.k_scale, w.v_scale, k_mean, v_mean),
        *(k_sum, w.v_amax, v_largest, v_sum, norms, weight_k, table, *tokens_of),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], batch, heads, tokens, blocks, granularity),
        **constants,
        SINGLE=granularity == 1 and (norm_rope is None or smooth_k),  # where queries or keys are cast here
        PERMUTED=permuted,
        NORM=norm_rope is not None,
        num_warps=8 if smooth_k and norm_rope is not None else 4,  # rotated keys take many registers
    )


def _alike(*pair: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both [..., D] in one type, with channels 2i and 2i + 1 in one aligned word; copies where they are not."""
    if len({x.dtype for x in pair}) > 1:
        pair = tuple(x.float() for x in pair)
    return tuple(x if _in_words(x) else x.clone(memory_format=torch.contiguous_format) for x in pair)


def _in_words(x: torch.Tensor) -> bool:
    return x.data_ptr() % (2 * x.element_size()) == 0 and not any(stride % 2 for stride in x.stride()[:-1])
