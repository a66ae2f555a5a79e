"""Device functions of prepare.py: its scale rule, and queries and keys that take their RMSNorm (over all heads) and
rotary embedding on the way, in fp32 and with no rounding in between.

A block's scale needs its largest magnitude after norm and rotation, and a row's norm all of its heads: the first pass
finds both, reading every row once, since a row's norm only stretches the magnitudes that rotation leaves.

Legend: B batch, H heads, L tokens (tile order), N blocks, D head dim. rotary.py has the same in plain torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fpsgen.attention.quantize import BLOCK_AMAX_FLOOR

_BLOCK_FLOOR = tl.constexpr(BLOCK_AMAX_FLOOR)
TOP = tl.constexpr(1.0 / 448.0)


@triton.jit
def raise_amax(amax, line, values):
    """amax[line ...] = max(amax[line ...], values), values from zero up; the result does not depend on the order."""
    at = (amax + line).to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(at, values.to(tl.int32, bitcast=True), sem="relaxed")  # as integers, which order alike


@triton.jit
def block_scale(amax):
    """Scale of blocks of queries or keys whose largest magnitude is amax."""
    return tl.maximum(amax, _BLOCK_FLOOR) * TOP


@triton.jit
def _load_pairs(x, at, real):
    """Channels 2i and 2i + 1 of x as one word, so that both lie in the same thread. at: in pairs."""
    word: tl.constexpr = tl.int32 if x.dtype.element_ty.primitive_bitwidth == 16 else tl.int64
    return tl.load(x.to(tl.pointer_type(word), bitcast=True) + at, mask=real, other=0)


@triton.jit
def _split_pairs(words, kind: tl.constexpr):
    """Even and odd channels, fp32."""
    half: tl.constexpr = tl.int16 if kind.primitive_bitwidth == 16 else tl.int32
    even = words.to(half).to(kind, bitcast=True).to(tl.float32)
    odd = (words >> kind.primitive_bitwidth).to(half).to(kind, bitcast=True).to(tl.float32)
    return even, odd


@triton.jit
def _angles(table, token, real, D: tl.constexpr):
    at = table + token[:, None] * D + tl.arange(0, D // 2)[None, :]
    return tl.load(at, mask=real[:, None], other=0.0), tl.load(at + D // 2, mask=real[:, None], other=0.0)


@triton.jit
def measure_rows(
    x,
    weight,
    norms,
    peaks,
    amax,
    table,
    block,
    part,
    block_start,
    block_len,
    stride_l,
    stride_h,
    heads,
    tokens,
    num_blocks,
    granularity,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of ROWS tokens of a block: norms[token] = 1 / sqrt(mean of squares over heads and channels + eps), and amax
    [H, N] at the block's scale group raised to the largest magnitude after norm and rotation.

    All of one batch. peaks [H, L]: a place for each row's largest magnitude while its norm is not known.
    """
    rows = part * ROWS + tl.arange(0, ROWS)
    real = rows < tl.load(block_len + block)
    token = tl.load(block_start + block).to(tl.int64) + rows
    pair = tl.arange(0, D // 2)
    cos, sin = _angles(table, token, real, D)
    squares = tl.zeros([ROWS, D // 2], tl.float32)
    at = token[:, None] * (stride_l // 2) + pair[None, :]
    for head in tl.range(heads, num_stages=3):
        words = _load_pairs(x + head * stride_h, at, real[:, None])
        even, odd = _split_pairs(words, x.dtype.element_ty)
        squares += even * even + odd * odd
        gains = _load_pairs(weight, head * (D // 2) + pair, pair >= 0)
        gain_even, gain_odd = _split_pairs(gains, weight.dtype.element_ty)
        even *= gain_even[None, :]
        odd *= gain_odd[None, :]
        peak = tl.maximum(tl.abs(even * cos - odd * sin), tl.abs(even * sin + odd * cos))
        tl.store(peaks + head * tokens + token, tl.max(peak, 1), mask=real)
    norm = 1.0 / tl.sqrt_rn(tl.sum(squares, 1) / (heads * D) + eps)
    tl.store(norms + token, norm, mask=real)
    tl.debug_barrier()  # other threads read the peaks
    for head in range(heads):
        peak = tl.load(peaks + head * tokens + token, mask=real, other=0.0)
        raise_amax(amax, head * num_blocks + block // granularity, tl.max(peak * norm, 0))


@triton.jit
def cast_normed(
    x,
    out,
    scales,
    amax,
    norms,
    weight,
    table,
    block,
    bh,
    block_start,
    block_len,
    stride_b,
    stride_l,
    stride_h,
    heads,
    tokens,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Norm, rotation and cast of one block, by what measure_inputs found."""
    batch = (bh // heads).to(tl.int64)
    head = bh % heads
    slot = bh.to(tl.int64) * num_blocks
    scale = block_scale(tl.load(amax + slot + block // granularity))
    tl.store(scales + slot + block, scale)
    inverse = tl.math.div_rn(1.0, scale)
    start = tl.load(block_start + block).to(tl.int64)
    length = tl.load(block_len + block)
    channels = tl.arange(0, D)
    pair = tl.arange(0, D // 2)
    gains = _load_pairs(weight, head * (D // 2) + pair, pair >= 0)
    gain_even, gain_odd = _split_pairs(gains, weight.dtype.element_ty)
    base = x + batch * stride_b + head.to(tl.int64) * stride_h
    for first in range(0, BLOCK, ROWS):  # in parts that leave registers for several programs at a time
        rows = first + tl.arange(0, ROWS)
        real = rows < length
        token = start + rows
        cos, sin = _angles(table, token, real, D)
        norm = tl.load(norms + batch * tokens + token, mask=real, other=0.0)[:, None]
        words = _load_pairs(base, token[:, None] * (stride_l // 2) + pair[None, :], real[:, None])
        even, odd = _split_pairs(words, x.dtype.element_ty)
        even = even * gain_even[None, :] * norm
        odd = odd * gain_odd[None, :] * norm
        values = tl.join((even * cos - odd * sin) * inverse, (even * sin + odd * cos) * inverse).reshape(ROWS, D)
        cells = rows[:, None] * D + channels[None, :]
        tl.store(out + (slot + block) * (BLOCK * D) + cells, values.to(tl.float8e4nv))
