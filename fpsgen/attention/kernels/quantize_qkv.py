"""Quantize q, k, v into padded kernel blocks: E4M3 values, fp32 scales, V transposed so that keys are contiguous. On
the way Q and K may take their RMSNorm and rotary embedding (norm_rope_quantize.py).

FP8 tensor cores on Hopper want both operands contiguous along the summed axis; for P.V that axis is the keys, so V is
stored [D, keys]. Rows of padding hold zeros. Scales follow quantize.py exactly: amax * (1/448), values times the
inverse. The range needs no clamp here: the largest value meets its own scale, and NaN stays NaN.

Two launches: the largest magnitudes of V's channels, which takes all of V, then the casts. Q and K with a norm are done
in the first.

Legend: B batch, H heads, L tokens (tile order), N blocks, P = N * BLOCK padded rows, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fpsgen.attention.kernels.launch_config import HEAD_DIMS, NORM_ROPE, NormRopeConfig
from fpsgen.attention.kernels.norm_rope_quantize import TOP, block_scale, norm_inputs, raise_amax
from fpsgen.attention.kernels.workspace import Shapes, Workspace
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import DeviceTables
from fpsgen.attention.quantize import AMAX_FLOOR

_FLOOR = tl.constexpr(AMAX_FLOOR)


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
def measure_values(
    v,
    v_amax,
    block_start,
    block_len,
    stride_vb,
    stride_vl,
    stride_vh,
    batches,
    heads,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Programs (batch x head x block): v_amax [B, H, D], zero before, raised to the largest magnitude of every channel
    of one block.
    """
    program = tl.program_id(0)
    bh = program % (batches * heads)
    block = program // (batches * heads)
    values = _load_block(v, block, bh, block_start, block_len, stride_vb, stride_vl, stride_vh, heads, D, BLOCK)
    channels = tl.arange(0, D)
    raise_amax(v_amax, bh * D + channels, tl.max(tl.abs(values), 0), channels >= 0)


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
    PERMUTED: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Programs (batch x head; scale group or, of V, block; 0 for values, 1 for queries, 2 for keys). VALUES: values
    alone.
    """
    bh, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if VALUES or which == 0:
        _cast_values(
            *(v, v_out, v_amax, v_scale, part, bh, block_start, block_len, stride_vb, stride_vl, stride_vh),
            *(heads, num_blocks, D, BLOCK, PERMUTED),
        )
    elif part * granularity < num_blocks:
        if which == 1:
            _cast_rows(
                *(q, q_out, q_scale, part, bh, block_start, block_len, stride_qb, stride_ql, stride_qh),
                *(heads, num_blocks, granularity, D, BLOCK, SINGLE),
            )
        else:
            _cast_rows(
                *(k, k_out, k_scale, part, bh, block_start, block_len, stride_kb, stride_kl, stride_kh),
                *(heads, num_blocks, granularity, D, BLOCK, SINGLE),
            )


def quantize(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    granularity: int = 1,
    permuted: bool = False,
    norm_rope: NormRope | None = None,
) -> Workspace:
    """The tensors of quantized_shapes from q, k, v [B, L, H, D] (tile order, last stride 1); D is 64 or 128.

    permuted: V's keys in the order of attend_fp8_sm90.py, see _cast_values. norm_rope: q and k are normed and rotated
    first.
    """
    workspace = Workspace(q.device, *quantized_shapes(q, tables, norm_rope is not None))
    quantize_into(workspace, q, k, v, tables, granularity, permuted, norm_rope)
    return workspace


def quantize_into(
    workspace: Workspace,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    granularity: int,
    permuted: bool,
    norm_rope: NormRope | None,
) -> None:
    """quantize() into a new workspace that has the tensors of quantized_shapes."""
    batch, _, heads, dim = q.shape
    block, blocks = tables.layout.block, tables.layout.num_blocks
    constants: dict[str, Any] = {"D": dim, "BLOCK": block}
    if norm_rope is not None:
        _norm_rope(workspace, q, k, v, tables, granularity, norm_rope, NORM_ROPE)
    else:
        measure_values[(blocks * batch * heads,)](
            *(v, workspace.v_amax, tables.block_start, tables.block_len, *v.stride()[:3], batch, heads),
            **constants,
            num_warps=4,
        )
    outputs = (workspace.q, workspace.k, workspace.v, workspace.q_scale, workspace.k_scale, workspace.v_scale)
    quantize_inputs[batch * heads, blocks, 1 if norm_rope is not None else 3](
        *(q, k, v, *outputs, workspace.v_amax, tables.block_start, tables.block_len),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, blocks, granularity),
        **constants,
        SINGLE=granularity == 1,
        PERMUTED=permuted,
        VALUES=norm_rope is not None,
        num_warps=4,
    )


def _norm_rope(
    workspace: Workspace,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    granularity: int,
    norm_rope: NormRope,
    config: NormRopeConfig,
) -> None:
    """q and k into `workspace`, normed and rotated, and V's largest magnitudes."""
    batch, tokens, heads, dim = q.shape
    block, blocks = tables.layout.block, tables.layout.num_blocks
    q, k = _alike(q, k)
    weights = _alike(norm_rope.norm_q, norm_rope.norm_k)
    rows, cast_rows = (n * HEAD_DIMS[-1] // dim for n in (config.rows, config.cast_rows))
    # from a scale group's first block, which waits for its last
    distance = config.cast_distance + min(granularity, blocks) - 1
    units = 2 * (block // rows) + 2 * (block // cast_rows) * -(-heads // config.cast_heads) + heads
    options = {"maxnreg": config.maxnreg} if config.maxnreg else {}
    norm_inputs[((batch * blocks + distance) * units,)](
        *(q, k, v, *weights, norm_rope.table, workspace.q, workspace.k, workspace.q_scale, workspace.k_scale),
        *(workspace.norms, workspace.q_amax, workspace.k_amax, workspace.v_amax, workspace.finished, workspace.ticket),
        *(tables.block_start, tables.block_len, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        *(batch, heads, tokens, blocks, granularity, distance, norm_rope.eps),
        D=dim,
        BLOCK=block,
        ROWS=rows,
        CAST_ROWS=cast_rows,
        CAST_HEADS=config.cast_heads,
        HEADS=max(dim // 2, triton.next_power_of_2(heads)),
        num_warps=config.num_warps,
        **options,
    )


def quantized_shapes(q: torch.Tensor, tables: DeviceTables, norm_rope: bool) -> tuple[Shapes, Shapes]:
    """What quantize() makes: q, k float8_e4m3fn [B, H, P, D], v float8_e4m3fn [B, H, D, P], scales fp32 q_scale,
    k_scale [B, H, N], v_scale [B, H, D]; first those tensors that must hold zeros before.
    """
    batch, tokens, heads, dim = q.shape
    blocks, rows = tables.layout.num_blocks, tables.layout.num_blocks * tables.layout.block
    line, e4m3, fp32 = (batch, heads), torch.float8_e4m3fn, torch.float32
    zeroed: Shapes = {"v_amax": ((*line, dim), fp32)}
    others: Shapes = {
        "q": ((*line, rows, dim), e4m3),
        "k": ((*line, rows, dim), e4m3),
        "v": ((*line, dim, rows), e4m3),
        "q_scale": ((*line, blocks), fp32),
        "k_scale": ((*line, blocks), fp32),
        "v_scale": ((*line, dim), fp32),
    }
    if norm_rope:
        zeroed |= {"q_amax": ((*line, blocks), fp32), "k_amax": ((*line, blocks), fp32)}
        zeroed |= {"finished": ((2, batch, blocks), torch.int32), "ticket": ((1,), torch.int32)}
        others["norms"] = (2, batch, tokens), fp32
    return zeroed, others


def _alike(*pair: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both [..., D] in one type, with channels 2i and 2i + 1 in one aligned word; copies where they are not."""
    if len({x.dtype for x in pair}) > 1:
        pair = tuple(x.float() for x in pair)
    return tuple(x if _in_words(x) else x.clone(memory_format=torch.contiguous_format) for x in pair)


def _in_words(x: torch.Tensor) -> bool:
    return x.data_ptr() % (2 * x.element_size()) == 0 and not any(stride % 2 for stride in x.stride()[:-1])
