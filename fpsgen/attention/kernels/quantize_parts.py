"""What quantize_qkv.py and norm_rope_quantize.py share, in Triton: the scale rule, largest magnitudes and sums that
many programs add to, pairs of channels.

None of them depends on the order in which programs run: magnitudes are compared, and sums are added, as integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fpsgen.attention.quantize import BLOCK_AMAX_FLOOR, INT8_MAX

_BLOCK_FLOOR = tl.constexpr(BLOCK_AMAX_FLOOR)
INVERSE_MAX = tl.constexpr(1.0 / 448.0)
_INVERSE_INT8 = tl.constexpr(1.0 / INT8_MAX)
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
# Sums over some tokens, at most 2^26, as multiples of 2^-19: 2^17 of them fit into int64.
_SUM_UNIT = tl.constexpr(2.0**-19)
_SUM_LIMIT = tl.constexpr(2.0**26)


@triton.jit
def block_scale(amax):
    """Scale of blocks of queries or keys whose largest magnitude is amax."""
    return tl.maximum(amax, _BLOCK_FLOOR) * INVERSE_MAX


@triton.jit
def block_scale_int8(amax):
    """The same for INT8; NaN stays NaN, which no INT8 value could hold."""
    return tl.maximum(amax, _BLOCK_FLOOR, propagate_nan=tl.PropagateNan.ALL) * _INVERSE_INT8


@triton.jit
def cast_int8(x):
    """fp32 of at most 127.5 to the nearest integer (ties to even), int8."""
    return (x + _MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def raise_amax(amax, index, values, mask):
    """amax[index] = max(amax[index], values), values from zero up."""
    pointers = (amax + index).to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(pointers, values.to(tl.int32, bitcast=True), mask=mask, sem="relaxed")  # integers order alike


@triton.jit
def raise_largest(largest, index, values):
    """largest[index] (int32, 0 to begin with) = max(largest[index], code of values), values of any sign."""
    bits = values.to(tl.int32, bitcast=True)
    code = tl.where(bits < 0, ~bits, bits ^ -2147483648)  # as unsigned integers in the values' order, all above 0
    pointers = (largest + index).to(tl.pointer_type(tl.uint32), bitcast=True)
    tl.atomic_max(pointers, code.to(tl.uint32, bitcast=True), sem="relaxed")


@triton.jit
def load_largest(largest, index):
    """The value that raise_largest kept."""
    code = tl.load(largest + index)
    bits = tl.where(code < 0, code ^ -2147483648, ~code)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def add_sum(total, index, values):
    """total[index] (int64) += values, sums over some tokens. NaN counts as 0."""
    values = tl.where(values == values, values, 0.0)
    values = tl.minimum(tl.maximum(values, -_SUM_LIMIT), _SUM_LIMIT)
    tl.atomic_add(total + index, (values / _SUM_UNIT).to(tl.int64), sem="relaxed")


@triton.jit
def load_mean(total, index, tokens):
    """What add_sum added up, over the number of tokens."""
    return tl.load(total + index).to(tl.float32) * _SUM_UNIT / tokens


@triton.jit
def _load_part(x, first, length, stride_l, D: tl.constexpr, ROWS: tl.constexpr):
    """Rows [first, first + ROWS) of x as fp32, zeros from `length` on."""
    row = first + tl.arange(0, ROWS)[:, None]
    pointers = x + row * stride_l + tl.arange(0, D)[None, :]
    return tl.load(pointers, mask=row < length, other=0.0, eviction_policy="evict_first").to(tl.float32)


@triton.jit
def measure_channels(x, amax, length, stride_l, D: tl.constexpr, BLOCK: tl.constexpr):
    """amax [D] raised to the largest magnitude of every channel of one block, the `length` rows from x on."""
    rows: tl.constexpr = 32  # at a time: few registers leave room for other programs
    peak = tl.abs(_load_part(x, 0, length, stride_l, D, rows))
    for first in range(rows, BLOCK, rows):
        peak = tl.maximum(peak, tl.abs(_load_part(x, first, length, stride_l, D, rows)))
    channels = tl.arange(0, D)
    raise_amax(amax, channels, tl.max(peak, 0), channels >= 0)


@triton.jit
def sum_channels(x, total, largest, length, stride_l, D: tl.constexpr, BLOCK: tl.constexpr, EXTREMES: tl.constexpr):
    """total [D] plus the sum of every channel of one block, the `length` rows from x on. EXTREMES: largest [2, D]
    raised to the largest values of x and of -x.
    """
    rows: tl.constexpr = 16
    high = tl.full([rows, D], float("-inf"), tl.float32)
    low = tl.full([rows, D], float("inf"), tl.float32)
    sums = tl.zeros([rows, D], tl.float32)
    for first in range(0, BLOCK, rows):
        values = _load_part(x, first, length, stride_l, D, rows)
        sums += values
        if EXTREMES:
            real = first + tl.arange(0, rows)[:, None] < length
            high = tl.maximum(high, tl.where(real, values, float("-inf")))
            low = tl.minimum(low, tl.where(real, values, float("inf")))
    channels = tl.arange(0, D)
    add_sum(total, channels, tl.sum(sums, 0))
    if EXTREMES:
        raise_largest(largest, channels, tl.max(high, 0))
        raise_largest(largest, D + channels, -tl.min(low, 0))


@triton.jit
def load_pairs(x, index, mask, policy: tl.constexpr):
    """Channels 2i and 2i + 1 of x as one word, so that both lie in the same thread. index: in pairs."""
    word: tl.constexpr = tl.int32 if x.dtype.element_ty.primitive_bitwidth == 16 else tl.int64
    index += x.to(tl.pointer_type(word), bitcast=True)
    return tl.load(index, mask=mask, other=0, eviction_policy=policy)


@triton.jit
def split_pairs(words, dtype: tl.constexpr):
    """Even and odd channels, fp32."""
    if dtype == tl.bfloat16:  # the upper half of fp32: one instruction each
        return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
    half: tl.constexpr = tl.int16 if dtype.primitive_bitwidth == 16 else tl.int32
    even = words.to(half).to(dtype, bitcast=True).to(tl.float32)
    odd = (words >> dtype.primitive_bitwidth).to(half).to(dtype, bitcast=True).to(tl.float32)
    return even, odd


@triton.jit
def load_angles(table, token, mask, D: tl.constexpr):
    """Cosines and sines of the tokens' D/2 pairs."""
    pointers = table + token[:, None] * D + tl.arange(0, D // 2)[None, :]
    return tl.load(pointers, mask=mask[:, None], other=0.0), tl.load(pointers + D // 2, mask=mask[:, None], other=0.0)
