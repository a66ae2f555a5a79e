"""Quantize q, k, v into padded kernel blocks: E4M3 values, fp32 scales, V transposed so that keys are contiguous.

FP8 tensor cores on Hopper want both operands contiguous along the summed axis; for P.V that axis is the keys, so V is
stored [D, keys]. Rows of padding hold zeros. Scales follow quantize.py exactly: amax * (1/448), values times the
inverse. The range needs no clamp here: the largest value meets its own scale, and NaN stays NaN.

Two launches: the first casts Q and K and finds V's largest magnitudes, the second casts V.

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fpsgen.attention.methods import PlanTensors
from fpsgen.attention.quantize import AMAX_FLOOR, BLOCK_AMAX_FLOOR

_FLOOR = tl.constexpr(AMAX_FLOOR)
_BLOCK_FLOOR = tl.constexpr(BLOCK_AMAX_FLOOR)
_TOP = tl.constexpr(1.0 / 448.0)


@dataclass(frozen=True, eq=False)
class Prepared:
    """q, k: float8_e4m3fn [B, H, P, D]. v: float8_e4m3fn [B, H, D, P]. Scales fp32: q, k [B, H, N], v [B, H, D]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_scale: torch.Tensor
    k_scale: torch.Tensor
    v_scale: torch.Tensor


@triton.jit
def _load_block(
    x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D: tl.constexpr, BLOCK: tl.constexpr
):
    start = tl.load(block_start + block).to(tl.int64)
    length = tl.load(block_len + block)
    rows = tl.arange(0, BLOCK)
    base = x + (bh // heads).to(tl.int64) * stride_b + (bh % heads).to(tl.int64) * stride_h
    at = base + (start + rows)[:, None] * stride_l + tl.arange(0, D)[None, :]
    return tl.load(at, mask=rows[:, None] < length, other=0.0).to(tl.float32)  # [BLOCK, D]


@triton.jit
def _cast_group(
    x,
    out,
    scales,
    bh,
    block_start,
    block_len,
    stride_b,
    stride_l,
    stride_h,
    heads,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """amax over a scale group's blocks, then the cast. SINGLE: a group is one block, which stays in registers."""
    first = tl.program_id(0) * granularity
    last = tl.minimum(first + granularity, num_blocks)
    amax = 0.0
    if SINGLE:
        values = _load_block(x, first, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
        amax = tl.max(tl.max(tl.abs(values), 1), 0)
    else:
        for block in range(first, last):
            values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
            amax = tl.maximum(amax, tl.max(tl.max(tl.abs(values), 1), 0))
    scale = tl.maximum(amax, _BLOCK_FLOOR) * _TOP
    inverse = tl.math.div_rn(1.0, scale)
    cells = tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :]
    for block in range(first, last):
        if not SINGLE:
            values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
        slot = bh.to(tl.int64) * num_blocks + block
        tl.store(out + slot * (BLOCK * D) + cells, (values * inverse).to(tl.float8e4nv))
        tl.store(scales + slot, scale)


@triton.jit
def quantize_rows(
    q,
    k,
    v,
    q_out,
    k_out,
    q_scale,
    k_scale,
    v_amax,
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
    heads,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """Programs (scale group, batch x head, which): which 0 casts the group's queries, 1 its keys, 2 raises v_amax
    [B*H, D] (zeros before) to the largest magnitude of every channel of its values.
    """
    bh, which = tl.program_id(1), tl.program_id(2)
    if which == 0:
        _cast_group(
            *(q, q_out, q_scale, bh, block_start, block_len, stride_qb, stride_ql, stride_qh),
            *(heads, num_blocks, granularity, D, BLOCK, SINGLE),
        )
    elif which == 1:
        _cast_group(
            *(k, k_out, k_scale, bh, block_start, block_len, stride_kb, stride_kl, stride_kh),
            *(heads, num_blocks, granularity, D, BLOCK, SINGLE),
        )
    else:
        first = tl.program_id(0) * granularity
        for block in range(first, tl.minimum(first + granularity, num_blocks)):
            values = _load_block(v, block, bh, block_start, block_len, stride_vb, stride_vl, stride_vh, heads, D, BLOCK)
            amax = tl.max(tl.abs(values), 0)
            # as integers, which order alike from zero up; the result does not depend on who comes first
            at = (v_amax + bh * D + tl.arange(0, D)).to(tl.pointer_type(tl.int32), bitcast=True)
            tl.atomic_max(at, amax.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def quantize_transposed(
    x,
    out,
    amax,
    scales,
    block_start,
    block_len,
    stride_b,
    stride_l,
    stride_h,
    heads,
    num_blocks,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PERMUTED: tl.constexpr,
):
    """out [B*H, D, P] and scales [B*H, D] from x [B, L, H, D] and amax [B*H, D]. PERMUTED: key 8a + 2b + c of every 16
    (a, c below 2, b below 4) lies at 4b + 2a + c, the order in which a thread of a warpgroup holds scores.
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, D)
    line = bh.to(tl.int64) * D + channels  # [D]
    # a channel of nothing but NaN keeps it
    scale = tl.maximum(tl.load(amax + line), _FLOOR, propagate_nan=tl.PropagateNan.ALL) * _TOP
    if block == 0:
        tl.store(scales + line, scale)
    inverse = tl.math.div_rn(tl.full([D], 1.0, tl.float32), scale)
    values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
    turned = tl.trans((values * inverse[None, :]).to(tl.float8e4nv))  # [D, BLOCK]
    if PERMUTED:
        turned = tl.permute(turned.reshape(D, BLOCK // 16, 2, 4, 2), 0, 1, 3, 2, 4).reshape(D, BLOCK)
    at = line[:, None] * (num_blocks * BLOCK) + block * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + at, turned)


def prepare_inputs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: PlanTensors, granularity: int = 1, permuted: bool = False
) -> Prepared:
    """Prepared inputs from q, k, v [B, L, H, D] (tile order, last stride 1); D is 64 or 128. permuted: V's keys in the
    order of forward_hopper.py, see quantize_transposed.
    """
    batch, _, heads, dim = q.shape
    block, blocks = at.layout.block, at.layout.num_blocks

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(batch, heads, *shape, device=q.device, dtype=dtype)

    rows = [empty(blocks * block, dim, dtype=torch.float8_e4m3fn) for _ in range(2)]
    turned = empty(dim, blocks * block, dtype=torch.float8_e4m3fn)
    q_scale, k_scale, v_scale = empty(blocks), empty(blocks), empty(dim)
    v_amax = torch.zeros(batch, heads, dim, device=q.device)
    quantize_rows[(triton.cdiv(blocks, granularity), batch * heads, 3)](
        *(q, k, v, *rows, q_scale, k_scale, v_amax, at.block_start, at.block_len),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, blocks, granularity),
        D=dim,
        BLOCK=block,
        SINGLE=granularity == 1,
        num_warps=8,
    )
    quantize_transposed[(blocks, batch * heads)](
        *(v, turned, v_amax, v_scale, at.block_start, at.block_len, *v.stride()[:3], heads, blocks),
        D=dim,
        BLOCK=block,
        PERMUTED=permuted,
        num_warps=8,
    )
    return Prepared(*rows, turned, q_scale, k_scale, v_scale)
