"""Queries and keys that take their RMSNorm (over all heads) and rotary embedding on the way into blocks, in fp32 and
with no rounding in between; and what quantize_qkv.py shares: the scale rule, how an amax is raised.

A block's scale needs its largest magnitude after norm and rotation, and a row's norm all of its heads: measuring finds
both in one reading, since a row's norm only stretches the magnitudes that rotation leaves. The cast reads every row
once more. It follows so closely, in the same launch, that the row still lies in the L2 cache.

Legend: B batch, H heads, L tokens (tile order), N blocks, D head dim. norm_rope.py has the same in plain torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fpsgen.attention.quantize import BLOCK_AMAX_FLOOR

_BLOCK_FLOOR = tl.constexpr(BLOCK_AMAX_FLOOR)
TOP = tl.constexpr(1.0 / 448.0)


@triton.jit
def raise_amax(amax, line, values, real):
    """amax[line ...] = max(amax[line ...], values), values from zero up; the result does not depend on the order."""
    at = (amax + line).to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(at, values.to(tl.int32, bitcast=True), mask=real, sem="relaxed")  # as integers, which order alike


@triton.jit
def block_scale(amax):
    """Scale of blocks of queries or keys whose largest magnitude is amax."""
    return tl.maximum(amax, _BLOCK_FLOOR) * TOP


@triton.jit
def measure_channels(x, amax, length, stride_l, D: tl.constexpr, BLOCK: tl.constexpr):
    """amax [D] raised to the largest magnitude of every channel of one block, the `length` rows from x on."""
    rows: tl.constexpr = 32  # at a time: few registers leave room for other programs
    row, channels = tl.arange(0, rows), tl.arange(0, D)
    at = x + row[:, None] * stride_l + channels[None, :]
    peak = tl.abs(tl.load(at, mask=row[:, None] < length, other=0.0, eviction_policy="evict_first").to(tl.float32))
    for first in range(rows, BLOCK, rows):
        at += rows * stride_l
        values = tl.load(at, mask=first + row[:, None] < length, other=0.0, eviction_policy="evict_first")
        peak = tl.maximum(peak, tl.abs(values.to(tl.float32)))
    raise_amax(amax, channels, tl.max(peak, 0), channels >= 0)


@triton.jit
def _load_pairs(x, at, real, policy: tl.constexpr):
    """Channels 2i and 2i + 1 of x as one word, so that both lie in the same thread. at: in pairs."""
    word: tl.constexpr = tl.int32 if x.dtype.element_ty.primitive_bitwidth == 16 else tl.int64
    at += x.to(tl.pointer_type(word), bitcast=True)
    return tl.load(at, mask=real, other=0, eviction_policy=policy)


@triton.jit
def _split_pairs(words, kind: tl.constexpr):
    """Even and odd channels, fp32."""
    if kind == tl.bfloat16:  # the upper half of fp32: one instruction each
        return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
    half: tl.constexpr = tl.int16 if kind.primitive_bitwidth == 16 else tl.int32
    even = words.to(half).to(kind, bitcast=True).to(tl.float32)
    odd = (words >> kind.primitive_bitwidth).to(half).to(kind, bitcast=True).to(tl.float32)
    return even, odd


@triton.jit
def _angles(table, token, real, D: tl.constexpr):
    at = table + token[:, None] * D + tl.arange(0, D // 2)[None, :]
    return tl.load(at, mask=real[:, None], other=0.0), tl.load(at + D // 2, mask=real[:, None], other=0.0)


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
):
    """Of ROWS tokens of a block: norms[token] = 1 / sqrt(mean of squares over heads and channels + eps), and
    amax[head, 0] of the block's scale group raised to the largest magnitude after norm and rotation; then one more of
    the group's parts is `finished`. A row that holds NaN raises nothing.
    """
    rows = part * ROWS + tl.arange(0, ROWS)
    real = rows < length
    token = start + rows
    pair = tl.arange(0, D // 2)
    lane = tl.arange(0, HEADS)
    cos, sin = _angles(table, token, real, D)
    squares = tl.zeros([ROWS, D // 2], tl.float32)
    peaks = tl.zeros([ROWS, HEADS], tl.float32)  # each row's largest magnitudes, while its norm is not known
    at = token[:, None] * (stride_l // 2) + pair[None, :]
    one = _load_pairs(x, at, real[:, None], "evict_last")  # words of two heads ahead, of none beyond the last
    two = _load_pairs(x + stride_h, at, (rows < tl.where(heads > 1, length, 0))[:, None], "evict_last")
    for head in tl.range(heads, num_stages=1):
        words, one = one, two
        more = rows < tl.where(head + 2 < heads, length, 0)
        two = _load_pairs(x + (head + 2) * stride_h, at, more[:, None], "evict_last")
        even, odd = _split_pairs(words, x.dtype.element_ty)
        squares += even * even + odd * odd
        gains = _load_pairs(weight, head * (D // 2) + pair, pair >= 0, "")
        gain_even, gain_odd = _split_pairs(gains, weight.dtype.element_ty)
        even *= gain_even[None, :]
        odd *= gain_odd[None, :]
        peak = tl.maximum(tl.abs(even * cos - odd * sin), tl.abs(even * sin + odd * cos))
        peaks = tl.where(lane[None, :] == head, tl.max(peak, 1)[:, None], peaks)
    norm = 1.0 / tl.sqrt_rn(tl.sum(squares, 1) / (heads * D) + eps)
    tl.store(norms + token, norm, mask=real)
    peaks *= norm[:, None]
    raise_amax(amax, lane * num_blocks, tl.max(tl.where(peaks >= 0, peaks, 0.0), 0), lane < heads)
    tl.debug_barrier()  # all threads have written
    tl.atomic_add(finished, 1, sem="release")


@triton.jit
def _cast_normed(
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
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Norm, rotation and cast of ROWS tokens of a block, heads `first` to `last` - 1, once `wanted` parts of the scale
    group are finished. out, scales: at the block; head by head they are num_blocks apart.
    """
    rows = part * ROWS + tl.arange(0, ROWS)
    real = rows < length
    token = start + rows
    pair = tl.arange(0, D // 2)
    cos, sin = _angles(table, token, real, D)
    at = token[:, None] * (stride_l // 2) + pair[None, :]
    # no wider stores than what a thread has: they would pass through shared memory
    cells = rows[:, None] * D + tl.max_contiguous(tl.arange(0, D), 8)[None, :]
    one = _load_pairs(x + first * stride_h, at, real[:, None], "evict_first")  # words of a head ahead
    while tl.atomic_add(finished, 0, sem="acquire") < wanted:
        pass
    tl.debug_barrier()  # no thread reads before; what others wrote is in L2 (.cg)
    norm = tl.load(norms + token, mask=real, other=0.0, cache_modifier=".cg")[:, None]
    ahead = tl.load(amax + first * num_blocks, cache_modifier=".cg")
    for head in tl.range(first, last, num_stages=1):
        words = one
        more = rows < tl.where(head + 1 < last, length, 0)
        one = _load_pairs(x + (head + 1) * stride_h, at, more[:, None], "evict_first")
        scale = block_scale(ahead)
        ahead = tl.load(amax + tl.minimum(head + 1, last - 1) * num_blocks, cache_modifier=".cg")
        inverse = tl.math.div_rn(1.0, scale)
        tl.store(scales + head * num_blocks, scale, mask=part == 0)
        gains = _load_pairs(weight, head * (D // 2) + pair, pair >= 0, "")
        gain_even, gain_odd = _split_pairs(gains, weight.dtype.element_ty)
        even, odd = _split_pairs(words, x.dtype.element_ty)
        even = even * gain_even[None, :] * norm
        odd = odd * gain_odd[None, :] * norm
        values = tl.join((even * cos - odd * sin) * inverse, (even * sin + odd * cos) * inverse).reshape(ROWS, D)
        to = out + (head * num_blocks).to(tl.int64) * (BLOCK * D) + cells
        tl.store(to, values.to(tl.float8e4nv), cache_modifier=".cs")


@triton.jit
def norm_inputs(
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
    finished,
    ticket,
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
    lag,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CAST_ROWS: tl.constexpr,
    CAST_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """q and k measured and cast, v_amax [B, H, D] raised to the largest magnitudes of V's channels.

    Work comes in steps, one for each block of the batch and `lag` more: measuring ROWS rows of q or k over all heads,
    as often as a block has them; casting CAST_ROWS rows and up to CAST_HEADS heads of the block that was measured lag
    steps ago, lag + 1 being granularity at least; measuring V, head by head. Programs take it in the order in which
    they start: what a cast waits for has begun, and waits for nothing itself.

    Zero before: amax of q and k [B, H, N], where the column of a scale group is used, v_amax, finished [2, B, N],
    ticket [1]. norms [2, B, L] pass from measuring to casting. HEADS: H or more, a power of 2.
    """
    parts: tl.constexpr = BLOCK // ROWS
    cast_parts: tl.constexpr = BLOCK // CAST_ROWS
    shares = tl.cdiv(heads, CAST_HEADS)
    casts = 2 * cast_parts * shares
    units = 2 * parts + casts + heads
    turn = tl.atomic_add(ticket, 1, sem="relaxed")
    unit = turn % units
    place = turn // units
    unit -= 2 * parts
    if (unit >= 0) & (unit < casts):
        place -= lag
    if (place >= 0) & (place < batches * num_blocks):
        batch = (place // num_blocks).to(tl.int64)
        block = place % num_blocks
        start = tl.load(block_start + block).to(tl.int64)
        length = tl.load(block_len + block)
        if unit >= casts:
            head = unit - casts
            measure_channels(
                v + batch * stride_vb + head.to(tl.int64) * stride_vh + start * stride_vl,
                v_amax + (batch * heads + head) * D,
                *(length, stride_vl, D, BLOCK),
            )
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
                    *(stride_l, stride_h, heads, num_blocks, eps, D, ROWS, HEADS),
                )
            else:
                part = unit // 2 // shares
                first = unit // 2 % shares * CAST_HEADS
                blocks = tl.minimum(granularity, num_blocks - group * granularity)
                slot += block
                _cast_normed(
                    *(x, out + slot * (BLOCK * D), scales + slot, amax, norms, weight, finished, blocks * parts),
                    *(table, start, length, part, first, tl.minimum(first + CAST_HEADS, heads)),
                    *(stride_l, stride_h, num_blocks, D, BLOCK, CAST_ROWS),
                )
