"""Quantize queries and keys that take their RMSNorm (over all heads) and rotary embedding on the way into blocks, in
fp32 and with no rounding in between. norm_rope.py has the same in plain torch.

A block's scale needs its largest magnitude after norm and rotation, and a row's norm all of its heads. Measuring finds
both in one reading, since a row's norm only scales the magnitudes that rotation leaves. The cast reads every row once
more. It follows so closely, in the same launch, that the row still lies in the L2 cache.

With a mean to be taken off the keys (smooth_k), a key's cast must wait for all tokens, and is done in the next launch
(quantize_qkv.py). Here the keys are added up where they would be cast.

Legend: B batch, H heads, L tokens (tile order), N blocks, D head dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fpsgen.attention.kernels.launch_config import OF_PROFILE
from fpsgen.attention.kernels.quantize_parts import (
    add_sum,
    block_scale,
    block_scale_int8,
    cast_int8,
    load_angles,
    load_pairs,
    measure_channels,
    raise_amax,
    split_pairs,
    sum_channels,
)

_NAN_BITS = tl.constexpr(0x7FC00000)


@triton.jit
def _measure_rows(
    x,
    weight,
    norms,
    amax,
    finished,
    table,
    start,
    length,
    part,
    stride_l,
    stride_h,
    heads,
    num_blocks,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    INT8: tl.constexpr,
):
    """Of ROWS tokens of a block: norms[token] = 1 / sqrt(mean of squares over heads and channels + eps), and
    amax[head, 0] of the block's scale group raised to the largest magnitude after norm and rotation; then one more of
    the group's parts is `finished`. A row that holds NaN raises nothing, with INT8 it raises amax to NaN.
    """
    rows = part * ROWS + tl.arange(0, ROWS)
    real = rows < length
    token = start + rows
    pair = tl.arange(0, D // 2)
    lane = tl.arange(0, HEADS)
    cos, sin = load_angles(table, token, real, D)
    squares = tl.zeros([ROWS, D // 2], tl.float32)
    peaks = tl.zeros([ROWS, HEADS], tl.float32)  # each row's largest magnitudes, while its norm is not known
    offsets = token[:, None] * (stride_l // 2) + pair[None, :]
    one = load_pairs(x, offsets, real[:, None], "evict_last")  # words of two heads ahead, of none beyond the last
    two = load_pairs(x + stride_h, offsets, (rows < tl.where(heads > 1, length, 0))[:, None], "evict_last")
    for head in tl.range(heads, num_stages=1):
        words, one = one, two
        more = rows < tl.where(head + 2 < heads, length, 0)
        two = load_pairs(x + (head + 2) * stride_h, offsets, more[:, None], "evict_last")
        even, odd = split_pairs(words, x.dtype.element_ty)
        squares += even * even + odd * odd
        gains = load_pairs(weight, head * (D // 2) + pair, pair >= 0, "")
        gain_even, gain_odd = split_pairs(gains, weight.dtype.element_ty)
        even *= gain_even[None, :]
        odd *= gain_odd[None, :]
        peak = tl.maximum(tl.abs(even * cos - odd * sin), tl.abs(even * sin + odd * cos))
        peaks = tl.where(lane[None, :] == head, tl.max(peak, 1)[:, None], peaks)
    norm = 1.0 / tl.sqrt_rn(tl.sum(squares, 1) / (heads * D) + eps)
    tl.store(norms + token, norm, mask=real)
    peaks *= norm[:, None]
    if INT8:  # NaN is the largest of all as an integer
        peak = tl.max(tl.where(peaks >= 0, peaks.to(tl.int32, bitcast=True), _NAN_BITS), 0).to(tl.float32, bitcast=True)
    else:
        peak = tl.max(tl.where(peaks >= 0, peaks, 0.0), 0)
    raise_amax(amax, lane * num_blocks, peak, lane < heads)
    tl.debug_barrier()  # all threads have written
    tl.atomic_add(finished, 1, sem="release")


@triton.jit
def _cast_rows(
    x,
    out,
    scales,
    amax,
    norms,
    weight,
    finished,
    wanted,
    table,
    start,
    length,
    part,
    first,
    last,
    stride_l,
    stride_h,
    num_blocks,
    total,
    adds,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Norm, rotation and cast to out's type of ROWS tokens of a block, heads `first` to `last` - 1, once `wanted` parts
    of the scale group are finished. out, scales: at the block; head by head they are num_blocks apart. adds: no cast,
    but total [H, D] plus the rows' sums.
    """
    INT8: tl.constexpr = out.dtype.element_ty == tl.int8
    rows = part * ROWS + tl.arange(0, ROWS)
    real = rows < length
    token = start + rows
    pair = tl.arange(0, D // 2)
    cos, sin = load_angles(table, token, real, D)
    offsets = token[:, None] * (stride_l // 2) + pair[None, :]
    # no wider stores than what a thread has: they would pass through shared memory
    cells = rows[:, None] * D + tl.max_contiguous(tl.arange(0, D), 8)[None, :]
    one = load_pairs(x + first * stride_h, offsets, real[:, None], "evict_first")  # words of a head ahead
    while tl.atomic_add(finished, 0, sem="acquire") < wanted:
        pass
    tl.debug_barrier()  # no thread reads before; what others wrote is in L2 (.cg)
    norm = tl.load(norms + token, mask=real, other=0.0, cache_modifier=".cg")[:, None]
    ahead = tl.load(amax + first * num_blocks, cache_modifier=".cg")
    for head in tl.range(first, last, num_stages=1):
        words = one
        more = rows < tl.where(head + 1 < last, length, 0)
        one = load_pairs(x + (head + 1) * stride_h, offsets, more[:, None], "evict_first")
        scale = block_scale_int8(ahead) if INT8 else block_scale(ahead)
        ahead = tl.load(amax + tl.minimum(head + 1, last - 1) * num_blocks, cache_modifier=".cg")
        gains = load_pairs(weight, head * (D // 2) + pair, pair >= 0, "")
        gain_even, gain_odd = split_pairs(gains, weight.dtype.element_ty)
        even, odd = split_pairs(words, x.dtype.element_ty)
        even = even * gain_even[None, :] * norm
        odd = odd * gain_odd[None, :] * norm
        if adds:
            sums = tl.join(tl.sum(even * cos - odd * sin, 0), tl.sum(even * sin + odd * cos, 0)).reshape(D)
            add_sum(total, head * D + tl.arange(0, D), sums)
        else:
            inverse = tl.math.div_rn(1.0, scale)
            tl.store(scales + head * num_blocks, scale, mask=part == 0)
            values = tl.join((even * cos - odd * sin) * inverse, (even * sin + odd * cos) * inverse).reshape(ROWS, D)
            to = out + (head * num_blocks).to(tl.int64) * (BLOCK * D) + cells
            tl.store(to, cast_int8(values) if INT8 else values.to(tl.float8e4nv), cache_modifier=".cs")


@triton.jit(do_not_specialize=OF_PROFILE)
def norm_rope_quantize(
    q,
    k,
    v,
    weight_q,
    weight_k,
    table,
    q_out,
    k_out,
    q_scale,
    k_scale,
    norms,
    q_amax,
    k_amax,
    v_amax,
    v_largest,
    v_sum,
    k_sum,
    finished,
    next_unit,
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
    cast_distance,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CAST_ROWS: tl.constexpr,
    CAST_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    SMOOTH_K: tl.constexpr,
    CENTER_V: tl.constexpr,
):
    """q and k measured and cast, and V's channels measured: v_amax [B, H, D], or with CENTER_V v_largest [B, H, 2, D]
    and v_sum [B, H, D]. SMOOTH_K: k is measured and added up instead, k_sum [B, H, D].

    Units of work come in steps, one step for each block of the batch and `cast_distance` more: measuring ROWS rows of
    q or k over all heads, as often as a block has them; casting CAST_ROWS rows and up to CAST_HEADS heads of the block
    that was measured cast_distance steps ago, cast_distance + 1 being granularity at least; measuring V, head by head.
    Programs take units in the order in which they start: what a cast waits for has begun, and waits for nothing itself.

    Zero before: amax of q and k [B, H, N], where the column of a scale group is used, what V and k_sum receive,
    finished [2, B, N], next_unit [1]. norms [2, B, L] pass from measuring to casting. HEADS: H or more, a power of 2.
    """
    parts: tl.constexpr = BLOCK // ROWS
    cast_parts: tl.constexpr = BLOCK // CAST_ROWS
    shares = tl.cdiv(heads, CAST_HEADS)
    casts = 2 * cast_parts * shares
    units = 2 * parts + casts + heads
    number = tl.atomic_add(next_unit, 1, sem="relaxed")
    unit = number % units
    step = number // units
    unit -= 2 * parts
    if (unit >= 0) & (unit < casts):
        step -= cast_distance
    if (step >= 0) & (step < batches * num_blocks):
        batch = (step // num_blocks).to(tl.int64)
        block = step % num_blocks
        start = tl.load(block_start + block).to(tl.int64)
        length = tl.load(block_len + block)
        if unit >= casts:
            head = unit - casts
            line = (batch * heads + head) * D
            values = v + batch * stride_vb + head.to(tl.int64) * stride_vh + start * stride_vl
            if CENTER_V:
                sum_channels(values, v_sum + line, v_largest + 2 * line, length, stride_vl, D, BLOCK, True)
            else:
                measure_channels(values, v_amax + line, length, stride_vl, D, BLOCK)
        else:
            which = unit & 1  # 0 for queries, 1 for keys
            if which == 0:
                x, weight, amax = q + batch * stride_qb, weight_q, q_amax
                out, scales = q_out, q_scale
                stride_l, stride_h = tl.cast(stride_ql, tl.int64), tl.cast(stride_qh, tl.int64)
            else:
                x, weight, amax = k + batch * stride_kb, weight_k, k_amax
                out, scales = k_out, k_scale
                stride_l, stride_h = tl.cast(stride_kl, tl.int64), tl.cast(stride_kh, tl.int64)
            line = which * batches + batch
            group = block // granularity
            slot = batch * heads * num_blocks
            norms += line * tokens
            amax += slot + group
            finished += line * num_blocks + group
            if unit < 0:
                _measure_rows(
                    *(x, weight, norms, amax, finished, table, start, length, (unit + 2 * parts) // 2),
                    *(stride_l, stride_h, heads, num_blocks, eps, D, ROWS, HEADS, q_out.dtype.element_ty == tl.int8),
                )
            else:
                part = unit // 2 // shares
                first = unit // 2 % shares * CAST_HEADS
                last = tl.minimum(first + CAST_HEADS, heads)
                blocks = tl.minimum(granularity, num_blocks - group * granularity)
                slot += block
                out += slot * (BLOCK * D)
                scales += slot
                adds = which == 1 if SMOOTH_K else False
                _cast_rows(
                    *(x, out, scales, amax, norms, weight, finished, blocks * parts, table, start, length, part, first),
                    *(last, stride_l, stride_h, num_blocks, k_sum + batch * heads * D, adds, D, BLOCK, CAST_ROWS),
                )
