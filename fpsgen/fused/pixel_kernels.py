"""Triton kernels over the pixels of a video in channels-last order: a pixel's channels lie side by side."""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def norm_silu_kernel(
    x,
    other,
    bias,
    gain,
    total,
    out,
    pixels,
    per_video,
    skip,
    eps,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    SILU: tl.constexpr,
):
    """total = x (+ bias if BIAS) (+ other if ADD), stored if KEEP; out = silu(total / rms * gain), silu if SILU.
    x, other, total [pixels, C]; bias, gain [C]. out has WIDTH channels, zeros beyond C; every video of `per_video`
    pixels is preceded by `skip` rows, which are left alone. CHANNELS: WIDTH or more, a power of 2.
    """
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.max_contiguous(tl.arange(0, CHANNELS), 8)
    real = (pixel < pixels)[:, None] & (channel < C)[None, :]
    at = pixel[:, None] * C + channel[None, :]
    values = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    if BIAS:
        values += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    if ADD:
        values += tl.load(other + at, mask=real, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(total + at, values.to(x.dtype.element_ty), mask=real)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / C + eps)
    gains = tl.load(gain + channel, mask=channel < C, other=0.0).to(tl.float32)
    values = values * inverse[:, None] * gains[None, :]
    if SILU:
        root = tl.rsqrt(1.0 + tl.exp2(values * -_LOG2_E))  # its square is the sigmoid
        values = values * root * root
    to = (pixel + (pixel // per_video + 1) * skip)[:, None] * WIDTH + channel[None, :]
    tl.store(out + to, values.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None] & (channel < WIDTH)[None, :])


@triton.jit
def upsample_kernel(
    x,
    other,
    bias,
    out,
    pixels,
    width,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
):
    """out[2 y + i, 2 x + j] = x[y, x] (+ bias if BIAS) (+ other if ADD) for i, j in (0, 1); frames follow one another.
    x, other [pixels, C], bias [C].
    """
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.max_contiguous(tl.arange(0, CHANNELS), 8)
    real = (pixel < pixels)[:, None] & (channel < C)[None, :]
    at = pixel[:, None] * C + channel[None, :]
    wide = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    if BIAS:
        wide += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    if ADD:
        wide += tl.load(other + at, mask=real, other=0.0).to(tl.float32)
    values = wide.to(x.dtype.element_ty)
    first = pixel // width * 4 * width + pixel % width * 2  # row y becomes rows 2 y and 2 y + 1, twice as long
    to = first[:, None] * C + channel[None, :]
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            tl.store(out + to + (i * 2 * width + j) * C, values, mask=real)
