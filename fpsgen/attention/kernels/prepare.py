"""Quantize q, k, v into padded kernel blocks: E4M3 values, fp32 scales, V transposed so that keys are contiguous. On
the way Q and K may take their RMSNorm (over all heads) and rotary embedding, in fp32 and with no rounding in between.

FP8 tensor cores on Hopper want both operands contiguous along the summed axis; for P.V that axis is the keys, so V is
stored [D, keys]. Rows of padding hold zeros. Scales follow quantize.py exactly: amax * (1/448), values times the
inverse. The range needs no clamp here: the largest value meets its own scale, and NaN stays NaN.

Two launches: what must be known of whole rows and columns first (the norm of a token's Q and K, the largest
magnitudes of V's channels), then the casts.

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from fpsgen.attention.kernels.launch import start
from fpsgen.attention.methods import PlanTensors
from fpsgen.attention.quantize import AMAX_FLOOR, BLOCK_AMAX_FLOOR
from fpsgen.attention.rotary import NormRotary

_FLOOR = tl.constexpr(AMAX_FLOOR)
_BLOCK_FLOOR = tl.constexpr(BLOCK_AMAX_FLOOR)
_TOP = tl.constexpr(1.0 / 448.0)
_ROWS = 32  # tokens whose norms one program finds
WARPS = {True: 16, False: 4}  # of quantize_inputs with NORM and without


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
def _norm_rows(x, norms, first, stride_l, stride_h, heads, tokens, eps, D: tl.constexpr, ROWS: tl.constexpr):
    """norms[first ...] = 1 / sqrt(mean of squares over heads and channels + eps), x and norms of one batch."""
    rows = first + tl.arange(0, ROWS)
    real = rows < tokens
    at = x + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, D)[None, :]
    squares = tl.zeros([ROWS, D], tl.float32)
    for head in range(heads):
        values = tl.load(at + head * stride_h, mask=real[:, None], other=0.0).to(tl.float32)
        squares += values * values
    mean = tl.sum(squares, 1) / (heads * D)
    tl.store(norms + rows, 1.0 / tl.sqrt_rn(mean + eps), mask=real)


@triton.jit
def measure_inputs(
    q,
    k,
    v,
    norms,
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
    batches,
    heads,
    tokens,
    num_blocks,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
):
    """Programs in one line. With NORM the first ones write norms [2, B, L] of the rows of q and k. The others raise
    v_amax [B*H, D] (zeros before) to the largest magnitude of every channel of one block.
    """
    program = tl.program_id(0)
    if NORM:
        chunks = tl.cdiv(tokens, ROWS)
        part = program // chunks  # (q or k, batch)
        first = (program % chunks) * ROWS
        batch = (part % batches).to(tl.int64)
        line = norms + part.to(tl.int64) * tokens
        if part < batches:
            _norm_rows(q + batch * stride_qb, line, first, stride_ql, stride_qh, heads, tokens, eps, D, ROWS)
        elif part < 2 * batches:
            _norm_rows(k + batch * stride_kb, line, first, stride_kl, stride_kh, heads, tokens, eps, D, ROWS)
        program -= 2 * batches * chunks
    if program >= 0:
        bh = program % (batches * heads)
        block = program // (batches * heads)
        values = _load_block(v, block, bh, block_start, block_len, stride_vb, stride_vl, stride_vh, heads, D, BLOCK)
        amax = tl.max(tl.abs(values), 0)
        # as integers, which order alike from zero up; the result does not depend on who comes first
        at = (v_amax + bh * D + tl.arange(0, D)).to(tl.pointer_type(tl.int32), bitcast=True)
        tl.atomic_max(at, amax.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def _load_rotated(
    x,
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
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
):
    """_load_block, with NORM normed and rotated. Then channels are read two by two, as one word, so that both halves of
    a pair and their angle lie in the same thread.
    """
    if NORM:
        start = tl.load(block_start + block).to(tl.int64)
        rows = tl.arange(0, BLOCK)
        real = rows < tl.load(block_len + block)
        pair = tl.arange(0, D // 2)
        token = start + rows
        norm = tl.load(norms + (bh // heads).to(tl.int64) * tokens + token, mask=real, other=0.0)
        angle = table + token[:, None] * D + pair[None, :]
        cos = tl.load(angle, mask=real[:, None], other=0.0)
        sin = tl.load(angle + D // 2, mask=real[:, None], other=0.0)
        gain = weight + (bh % heads) * D + pair * 2
        kind: tl.constexpr = x.dtype.element_ty
        half: tl.constexpr = tl.int16 if kind.primitive_bitwidth == 16 else tl.int32
        word: tl.constexpr = tl.int32 if kind.primitive_bitwidth == 16 else tl.int64
        base = (bh // heads).to(tl.int64) * stride_b + (bh % heads).to(tl.int64) * stride_h
        words = x.to(tl.pointer_type(word), bitcast=True) + base // 2 + token[:, None] * (stride_l // 2)
        both = tl.load(words + pair[None, :], mask=real[:, None], other=0)
        even = both.to(half).to(kind, bitcast=True).to(tl.float32)
        odd = (both >> kind.primitive_bitwidth).to(half).to(kind, bitcast=True).to(tl.float32)
        even = even * norm[:, None] * tl.load(gain).to(tl.float32)[None, :]
        odd = odd * norm[:, None] * tl.load(gain + 1).to(tl.float32)[None, :]
        values = tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(BLOCK, D)
    else:
        values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
    return values


@triton.jit
def _cast_rows(
    x,
    out,
    scales,
    norms,
    weight,
    table,
    group,
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
    SINGLE: tl.constexpr,
    NORM: tl.constexpr,
):
    """amax over a scale group's blocks, then the cast. SINGLE: a group is one block, which stays in registers."""
    first = group * granularity
    last = tl.minimum(first + granularity, num_blocks)
    amax = 0.0
    if SINGLE:
        values = _load_rotated(
            *(x, norms, weight, table, first, bh, block_start, block_len, stride_b, stride_l, stride_h),
            *(heads, tokens, D, BLOCK, NORM),
        )
        amax = tl.max(tl.max(tl.abs(values), 1), 0)
    else:
        for block in range(first, last):
            values = _load_rotated(
                *(x, norms, weight, table, block, bh, block_start, block_len, stride_b, stride_l, stride_h),
                *(heads, tokens, D, BLOCK, NORM),
            )
            amax = tl.maximum(amax, tl.max(tl.max(tl.abs(values), 1), 0))
    scale = tl.maximum(amax, _BLOCK_FLOOR) * _TOP
    inverse = tl.math.div_rn(1.0, scale)
    cells = tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :]
    for block in range(first, last):
        if not SINGLE:
            values = _load_rotated(
                *(x, norms, weight, table, block, bh, block_start, block_len, stride_b, stride_l, stride_h),
                *(heads, tokens, D, BLOCK, NORM),
            )
        slot = bh.to(tl.int64) * num_blocks + block
        tl.store(out + slot * (BLOCK * D) + cells, (values * inverse).to(tl.float8e4nv))
        tl.store(scales + slot, scale)


