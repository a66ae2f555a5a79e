"""Quantize q, k, v into padded kernel blocks: E4M3 values, fp32 scales, V transposed so that keys are contiguous. On
the way Q and K may take their RMSNorm and rotary embedding (prepare_normed.py).

FP8 tensor cores on Hopper want both operands contiguous along the summed axis; for P.V that axis is the keys, so V is
stored [D, keys]. Rows of padding hold zeros. Scales follow quantize.py exactly: amax * (1/448), values times the
inverse. The range needs no clamp here: the largest value meets its own scale, and NaN stays NaN.

Two launches: what must be known of whole rows and columns first (the norm of a token's Q and K, the largest
magnitudes of V's channels), then the casts.

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from fpsgen.attention.kernels.launch import Pack, pack_slots, start
from fpsgen.attention.kernels.prepare_normed import TOP, block_scale, cast_normed, measure_rows, raise_amax
from fpsgen.attention.methods import PlanTensors
from fpsgen.attention.quantize import AMAX_FLOOR
from fpsgen.attention.rotary import NormRotary

if TYPE_CHECKING:
    from fpsgen.attention.kernels.tape import Tape

_FLOOR = tl.constexpr(AMAX_FLOOR)
ROWS = 32  # tokens whose norm and rotation are found together


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
def measure_inputs(
    q,
    k,
    v,
    weight_q,
    weight_k,
    table,
    norms,
    peaks,
    q_amax,
    k_amax,
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
    granularity,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
):
    """Programs in one line. With NORM the first ones measure ROWS rows of q or k each, see measure_rows: norms
    [2, B, L], peaks [2, B, H, L], amax [B, H, N]. The others raise v_amax [B, H, D] to the largest magnitude of every
    channel of one block. Every amax is zero before.
    """
    program = tl.program_id(0)
    if NORM:
        parts: tl.constexpr = BLOCK // ROWS
        chunk = program // batches
        batch = (program % batches).to(tl.int64)
        which = chunk // (num_blocks * parts)
        block = chunk // parts % num_blocks
        line = which * batches + batch
        norms += line * tokens
        peaks += line * heads * tokens
        if which == 0:
            measure_rows(
                *(q + batch * stride_qb, weight_q, norms, peaks, q_amax + batch * heads * num_blocks, table),
                *(block, chunk % parts, block_start, block_len, stride_ql, stride_qh, heads, tokens, num_blocks),
                *(granularity, eps, D, ROWS),
            )
        elif which == 1:
            measure_rows(
                *(k + batch * stride_kb, weight_k, norms, peaks, k_amax + batch * heads * num_blocks, table),
                *(block, chunk % parts, block_start, block_len, stride_kl, stride_kh, heads, tokens, num_blocks),
                *(granularity, eps, D, ROWS),
            )
        program -= 2 * batches * num_blocks * parts
    if program >= 0:
        bh = program % (batches * heads)
        block = program // (batches * heads)
        values = _load_block(v, block, bh, block_start, block_len, stride_vb, stride_vl, stride_vh, heads, D, BLOCK)
        raise_amax(v_amax, bh * D + tl.arange(0, D), tl.max(tl.abs(values), 0))


@triton.jit
def _cast_rows(
    x,
    out,
    scales,
    group,
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
    first = group * granularity
    last = tl.minimum(first + granularity, num_blocks)
    amax = 0.0
    if SINGLE:
        values = _load_block(x, first, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
        amax = tl.max(tl.max(tl.abs(values), 1), 0)
    else:
        for block in range(first, last):
            values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
            amax = tl.maximum(amax, tl.max(tl.max(tl.abs(values), 1), 0))
    scale = block_scale(amax)
    inverse = tl.math.div_rn(1.0, scale)
    cells = tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :]
    for block in range(first, last):
        if not SINGLE:
            values = _load_block(x, block, bh, block_start, block_len, stride_b, stride_l, stride_h, heads, D, BLOCK)
        slot = bh.to(tl.int64) * num_blocks + block
        tl.store(out + slot * (BLOCK * D) + cells, (values * inverse).to(tl.float8e4nv))
        tl.store(scales + slot, scale)


@triton.jit
def _cast_values(
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
    scale = tl.maximum(tl.load(amax + line), _FLOOR, propagate_nan=tl.PropagateNan.ALL) * TOP
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
    weight_q,
    weight_k,
    table,
    norms,
    q_amax,
    k_amax,
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
    tokens,
    num_blocks,
    granularity,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SINGLE: tl.constexpr,
    PERMUTED: tl.constexpr,
    NORM: tl.constexpr,
):
    """Programs (batch x head; scale group or, of V and with NORM, block; 0 for queries, 1 for keys, 2 for values).
    Heads come first: they share the angles of their tokens.
    """
    bh, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if which == 2:
        _cast_values(
            *(v, v_out, v_amax, v_scale, part, bh, block_start, block_len, stride_vb, stride_vl, stride_vh),
            *(heads, num_blocks, D, BLOCK, PERMUTED),
        )
    elif NORM:
        if which == 0:
            cast_normed(
                *(q, q_out, q_scale, q_amax, norms, weight_q, table, part, bh, block_start, block_len),
                *(stride_qb, stride_ql, stride_qh, heads, tokens, num_blocks, granularity, D, BLOCK, ROWS),
            )
        else:
            norms += (tl.num_programs(0) // heads).to(tl.int64) * tokens  # those of k come after q's
            cast_normed(
                *(k, k_out, k_scale, k_amax, norms, weight_k, table, part, bh, block_start, block_len),
                *(stride_kb, stride_kl, stride_kh, heads, tokens, num_blocks, granularity, D, BLOCK, ROWS),
            )
    elif part * granularity < num_blocks:
        if which == 0:
            _cast_rows(
                *(q, q_out, q_scale, part, bh, block_start, block_len, stride_qb, stride_ql, stride_qh),
                *(heads, num_blocks, granularity, D, BLOCK, SINGLE),
            )
        else:
            _cast_rows(
                *(k, k_out, k_scale, part, bh, block_start, block_len, stride_kb, stride_kl, stride_kh),
                *(heads, num_blocks, granularity, D, BLOCK, SINGLE),
            )


def prepare_inputs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    at: PlanTensors,
    granularity: int = 1,
    permuted: bool = False,
    rotary: NormRotary | None = None,
    ready: Pack | None = None,
    tape: Tape | None = None,
) -> Pack:
    """Fill and return `ready` (made here where it is None) from q, k, v [B, L, H, D] (tile order, last stride 1); D is
    64 or 128. It has at least the slots of prepared_slots. permuted: V's keys in the order of forward_hopper.py, see
    _cast_values. rotary: q and k are normed and rotated first. tape: see launch.start.
    """
    if rotary:  # which reads channels by pairs
        q, k, *weights = (_in_pairs(x) for x in (q, k, rotary.norm_q, rotary.norm_k))
    ready = ready or Pack(pack_slots(prepared_slots(q, at, rotary is not None)), q.device)
    ready.memory[: zero_bytes(ready)].zero_()

    batch, tokens, heads, dim = q.shape
    block, blocks = at.layout.block, at.layout.num_blocks
    amax = (ready.q_amax, ready.k_amax, ready.v_amax)
    norms = ready.norms
    turn = (*weights, rotary.table) if rotary else (norms, norms, norms)
    tables = (at.block_start, at.block_len)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    sizes = (heads, tokens, blocks, granularity)
    constants: dict[str, Any] = {"D": dim, "BLOCK": block, "ROWS": ROWS}
    norm = {"NORM": rotary is not None}
    moving = (q, k, v, *turn, norms, ready.peaks, *amax)
    fixed = (*tables, *strides, batch, *sizes, rotary.eps if rotary else 0.0)
    chunks = 2 * batch * blocks * (block // ROWS) if rotary else 0
    grid = (chunks + blocks * batch * heads, 1, 1)
    start(tape, measure_inputs, grid, moving, fixed, constants | norm, num_warps=4)
    outputs = (ready.q, ready.k, ready.v, ready.q_scale, ready.k_scale, ready.v_scale)
    moving = (q, k, v, *outputs, *turn, norms, *amax)
    fixed = (*tables, *strides, *sizes)
    constants |= {"SINGLE": granularity == 1, "PERMUTED": permuted} | norm
    start(tape, quantize_inputs, (batch * heads, blocks, 3), moving, fixed, constants, num_warps=4)
    return ready


def prepared_slots(q: torch.Tensor, at: PlanTensors, norm: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types of what prepare_inputs makes: q, k float8_e4m3fn [B, H, P, D], v float8_e4m3fn [B, H, D, P],
    scales fp32 q_scale, k_scale [B, H, N], v_scale [B, H, D]. What must be zero before comes first.
    """
    batch, tokens, heads, dim = q.shape
    blocks, rows = at.layout.num_blocks, at.layout.num_blocks * at.layout.block
    line, cells, scales = (batch, heads), torch.float8_e4m3fn, torch.float32
    groups, measured = (blocks, tokens) if norm else (1, 1)
    return {
        "q_amax": ((*line, groups), scales),
        "k_amax": ((*line, groups), scales),
        "v_amax": ((*line, dim), scales),
        "norms": ((2, batch, measured), scales),
        "peaks": ((2, *line, measured), scales),
        "q": ((*line, rows, dim), cells),
        "k": ((*line, rows, dim), cells),
        "v": ((*line, dim, rows), cells),
        "q_scale": ((*line, blocks), scales),
        "k_scale": ((*line, blocks), scales),
        "v_scale": ((*line, dim), scales),
    }


def zero_bytes(ready: Pack) -> int:
    """How much of prepared inputs' memory must be zero before."""
    return ready.slots["v_amax"][1]


def _in_pairs(x: torch.Tensor) -> torch.Tensor:
    """x [..., D] with channels 2i and 2i + 1 in one aligned word; a copy where they are not."""
    fits = x.data_ptr() % (2 * x.element_size()) == 0 and not any(stride % 2 for stride in x.stride()[:-1])
    return x if fits else x.clone(memory_format=torch.contiguous_format)
