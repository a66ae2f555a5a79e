"""Triton kernels that read a row once, keep it in registers, and write what the next matrix product takes.

A program has one row: several, one after the other or read ahead, were measured and no faster.

A row of `size` channels is a tuple of tensors [PARTS[i], SPAN]: powers of 2 that add up to the row, so that few lanes
idle (5,120 = (4 + 1) x 1,024). Sums run over the first axis inside a thread, then over SPAN between threads. All
arithmetic is fp32. Scales: the largest magnitude over 448, the largest value of E4M3, rounded up to a power of two; of
a row or, with ONE_SCALE, of all rows. Matrix products are faster with one (linear.py says by how much), but no program
sees all rows: it takes what none of them can pass.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from fpsgen.fused.reference import AMAX_FLOOR, LARGEST

_FLOOR = tl.constexpr(AMAX_FLOOR)
_LARGEST = tl.constexpr(LARGEST)
# u of the tanh, times -2 log2(e)
_GELU_1 = tl.constexpr(-2.0 * math.sqrt(2.0 / math.pi) / math.log(2.0))
_GELU_3 = tl.constexpr(-2.0 * math.sqrt(2.0 / math.pi) / math.log(2.0) * 0.044715)


@triton.constexpr_function
def _start(parts, i, span):
    """First channel of part i."""
    return sum(parts[:i]) * span


@triton.constexpr_function
def _whole(parts, i, span, size):
    """Whether all of part i lies within the row."""
    return sum(parts[: i + 1]) * span <= size


@triton.jit
def _channels(PARTS: tl.constexpr, i: tl.constexpr, SPAN: tl.constexpr):
    """Channels of part i. No thread loads or stores more than 8 of them in a row: wider stores of FP8 would pass
    through shared memory.
    """
    lane = tl.max_contiguous(tl.arange(0, SPAN), min(SPAN, 8))
    return _start(PARTS, i, SPAN) + tl.arange(0, PARTS[i])[:, None] * SPAN + lane[None, :]


@triton.jit
def _load(x, PARTS: tl.constexpr, SPAN: tl.constexpr, SIZE: tl.constexpr, policy: tl.constexpr):
    """One row, in its own type."""
    row = ()
    for i in tl.static_range(len(PARTS)):
        at = _channels(PARTS, i, SPAN)
        if _whole(PARTS, i, SPAN, SIZE):
            row += (tl.load(x + at, eviction_policy=policy),)
        else:
            row += (tl.load(x + at, mask=at < SIZE, other=0.0, eviction_policy=policy),)
    return row


@triton.jit
def _store(x, row, PARTS: tl.constexpr, SPAN: tl.constexpr, SIZE: tl.constexpr):
    """One row, cast to the type of x."""
    for i in tl.static_range(len(PARTS)):
        at = _channels(PARTS, i, SPAN)
        values = row[i].to(x.dtype.element_ty)
        if _whole(PARTS, i, SPAN, SIZE):
            tl.store(x + at, values)
        else:
            tl.store(x + at, values, mask=at < SIZE)


@triton.jit
def _amax(row, PARTS: tl.constexpr, SPAN: tl.constexpr):
    """The largest magnitude of a row; NaN does not count."""
    peak = tl.zeros([SPAN], tl.float32)
    for i in tl.static_range(len(PARTS)):
        peak = tl.maximum(peak, tl.max(tl.abs(row[i]), 0))
    return tl.max(peak, 0)


@triton.jit
def _store_fp8(
    out,
    scale,
    number,
    row,
    amax,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    SIZE: tl.constexpr,
    ONE_SCALE: tl.constexpr,
):
    """One row in E4M3, and the scale of magnitudes up to amax. Rows that hold NaN or infinities come out as NaN."""
    bits = (tl.maximum(amax, _FLOOR) / _LARGEST).to(tl.int32, bitcast=True)
    factor = ((bits + 0x7FFFFF) & ~0x7FFFFF).to(tl.float32, bitcast=True)  # see reference.power_of_two
    if ONE_SCALE:
        tl.store(scale, factor, mask=number == 0)
    else:
        tl.store(scale + number, factor)
    inverse = 1.0 / factor
    scaled = ()
    for i in tl.static_range(len(PARTS)):
        scaled += (row[i] * inverse,)
    _store(out + number * SIZE, scaled, PARTS, SPAN, SIZE)


@triton.jit
def _times(row, gains, PARTS: tl.constexpr):
    """A row of fp32, each channel times its gain."""
    product = ()
    for i in tl.static_range(len(PARTS)):
        product += (row[i] * gains[i].to(tl.float32),)
    return product


@triton.jit
def _gelu_tanh(x):
    """0.5 * x * (1 + tanh(u)) as x * sigmoid(2 u), which does not cancel below zero. Two special functions of the
    hardware, no division: rsqrt(1 + 2^e) squared is 1 / (1 + 2^e), also where 2^e is infinite.
    """
    e = x * (_GELU_1 + _GELU_3 * x * x)
    root = tl.rsqrt(1.0 + tl.exp2(e))
    return x * root * root


@triton.jit
def quantize_kernel(
    x,
    gain,
    peaks,
    out,
    scale,
    stride,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    GELU: tl.constexpr,
    GAIN: tl.constexpr,
    FP8: tl.constexpr,
    ONE_SCALE: tl.constexpr,
):
    """out[r] = x[r], or its GELU (tanh), times `gain` [SIZE] with GAIN, in E4M3 with scale[r], or in out's type. x rows
    are `stride` apart. ONE_SCALE: scale[0] for all, from `peaks` [SIZE], fp32, the largest magnitudes of x's channels.
    """
    number = tl.program_id(0).to(tl.int64)
    held = _load(x + number * stride, PARTS, SPAN, SIZE, "evict_first")
    row = ()
    for i in tl.static_range(len(PARTS)):
        values = held[i].to(tl.float32)
        row += (_gelu_tanh(values) if GELU else values,)
    if GAIN:
        gains = _load(gain, PARTS, SPAN, SIZE, "evict_last")
        row = _times(row, gains, PARTS)
    if FP8:
        measured = row
        if ONE_SCALE:
            measured = _load(peaks, PARTS, SPAN, SIZE, "evict_last")
            if GAIN:
                measured = _times(measured, gains, PARTS)
        _store_fp8(out, scale, number, row, _amax(measured, PARTS, SPAN), PARTS, SPAN, SIZE, ONE_SCALE)
    else:
        _store(out + number * SIZE, row, PARTS, SPAN, SIZE)


@triton.constexpr_function
def _root(size):
    return math.sqrt(size)


@triton.jit
def _stretch(factor, ONE: tl.constexpr):
    return factor.to(tl.float32) + 1.0 if ONE else factor.to(tl.float32)


@triton.jit
def _norm_bound(factor, shift, PARTS: tl.constexpr, SPAN: tl.constexpr, SIZE: tl.constexpr, ONE: tl.constexpr):
    """What LayerNorm(x) * (ONE + factor) + shift does not pass, whatever x is: one channel of SIZE can stand out of the
    others by sqrt(SIZE) standard deviations at most.
    """
    bounds = ()
    for i in tl.static_range(len(PARTS)):
        bound = tl.abs(_stretch(factor[i], ONE)) * _root(SIZE) + tl.abs(shift[i].to(tl.float32))
        if not _whole(PARTS, i, SPAN, SIZE):
            bound = tl.where(_channels(PARTS, i, SPAN) < SIZE, bound, 0.0)
        bounds += (bound,)
    return _amax(bounds, PARTS, SPAN)


@triton.jit
def norm_kernel(
    x,
    y,
    y_scale,
    y_bias,
    gate,
    mul,
    add,
    total,
    out,
    scale,
    gate_stride,
    mul_stride,
    add_stride,
    length,
    eps,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    ONE: tl.constexpr,
    FP8: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """total[r] = x[r] + gate * y[r] if RESIDUAL (gate 1 unless GATED), rounded to x's type; then, if NORM,
    out[r] = LayerNorm(total[r]) * (ONE + mul) + add in E4M3 with scale[r], or in out's type. Rows are contiguous;
    gate, mul and add are those of number r // length, *_stride apart. SCALED: y[r] counts times y_scale[r]; BIASED:
    y_bias [SIZE] is added to that. ONE_SCALE: scale[0] for all rows; mul and add have GROUPS rows.
    """
    number = tl.program_id(0).to(tl.int64)
    at = number // length
    held = _load(x + number * SIZE, PARTS, SPAN, SIZE, "evict_first")
    row = ()
    if RESIDUAL:
        branch = _load(y + number * SIZE, PARTS, SPAN, SIZE, "evict_first")
        if SCALED:
            factor_y = tl.load(y_scale + number)
        if BIASED:
            bias = _load(y_bias, PARTS, SPAN, SIZE, "evict_last")
        if GATED:
            gates = _load(gate + at * gate_stride, PARTS, SPAN, SIZE, "evict_last")
        for i in tl.static_range(len(PARTS)):
            change = branch[i].to(tl.float32)
            if SCALED:
                change = change * factor_y
            if BIASED:
                change += bias[i].to(tl.float32)
            if GATED:
                change = change * gates[i].to(tl.float32)
            values = held[i].to(tl.float32) + change
            row += (values.to(x.dtype.element_ty).to(tl.float32),)  # the norm sees what is stored
        _store(total + number * SIZE, row, PARTS, SPAN, SIZE)
    else:
        for i in tl.static_range(len(PARTS)):
            row += (held[i].to(tl.float32),)
    if NORM:
        sums = tl.zeros([SPAN], tl.float32)
        for i in tl.static_range(len(PARTS)):
            sums += tl.sum(row[i], 0)
        mean = tl.sum(sums, 0) / SIZE
        squares = tl.zeros([SPAN], tl.float32)
        centred = ()
        for i in tl.static_range(len(PARTS)):
            values = row[i] - mean
            if not _whole(PARTS, i, SPAN, SIZE):
                values = tl.where(_channels(PARTS, i, SPAN) < SIZE, values, 0.0)
            centred += (values,)
            squares += tl.sum(values * values, 0)
        inverse = tl.rsqrt(tl.sum(squares, 0) / SIZE + eps)
        factor = _load(mul + at * mul_stride, PARTS, SPAN, SIZE, "evict_last")
        shift = _load(add + at * add_stride, PARTS, SPAN, SIZE, "evict_last")
        normed = ()
        for i in tl.static_range(len(PARTS)):
            normed += (centred[i] * inverse * _stretch(factor[i], ONE) + shift[i].to(tl.float32),)
        if FP8:
            if ONE_SCALE:
                amax = _norm_bound(factor, shift, PARTS, SPAN, SIZE, ONE)
                if GROUPS > 1:
                    for group in range(GROUPS):
                        factors = _load(mul + group * mul_stride, PARTS, SPAN, SIZE, "evict_last")
                        shifts = _load(add + group * add_stride, PARTS, SPAN, SIZE, "evict_last")
                        amax = tl.maximum(amax, _norm_bound(factors, shifts, PARTS, SPAN, SIZE, ONE))
            else:
                amax = _amax(normed, PARTS, SPAN)
            _store_fp8(out, scale, number, normed, amax, PARTS, SPAN, SIZE, ONE_SCALE)
        else:
            _store(out + number * SIZE, normed, PARTS, SPAN, SIZE)


@triton.jit
def _inverse_rms(row, eps, PARTS: tl.constexpr, SPAN: tl.constexpr, SIZE: tl.constexpr):
    squares = tl.zeros([SPAN], tl.float32)
    for i in tl.static_range(len(PARTS)):
        values = row[i].to(tl.float32)
        squares += tl.sum(values * values, 0)
    return tl.rsqrt(tl.sum(squares, 0) / SIZE + eps)


@triton.jit
def inverse_rms_kernel(x, out, stride, eps, SIZE: tl.constexpr, PARTS: tl.constexpr, SPAN: tl.constexpr):
    """out[r] = 1 / sqrt(mean of squares of x[r] + eps)."""
    number = tl.program_id(0).to(tl.int64)
    held = _load(x + number * stride, PARTS, SPAN, SIZE, "evict_last")
    tl.store(out + number, _inverse_rms(held, eps, PARTS, SPAN, SIZE))


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    out,
    stride,
    eps,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """out[r] = x[r] / sqrt(mean of squares + eps) * weight; out may be x, whose rows are `stride` apart as well."""
    number = tl.program_id(0).to(tl.int64)
    held = _load(x + number * stride, PARTS, SPAN, SIZE, "evict_first")
    gains = _load(weight, PARTS, SPAN, SIZE, "evict_last")
    inverse = _inverse_rms(held, eps, PARTS, SPAN, SIZE)
    row = ()
    for i in tl.static_range(len(PARTS)):
        row += (held[i].to(tl.float32) * inverse * gains[i].to(tl.float32),)
    _store(out + number * stride, row, PARTS, SPAN, SIZE)
