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
    """rows: queries of a program. keys: of one product. warps, stages: Triton's."""

    rows: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2


@triton.jit
def cross_attention_kernel(
    q,
    k,
    v,
    out,
    inverse_rms,
    weight,
    out_scale,
    length,
    num_keys,
    heads,
    scale,
    last_bias,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One program for ROWS queries of a head. q, out [B, L, H, D], k, v [B, N, H, D], contiguous. With NORM, q is
    multiplied by inverse_rms [B, L] and weight [H, D] and rounded. With SCALED, the result is divided by out_scale
    [H, D]. scale, last_bias: of logits to base 2; the bias is that of key N - 1. Heads are neighbours in the order of
    programs, as in memory.
    """
    head, batch = tl.program_id(0) % heads, (tl.program_id(0) // heads).to(tl.int64)
    row = tl.program_id(1) * ROWS
    rows = tl.arange(0, ROWS)
    real = row + rows < length
    channels, stride = tl.arange(0, D), heads * D
    base = (batch * length + row) * stride + head * D
    places = rows[:, None] * stride + channels[None, :]
    queries = tl.load(q + base + places, mask=real[:, None], other=0.0)
    if NORM:
        inverse = tl.load(inverse_rms + batch * length + row + rows, mask=real, other=0.0)
        gains = tl.load(weight + head * D + channels).to(tl.float32)
        queries = (queries.to(tl.float32) * inverse[:, None] * gains[None, :]).to(queries.dtype)
    k += (batch * num_keys * heads + head) * D
    v += (batch * num_keys * heads + head) * D
    m_i = tl.full([ROWS], -float("inf"), tl.float32)
    l_i = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, num_keys, KEYS):
        numbers = start + tl.arange(0, KEYS)
        there = numbers < num_keys
        offsets = numbers[:, None] * stride + channels[None, :]
        keys = tl.load(k + offsets, mask=there[:, None], other=0.0)
        logits = tl.dot(queries, keys.T) * scale
        bias = tl.where(there, tl.where(numbers == num_keys - 1, last_bias, 0.0), -float("inf"))
        logits += bias[None, :]
        m_new = tl.maximum(m_i, tl.max(logits, 1))
        p = tl.exp2(logits - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        values = tl.load(v + offsets, mask=there[:, None], other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * alpha[:, None])
        m_i = m_new
    o = acc / l_i[:, None]
    if SCALED:
        o = o / tl.load(out_scale + head * D + channels)[None, :]
    tl.store(out + base + places, o.to(out.dtype.element_ty), mask=real[:, None])


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    last_bias: float,
    norm: tuple[torch.Tensor, float] | None = None,
    config: CrossConfig | None = None,
    out_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """cross_attention of contiguous q, k, v. last_bias: natural logarithm of how often the last key counts. norm:
    weight and eps of the queries' RMSNorm. out_scale: contiguous.
    """
    batch, length, heads, dim = q.shape
    weight, eps = norm or (q, 0.0)
    inverse = q if norm is None else inverse_rms(q.view(batch * length, heads * dim), eps)
    config, base2 = config or CrossConfig(), math.log2(math.e)
    out = torch.empty_like(q, dtype=q.dtype if out_scale is None else torch.float8_e4m3fn)
    cross_attention_kernel[batch * heads, triton.cdiv(length, config.rows)](
        *(q, k, v, out, inverse, weight, q if out_scale is None else out_scale),
        *(length, k.shape[1], heads, dim**-0.5 * base2, last_bias * base2),
        **{"D": dim, "ROWS": config.rows, "KEYS": config.keys, "NORM": norm is not None},
        SCALED=out_scale is not None,
        num_warps=config.warps,  # pyright: ignore[reportCallIssue]
        num_stages=config.stages,  # pyright: ignore[reportCallIssue]
    )
    return out
