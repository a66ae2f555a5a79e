"""The kernel of cross_attention.py. Queries pass through once, so it is bound by memory while a text is short."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fpsgen.fused.launch import inverse_rms


@dataclass(frozen=True)
class CrossConfig:
    """rows: queries of a block. blocks: of a program, one after the other. keys: of one product. warps, stages:
    Triton's.
    """

    rows: int = 64
    blocks: int = 4
    keys: int = 64
    warps: int = 4
    stages: int = 2


def choose_cross(num_keys: int) -> CrossConfig:
    """Up to 128 keys stay in shared memory for all blocks of a program; more are read again for each."""
    return CrossConfig(keys=128 if 64 < num_keys <= 128 else 64)


@triton.jit
def _load_keys(x, start, num_keys, stride, D: tl.constexpr, KEYS: tl.constexpr):
    """KEYS rows [KEYS, D] from `start`, zeros beyond the last."""
    numbers = start + tl.arange(0, KEYS)
    places = numbers[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(x + places, mask=numbers[:, None] < num_keys, other=0.0)


@triton.jit
def _bias(start, num_keys, last_bias, KEYS: tl.constexpr):
    """What is added to the logits of keys from `start` on."""
    numbers = start + tl.arange(0, KEYS)
    return tl.where(numbers < num_keys, tl.where(numbers == num_keys - 1, last_bias, 0.0), -float("inf"))


@triton.jit
def cross_attention_kernel(
    q,
    k,
    v,
    out,
    inverse_rms,
    out_scale,
    length,
    num_keys,
    heads,
    scale,
    last_bias,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    KEYS: tl.constexpr,
    ONCE: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One program for BLOCKS times ROWS queries of a head. q, out [B, L, H, D], k, v [B, N, H, D], contiguous. With
    NORM, queries are multiplied by inverse_rms [B, L]. With SCALED, the result is divided by out_scale [H, D]. scale,
    last_bias: of logits to base 2; the bias is that of key N - 1. ONCE: KEYS holds all keys. Heads are neighbours in
    the order of programs, as in memory.
    """
    head, batch = tl.program_id(0) % heads, (tl.program_id(0) // heads).to(tl.int64)
    rows, channels, stride = tl.arange(0, ROWS), tl.arange(0, D), heads * D
    first = tl.program_id(1) * (ROWS * BLOCKS)
    k += (batch * num_keys * heads + head) * D
    v += (batch * num_keys * heads + head) * D
    places = rows[:, None] * stride + channels[None, :]
    if ONCE:
        keys = _load_keys(k, 0, num_keys, stride, D, KEYS)
        values = _load_keys(v, 0, num_keys, stride, D, KEYS)
        bias = _bias(0, num_keys, last_bias, KEYS)
    if SCALED:
        inverse_scale = 1.0 / tl.load(out_scale + head * D + channels)
    for block in range(tl.minimum(BLOCKS, tl.cdiv(length - first, ROWS))):
        row = first + block * ROWS
        real = row + rows < length
        base = (batch * length + row) * stride + head * D
        queries = tl.load(q + base + places, mask=real[:, None], other=0.0)
        factor = tl.zeros([ROWS], tl.float32) + scale
        if NORM:
            factor *= tl.load(inverse_rms + batch * length + row + rows, mask=real, other=0.0)
        if ONCE:
            logits = tl.dot(queries, keys.T) * factor[:, None] + bias[None, :]
            p = tl.exp2(logits - tl.expand_dims(tl.max(logits, 1), 1))
            l_i = tl.sum(p, 1)
            acc = tl.dot(p.to(values.dtype), values)
        else:
            m_i = tl.full([ROWS], -float("inf"), tl.float32)
            l_i = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, D], tl.float32)
            for start in range(0, num_keys, KEYS):
                keys = _load_keys(k, start, num_keys, stride, D, KEYS)
                logits = tl.dot(queries, keys.T) * factor[:, None]
                logits += _bias(start, num_keys, last_bias, KEYS)[None, :]
                m_new = tl.maximum(m_i, tl.max(logits, 1))
                p = tl.exp2(logits - m_new[:, None])
                alpha = tl.exp2(m_i - m_new)
                l_i = l_i * alpha + tl.sum(p, 1)
                values = _load_keys(v, start, num_keys, stride, D, KEYS)
                acc = tl.dot(p.to(values.dtype), values, acc * alpha[:, None])
                m_i = m_new
        o = acc * (1.0 / l_i)[:, None]  # pyright: ignore[reportOperatorIssue]
        if SCALED:
            o *= inverse_scale[None, :]
        tl.store(out + base + places, o.to(out.dtype.element_ty), mask=real[:, None])


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    last_bias: float,
    eps: float | None = None,
    out_scale: torch.Tensor | None = None,
    config: CrossConfig | None = None,
) -> torch.Tensor:
    """cross_attention of contiguous q, k, v, out_scale. last_bias: natural logarithm of how often the last key counts.
    eps: of the queries' RMSNorm.
    """
    batch, length, heads, dim = q.shape
    config, base2 = config or choose_cross(k.shape[1]), math.log2(math.e)
    inverse = q if eps is None else inverse_rms(q.view(batch * length, heads * dim), eps)
    out = torch.empty_like(q, dtype=q.dtype if out_scale is None else torch.float8_e4m3fn)
    cross_attention_kernel[batch * heads, triton.cdiv(length, config.rows * config.blocks)](
        *(q, k, v, out, inverse, q if out_scale is None else out_scale),
        *(length, k.shape[1], heads, dim**-0.5 * base2, last_bias * base2),
        **{"D": dim, "ROWS": config.rows, "BLOCKS": config.blocks, "KEYS": config.keys},
        ONCE=k.shape[1] <= config.keys,
        NORM=eps is not None,
        SCALED=out_scale is not None,
        num_warps=config.warps,  # pyright: ignore[reportCallIssue]
        num_stages=config.stages,  # pyright: ignore[reportCallIssue]
    )
    return out
