"""Triton kernels that read a row once, keep it in registers, and write what the next matrix product takes.

A program has one row: several, one after the other or read ahead, were measured and no faster.

A row of `size` channels is a tuple of tensors [PARTS[i], SPAN]: powers of 2 that add up to the row, so that few lanes
idle (5,120 = (4 + 1) x 1,024). Sums run over the first axis inside a thread, then over SPAN between threads. All
arithmetic is fp32. Scales: a row's largest magnitude over 448, the largest value of E4M3.
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
def _store_fp8(x, scale, row, PARTS: tl.constexpr, SPAN: tl.constexpr, SIZE: tl.constexpr):
    """One row in E4M3 and its scale. Rows that hold NaN or infinities come out as NaN."""
    peak = tl.zeros([SPAN], tl.float32)
    for i in tl.static_range(len(PARTS)):
        peak = tl.maximum(peak, tl.max(tl.abs(row[i]), 0))
    amax = tl.maximum(tl.max(peak, 0), _FLOOR)
    tl.store(scale, amax / _LARGEST)
    inverse = _LARGEST / amax
    scaled = ()
    for i in tl.static_range(len(PARTS)):
        scaled += (row[i] * inverse,)
    _store(x, scaled, PARTS, SPAN, SIZE)


@triton.jit
def _emit(out, scale, number, row, PARTS: tl.constexpr, SPAN: tl.constexpr, SIZE: tl.constexpr, FP8: tl.constexpr):
    if FP8:
        _store_fp8(out + number * SIZE, scale + number, row, PARTS, SPAN, SIZE)
    else:
        _store(out + number * SIZE, row, PARTS, SPAN, SIZE)


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
    out,
    scale,
    stride,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    GELU: tl.constexpr,
    GAIN: tl.constexpr,
    FP8: tl.constexpr,
):
    """out[r] = x[r], or its GELU (tanh), times `gain` [SIZE] with GAIN, in E4M3 with scale[r], or in out's type. x rows
    are `stride` apart.
    """
    number = tl.program_id(0).to(tl.int64)
    held = _load(x + number * stride, PARTS, SPAN, SIZE, "evict_first")
    row = ()
    for i in tl.static_range(len(PARTS)):
        values = held[i].to(tl.float32)
        row += (_gelu_tanh(values) if GELU else values,)
    if GAIN:
        gains, plain = _load(gain, PARTS, SPAN, SIZE, "evict_last"), row
        row = ()
        for i in tl.static_range(len(PARTS)):
            row += (plain[i] * gains[i].to(tl.float32),)
    _emit(out, scale, number, row, PARTS, SPAN, SIZE, FP8)


@triton.jit
def norm_kernel(
    x,
    y,
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
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    ONE: tl.constexpr,
    FP8: tl.constexpr,
):
    """total[r] = x[r] + gate * y[r] if RESIDUAL (gate 1 unless GATED), rounded to x's type; then, if NORM,
    out[r] = LayerNorm(total[r]) * (ONE + mul) + add in E4M3 with scale[r], or in out's type. Rows are contiguous;
    gate, mul and add are those of number r // length, *_stride apart.
    """
    number = tl.program_id(0).to(tl.int64)
    at = number // length
    held = _load(x + number * SIZE, PARTS, SPAN, SIZE, "evict_first")
    row = ()
    if RESIDUAL:
        branch = _load(y + number * SIZE, PARTS, SPAN, SIZE, "evict_first")
        if GATED:
            gates = _load(gate + at * gate_stride, PARTS, SPAN, SIZE, "evict_last")
        for i in tl.static_range(len(PARTS)):
            change = branch[i].to(tl.float32)
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
            stretch = factor[i].to(tl.float32)
            if ONE:
                stretch += 1.0
            normed += (centred[i] * inverse * stretch + shift[i].to(tl.float32),)
        _emit(out, scale, number, normed, PARTS, SPAN, SIZE, FP8)


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