@triton.jit
def _cast_turned(
    x,
    out,
    amax,
    scales,
    block,
    bh,
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
    """PERMUTED: key 8a + 2b + c of every 16 (a, c below 2, b below 4) lies at 4b + 2a + c, the order in which a thread
    of a warpgroup holds scores.
    """
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


@triton.jit
def quantize_inputs(
    q,
    k,
    v,
    q_out,
    k_out,
    v_out,
    q_scale,
    k_scale,
    v_scale,
    v_amax,
    norms,
    weight_q,
    weight_k,
    table,
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
    tokens,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
    PERMUTED: tl.constexpr,
    NORM: tl.constexpr,
):
    """Programs (batch x head; scale group or, of V, block; 0 for queries, 1 for keys, 2 for values). Heads come first:
    they share the angles of their tokens.
    """
    bh, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if which == 2:
        _cast_turned(
            *(v, v_out, v_amax, v_scale, part, bh, block_start, block_len, stride_vb, stride_vl, stride_vh),
            *(heads, num_blocks, D, BLOCK, PERMUTED),
        )
    elif part * granularity < num_blocks:
        if which == 0:
            _cast_rows(
                *(q, q_out, q_scale, norms, weight_q, table, part, bh, block_start, block_len),
                *(stride_qb, stride_ql, stride_qh, heads, tokens, num_blocks, granularity),
                *(D, BLOCK, SINGLE, NORM),
            )
        else:
            norms += (tl.num_programs(0) // heads).to(tl.int64) * tokens  # those of k come after q's
            _cast_rows(
                *(k, k_out, k_scale, norms, weight_k, table, part, bh, block_start, block_len),
                *(stride_kb, stride_kl, stride_kh, heads, tokens, num_blocks, granularity),
                *(D, BLOCK, SINGLE, NORM),
            )


def prepare_inputs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    at: PlanTensors,
    granularity: int = 1,
    permuted: bool = False,
    rotary: NormRotary | None = None,
    done: dict | None = None,
) -> Prepared:
    """Prepared inputs from q, k, v [B, L, H, D] (tile order, last stride 1); D is 64 or 128. permuted: V's keys in the
    order of forward_hopper.py, see _cast_turned. rotary: q and k are normed and rotated first. done: see launch.start.
    """
    batch, tokens, heads, dim = q.shape
    block, blocks = at.layout.block, at.layout.num_blocks
    done = {} if done is None else done
    if rotary:  # which reads channels by pairs
        q, k = (x if _in_pairs(x) else x.clone(memory_format=torch.contiguous_format) for x in (q, k))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(batch, heads, *shape, device=q.device, dtype=dtype)

    rows = [empty(blocks * block, dim, dtype=torch.float8_e4m3fn) for _ in range(2)]
    turned = empty(dim, blocks * block, dtype=torch.float8_e4m3fn)
    q_scale, k_scale, v_scale = empty(blocks), empty(blocks), empty(dim)
    v_amax = torch.zeros(batch, heads, dim, device=q.device)
    norms = torch.empty(2, batch, tokens, device=q.device) if rotary else v_amax
    turn = rotary[:3] if rotary else (v_amax, v_amax, v_amax)
    tables = (at.block_start, at.block_len)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    chunks = 2 * batch * triton.cdiv(tokens, _ROWS) if rotary else 0
    constants: dict[str, Any] = {"D": dim, "BLOCK": block}
    norm = {"NORM": rotary is not None}
    sizes = (batch, heads, tokens, blocks, rotary.eps if rotary else 0.0)
    args = (q, k, v, norms, v_amax, *tables, *strides, *sizes)
    grid = (chunks + blocks * batch * heads, 1, 1)
    start(done, measure_inputs, grid, args, constants | {"ROWS": _ROWS} | norm, num_warps=8)
    args = (q, k, v, *rows, turned, q_scale, k_scale, v_scale, v_amax, norms, *turn, *tables, *strides)
    args += (heads, tokens, blocks, granularity)
    constants |= {"SINGLE": granularity == 1, "PERMUTED": permuted} | norm
    start(done, quantize_inputs, (batch * heads, blocks, 3), args, constants, num_warps=WARPS[norm["NORM"]])
    return Prepared(*rows, turned, q_scale, k_scale, v_scale)


def _in_pairs(x: torch.Tensor) -> bool:
    """Whether channels 2i and 2i + 1 of x [B, L, H, D] are one aligned word."""
    return x.data_ptr() % (2 * x.element_size()) == 0 and not any(stride % 2 for stride in x.stride()[:3])
