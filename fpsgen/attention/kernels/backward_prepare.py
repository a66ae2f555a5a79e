"""What the backward kernels read, made in two small passes: row statistics, and q, k, v as the FP8 forward saw them.

Every E4M3 and every INT8 value is a bf16 value too, so quantized queries and keys are kept without rounding in bf16;
their block scales are applied inside the kernels, in fp32. V has one scale per channel, which no product of the
backward can take out of its sum: it is de-quantized and rounded to bf16 (relative 2^-9).

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from fpsgen.attention.kernels.quantize_qkv import quantize

if TYPE_CHECKING:
    from fpsgen.attention.plan import DeviceTables

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def backward_stats(
    grad,
    out,
    lse,
    delta_out,
    lse_out,
    block_start,
    block_len,
    heads,
    tokens,
    num_blocks,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """delta = rowsum(dO * O) and LSE in base 2, fp32 [B, H, P]; a row of padding gets delta 0 and LSE inf: its P is 0.

    Programs (block, batch x head). grad, out: contiguous [B, L, H, D].
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    rows, channels = tl.arange(0, BLOCK), tl.arange(0, D)
    real = rows < tl.load(block_len + block)
    token = tl.load(block_start + block).to(tl.int64) + rows
    line = ((bh // heads).to(tl.int64) * tokens + token) * heads + bh % heads
    offsets = line[:, None] * D + channels[None, :]
    o = tl.load(out + offsets, mask=real[:, None], other=0.0).to(tl.float32)
    do = tl.load(grad + offsets, mask=real[:, None], other=0.0).to(tl.float32)
    lse_i = tl.load(lse + bh.to(tl.int64) * tokens + token, mask=real, other=float("inf"))
    to = (bh.to(tl.int64) * num_blocks + block) * BLOCK + rows
    tl.store(delta_out + to, tl.sum(o * do, 1))
    tl.store(lse_out + to, lse_i * _LOG2_E)


@triton.jit
def expand_fp8(
    q,
    k,
    v,
    v_scale,
    q_out,
    k_out,
    v_out,
    block_start,
    block_len,
    stride_vb,
    stride_vl,
    stride_vh,
    heads,
    tokens,
    num_blocks,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Values of q and k (E4M3 or INT8 [B, H, P, D]), and V quantized and de-quantized (from v [B, L, H, D]), to bf16
    [B, L, H, D]. Programs (block, batch x head).
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    rows, channels = tl.arange(0, BLOCK), tl.arange(0, D)
    real = (rows < tl.load(block_len + block))[:, None]
    token = tl.load(block_start + block).to(tl.int64) + rows
    padded = ((bh.to(tl.int64) * num_blocks + block) * BLOCK + rows)[:, None] * D + channels[None, :]
    batch, head = (bh // heads).to(tl.int64), bh % heads
    to = ((batch * tokens + token) * heads + head)[:, None] * D + channels[None, :]
    tl.store(q_out + to, tl.load(q + padded).to(tl.float32).to(tl.bfloat16), mask=real)
    tl.store(k_out + to, tl.load(k + padded).to(tl.float32).to(tl.bfloat16), mask=real)
    pointers = v + batch * stride_vb + head.to(tl.int64) * stride_vh + token[:, None] * stride_vl + channels[None, :]
    scale = tl.load(v_scale + bh.to(tl.int64) * D + channels)[None, :]
    values = (tl.load(pointers, mask=real, other=0.0).to(tl.float32) * (1.0 / scale)).to(tl.float8e4nv)
    tl.store(v_out + to, (values.to(tl.float32) * scale).to(tl.bfloat16), mask=real)


class BackwardInputs(NamedTuple):
    """What both kernels read. q, k, v, grad: 16 bit, contiguous [B, L, H, D], D 64 or 128; of FP8 q and k as
    backward_prepare.py has them. lse (base 2), delta: fp32 [B, H, P]. q_scale, k_scale: fp32 [B, H, N], any tensor
    without FP8. k_mean: fp32 [B, H, D], over all tokens.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad: torch.Tensor
    lse: torch.Tensor
    delta: torch.Tensor
    q_scale: torch.Tensor
    k_scale: torch.Tensor
    k_mean: torch.Tensor


def prepare_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    tables: DeviceTables,
    fp8: bool,
    granularity: int,
    int8_qk: bool = False,
) -> BackwardInputs:
    """Arguments as attention_backward's, but D is 64 or 128."""
    batch, tokens, heads, dim = q.shape
    block, blocks = tables.layout.block, tables.layout.num_blocks
    half = torch.float16 if q.dtype == torch.float16 and not fp8 else torch.bfloat16
    grad, out = (x.to(half).contiguous() for x in (grad, out))
    spans, sizes = (tables.block_start, tables.block_len), (heads, tokens, blocks, dim, block)
    grid = (blocks, batch * heads)
    k_mean = k.mean(1, dtype=torch.float32)
    q_scale = k_scale = lse
    if fp8:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        ready = quantize(q, k, v, tables, granularity, int8_qk=int8_qk)
        q_scale, k_scale = ready.q_scale, ready.k_scale
        made = [torch.empty(q.shape, dtype=half, device=q.device) for _ in range(3)]
        expand_fp8[grid](ready.q, ready.k, v, ready.v_scale, *made, *spans, *v.stride()[:3], *sizes)
        q, k, v = made
    q, k, v = (x.to(half).contiguous() for x in (q, k, v))
    lse_padded, delta_padded = torch.empty(2, batch, heads, blocks * block, dtype=torch.float32, device=q.device)
    backward_stats[grid](grad, out, lse, delta_padded, lse_padded, *spans, *sizes)
    return BackwardInputs(q, k, v, grad, lse_padded, delta_padded, q_scale, k_scale, k_mean)
