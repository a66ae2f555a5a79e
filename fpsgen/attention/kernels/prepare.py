"""Quantize q, k, v into padded kernel blocks: E4M3 values, fp32 scales, V transposed so that keys are contiguous.

FP8 tensor cores on Hopper want both operands contiguous along the summed axis; for P.V that axis is the keys, so V is
stored [D, keys]. Rows of padding hold zeros. Scales follow quantize.py exactly: amax * (1/448), values times the
inverse. The range needs no clamp here: the largest value meets its own scale, and NaN stays NaN.

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fpsgen.attention.methods import PlanTensors

_FLOOR = tl.constexpr(2.0**-100)
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
def quantize_rows(
    x,
    out,
    scales,
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
    """One program per (scale group, batch x head): amax over the group's blocks, then the cast. SINGLE: a group is one
    block, which stays in registers.
    """
    first = tl.program_id(0) * granularity
    last = tl.minimum(first + granularity, num_blocks)
    bh = tl.program_id(1)
    amax = 0.0
    values = _load_block(x, first, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
    if SINGLE:
        amax = tl.max(tl.max(tl.abs(values), 1), 0)
    else:
        for block in range(first, last):
            values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
            amax = tl.maximum(amax, tl.max(tl.max(tl.abs(values), 1), 0))
    scale = tl.maximum(amax, _FLOOR) * _TOP
    inverse = tl.math.div_rn(1.0, scale)
    cells = tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :]
    for block in range(first, last):
        if not SINGLE:
            values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
        slot = bh.to(tl.int64) * num_blocks + block
        tl.store(out + slot * (BLOCK * D) + cells, (values * inverse).to(tl.float8e4nv))
        tl.store(scales + slot, scale)


@triton.jit
def channel_amax(
    x,
    partial,
    block_start,
    block_len,
    stride_b,
    stride_l,
    stride_h,
    heads,
    num_blocks,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial [B*H, N, D]: largest magnitude of every channel in a block."""
    block, bh = tl.program_id(0), tl.program_id(1)
    values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
    slot = bh.to(tl.int64) * num_blocks + block
    tl.store(partial + slot * D + tl.arange(0, D), tl.max(tl.abs(values), 0))


@triton.jit
def quantize_transposed(
    x,
    out,
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
    """out [B*H, D, P] from x [B, L, H, D] and scales [B*H, D]. PERMUTED: key 8a + 2b + c of every 16 (a, c below 2, b
    below 4) lies at 4b + 2a + c, the order in which a thread of a warpgroup holds scores.
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, D)
    inverse = tl.math.div_rn(tl.full([D], 1.0, tl.float32), tl.load(scales + bh.to(tl.int64) * D + channels))
    values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
    turned = tl.trans((values * inverse[None, :]).to(tl.float8e4nv))  # [D, BLOCK]
    line = bh.to(tl.int64) * D + channels  # [D]
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

    values, scales = [], []
    for x in (q, k):
        value, scale = empty(blocks * block, dim, dtype=torch.float8_e4m3fn), empty(blocks)
        quantize_rows[(triton.cdiv(blocks, granularity), batch * heads)](
            *(x, value, scale, at.block_start, at.block_len, *x.stride()[:3], heads, blocks, granularity),
            D=dim,
            BLOCK=block,
            SINGLE=granularity == 1,
            num_warps=8,
        )
        values.append(value)
        scales.append(scale)
    partial, turned = empty(blocks, dim), empty(dim, blocks * block, dtype=torch.float8_e4m3fn)
    common = (at.block_start, at.block_len, *v.stride()[:3], heads, blocks)
    channel_amax[(blocks, batch * heads)](v, partial, *common, D=dim, BLOCK=block, num_warps=8)
    v_scale = partial.amax(2).clamp_(min=_FLOOR.value).mul_(_TOP.value)
    quantize_transposed[(blocks, batch * heads)](
        *(v, turned, v_scale, *common), D=dim, BLOCK=block, PERMUTED=permuted, num_warps=8
    )
    return Prepared(values[0], values[1], turned, scales[0], scales[1], v_scale)
