"""16-bit tile-sparse attention forward for Hopper (sm_90a), in Gluon: attend_fp8_sm90.py's plan without quantization.
q, k, v as the projections wrote them (TMA reads through their strides); same lists and results as attend_portable.py.

A key block that is not full ends in tokens of the next tile. Their scores are masked, but a weight of zero times a
value that is not finite is NaN, so one more warp clears those rows of V on their way.

Legend: BLOCK 128 rows of a kernel block, D 128, a job is one group of query rows of one (batch, head).
"""

from __future__ import annotations

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fpsgen.attention.kernels.launch_config import Sm90Config
from fpsgen.attention.kernels.softmax import exp2, exp2_mixed, masked, number, pick, row_max
from fpsgen.attention.kernels.tile_scheduler import describe, job_rings, launch_plan, look_ahead, records, ring
from fpsgen.attention.plan import BlockLists, DeviceTables

_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # its name until Triton 3.8
_LN_2 = gl.constexpr(math.log(2.0))
_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@gluon.jit
def _produce(args, CONSUMERS: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """Queries of every job and key blocks of every list, in order, into the rings; with a key block its length."""
    q, k, v, buffers, bars, rings, jobs, groups, heads, tokens, tables, steps = args
    q_s, k_s, v_s, block_s = buffers
    q_full, q_free, k_full, v_raw, _v_full, free = bars
    walk_s, rows_s, _v_scale_s, job_full, job_free = rings
    list_index, block_start, block_len = tables
    step_q, step_k, step_v = steps
    q_bytes: gl.constexpr = CONSUMERS * 64 * D * 2
    block_bytes: gl.constexpr = BLOCK * D * 2
    eight: gl.constexpr = gl.BlockedLayout([8], [32], [1], [0])
    four: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    one: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < jobs:
        bh = job // groups
        line = (bh // heads) * tokens
        head = bh % heads
        mbarrier.wait(job_full.index(turn & 1), (turn >> 1) & 1)
        walk = walk_s.index(turn & 1).load(eight)
        count = pick(walk, 0)
        keys = list_index + pick(walk, 2)
        following = pick(walk, 4)
        start = pick(walk, 5)
        length = pick(walk, 6)
        mbarrier.wait(q_free.index(0), (turn & 1) ^ 1)
        mbarrier.expect(q_full.index(0), q_bytes)
        for i in gl.static_range(CONSUMERS):
            token = pick(rows_s.index((turn & 1) * CONSUMERS + i).load(four), 2)
            _load(q, [line + token, head * step_q], q_full.index(0), q_s.index(i))
        mbarrier.arrive(job_free.index(turn & 1), count=1)
        for i in range(count):
            slot = step % STAGES
            after = gl.load(keys + gl.minimum(i + 2, count - 1))
            start_ahead = gl.load(block_start + following)
            length_ahead = gl.load(block_len + following)
            mbarrier.wait(free.index(slot), ((step // STAGES) & 1) ^ 1)
            block_s.index(slot).store(gl.full([1], length, gl.int32, one))
            mbarrier.expect(k_full.index(slot), block_bytes)
            _load(k, [line + start, head * step_k], k_full.index(slot), k_s.index(slot))
            mbarrier.expect(v_raw.index(slot), block_bytes)
            _load(v, [line + start, head * step_v], v_raw.index(slot), v_s.index(slot))
            following = after
            start = start_ahead
            length = length_ahead
            step += 1
        turn += 1
        job += gl.num_programs(0)


@gluon.jit
def _clear(args, BLOCK: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, LENGTH: gl.constexpr):
    """Zeros in the rows of V that belong to no key of the block. Nothing to do where all blocks are full."""
    buffers, bars, rings, jobs = args
    _q_s, _k_s, v_s, block_s = buffers
    _q_full, _q_free, _k_full, v_raw, v_full, _free = bars
    walk_s, _rows_s, _v_scale_s, job_full, job_free = rings
    eight: gl.constexpr = gl.BlockedLayout([8], [32], [1], [0])
    one: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    part: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [1, 1], [1, 0])
    if LENGTH != BLOCK:
        rows = gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(1, part)), 1)
        job = gl.program_id(0)
        turn = 0
        step = 0
        while job < jobs:
            mbarrier.wait(job_full.index(turn & 1), (turn >> 1) & 1)
            count = pick(walk_s.index(turn & 1).load(eight), 0)
            mbarrier.arrive(job_free.index(turn & 1), count=1)
            for _ in range(count):
                slot = step % STAGES
                mbarrier.wait(v_raw.index(slot), (step // STAGES) & 1)
                length = pick(block_s.index(slot).load(one), 0) if LENGTH == 0 else LENGTH
                for first in gl.static_range(0, BLOCK, 8):
                    if first + 8 > length:
                        some = v_s.index(slot).slice(first, 8, 0)
                        values = some.load(part)
                        some.store(gl.where(rows < length - first, values, gl.zeros_like(values)))
                fence_async_shared()
                mbarrier.arrive(v_full.index(slot), count=1)
                step += 1
            turn += 1
            job += gl.num_programs(0)


@gluon.jit
def _consume(
    args,
    ME: gl.constexpr,
    CONSUMERS: gl.constexpr,
    BLOCK: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
    LENGTH: gl.constexpr,
    POLY: gl.constexpr,
):
    """Rows [64 * ME, 64 * ME + 64) of every job. LENGTH: real keys of every block, 0 where blocks differ."""
    buffers, bars, rings, jobs, groups, heads, tokens, out, lse = args
    q_s, k_s, v_s, block_s = buffers
    q_full, q_free, k_full, _v_raw, v_full, free = bars
    _walk_s, rows_s, _v_scale_s, job_full, job_free = rings
    warps: gl.constexpr = gl.num_warps()
    at_score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BLOCK, 16])
    at_out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, D, 16])
    at_store: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [warps, 1], [1, 0])  # whole lines of out
    score_rows: gl.constexpr = gl.SliceLayout(1, at_score)
    out_rows: gl.constexpr = gl.SliceLayout(1, at_out)
    one: gl.constexpr = gl.BlockedLayout([1], [32], [warps], [0])
    four: gl.constexpr = gl.BlockedLayout([4], [32], [warps], [0])
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < jobs:
        mbarrier.wait(job_full.index(turn & 1), (turn >> 1) & 1)
        record = rows_s.index((turn & 1) * CONSUMERS + ME).load(four)
        count = pick(record, 0)
        scale = number(pick(record, 3))
        top = gl.full([64], float("-inf"), gl.float32, score_rows)
        total = gl.zeros([64], gl.float32, score_rows)
        acc = gl.zeros([64, D], gl.float32, at_out)
        mbarrier.wait(q_full.index(0), turn & 1)
        if pick(record, 1) > 0:
            for _ in range(count):
                slot = step % STAGES
                phase = (step // STAGES) & 1
                mbarrier.wait(k_full.index(slot), phase)
                score = gl.zeros([64, BLOCK], gl.float32, at_score)
                key = k_s.index(slot).permute((1, 0))
                score = warpgroup_mma(q_s.index(ME), key, score, use_acc=False, is_async=True)
                words = block_s.index(slot).load(one)
                score = warpgroup_mma_wait(0, deps=(score,))
                if LENGTH == 0:
                    length = pick(words, 0)
                    score = masked(score, length)  # without a branch: ptxas serializes the products beside one
                elif LENGTH < BLOCK:
                    score = masked(score, LENGTH)
                higher = gl.maximum(top, row_max(score, top) * scale)
                base = gl.where(higher == float("-inf"), 0.0, higher)
                decay = exp2(top - base)
                top = higher
                weight = score * scale - gl.expand_dims(base, 1)
                weight = exp2_mixed(weight, POLY) if POLY else exp2(weight)
                acc = acc * gl.expand_dims(gl.convert_layout(decay, out_rows), 1)
                total = total * decay + gl.sum(weight, 1)
                p = gl.convert_layout(weight.to(q_s.dtype), gl.DotOperandLayout(0, at_out, 2))
                mbarrier.wait(v_full.index(slot), phase)
                acc = warpgroup_mma(p, v_s.index(slot), acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=(acc,))
                mbarrier.arrive(free.index(slot), count=1)
                step += 1
        else:  # no row to work for, but the others count on its arrivals
            for _ in range(count):
                mbarrier.wait(k_full.index(step % STAGES), (step // STAGES) & 1)
                mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
                mbarrier.arrive(free.index(step % STAGES), count=1)
                step += 1
        mbarrier.arrive(q_free.index(0), count=1)

        sums = gl.convert_layout(total, out_rows)
        result = (acc * gl.expand_dims(1.0 / gl.where(sums == 0.0, 1.0, sums), 1)).to(out.dtype.element_ty)
        result = gl.convert_layout(result, at_store)
        record = rows_s.index((turn & 1) * CONSUMERS + ME).load(four)  # again: nothing of it stays through the loop
        left = pick(record, 1)
        token = pick(record, 2)
        bh = job // groups
        place = ((bh // heads).to(gl.int64) * tokens + token) * heads + bh % heads
        lanes = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, at_store)), 1)
        cells = lanes * (heads * D) + gl.expand_dims(gl.arange(0, D, gl.SliceLayout(0, at_store)), 0)
        gl.store(out + place * D + cells, result, mask=lanes < left)
        height = gl.convert_layout(top, out_rows)
        height = gl.where(height == float("-inf"), 0.0, height) + gl.log2(sums)
        lanes = gl.arange(0, 64, out_rows)
        gl.store(lse + bh.to(gl.int64) * tokens + token + lanes, height * _LN_2, mask=lanes < left)
        mbarrier.arrive(job_free.index(turn & 1), count=1)
        turn += 1
        job += gl.num_programs(0)


@gluon.jit
def attention_forward_hopper16(
    q,  # descriptors [B*L, row], rows as in memory; blocks of 64 x D
    k,  # blocks of BLOCK x D
    v,
    out,
    lse,
    work,
    block_start,
    block_len,
    list_index,
    list_count,
    jobs,
    groups,
    heads,
    tokens,
    num_blocks,
    num_tiles,
    num_lists,
    longest,
    step_q,  # elements from head to head
    step_k,
    step_v,
    softmax_scale,  # D^-0.5 * log2(e)
    CONSUMERS: gl.constexpr,
    BLOCK: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
    LENGTH: gl.constexpr,
    POLY: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    q_s = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 64, D], q.layout)
    k_s = gl.allocate_shared_memory(k.dtype, [STAGES, BLOCK, D], k.layout)
    v_s = gl.allocate_shared_memory(v.dtype, [STAGES, BLOCK, D], v.layout)
    block_s = records(gl.int32, STAGES, 1)
    clears: gl.constexpr = LENGTH != BLOCK
    rings = job_rings(CONSUMERS, CONSUMERS + 1 + clears, D)
    v_raw = ring(STAGES, 1)
    v_full = ring(STAGES, 1) if clears else v_raw
    bars = ring(1, 1), ring(1, CONSUMERS), ring(STAGES, 1), v_raw, v_full, ring(STAGES, CONSUMERS)
    fence_async_shared()
    shape = (jobs, groups, num_blocks, num_tiles, num_lists, longest)
    planned = (rings, shape, (work, block_start, block_len, list_index, list_count), softmax_scale, ())
    buffers = (q_s, k_s, v_s, block_s)
    produced = (q, k, v, buffers, bars, rings, jobs, groups, heads, tokens)
    produced += ((list_index, block_start, block_len), (step_q, step_k, step_v))
    cleared = (buffers, bars, rings, jobs)
    args = (buffers, bars, rings, jobs, groups, heads, tokens, out, lse)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (args, 0, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_consume, (args, 1, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_produce, (produced, CONSUMERS, BLOCK, D, STAGES)),
                (_clear, (cleared, BLOCK, D, STAGES, LENGTH)),
                (look_ahead, (planned, CONSUMERS, BLOCK, D, False)),
            ],
            [4, 1, 1, 1],
            [REGISTERS, 24, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (args, 0, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_consume, (args, 1, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_consume, (args, 2, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_produce, (produced, CONSUMERS, BLOCK, D, STAGES)),
                (_clear, (cleared, BLOCK, D, STAGES, LENGTH)),
                (look_ahead, (planned, CONSUMERS, BLOCK, D, False)),
            ],
            [4, 4, 1, 1, 1],
            [REGISTERS, REGISTERS, 24, 24, 24],
        )


def launch_16bit_sm90(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    lists: BlockLists,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    config: Sm90Config,
) -> None:
    """Fill out [B, L, H, 128] (contiguous) and lse fp32 [B, H, L] from q, k, v [B, L, H, 128] (16 bit, last stride 1).

    scale: softmax scale times log2(e). The current device must be that of the tensors, and sm_90.
    """
    batch, tokens, heads, dim = out.shape
    q, k, v = (x if _lies_in_rows(x) else x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))

    def lines(x: torch.Tensor, rows: int) -> TensorDescriptor:
        shape = (batch * tokens, (heads - 1) * x.stride(2) + dim)
        return describe(x, shape, (x.stride(1), 1), (rows, dim), _TYPES[x.dtype])

    descriptors = (lines(q, 64), lines(k, tables.layout.block), lines(v, tables.layout.block))
    programs, arguments, constants = launch_plan(tables, lists, out, config)
    attention_forward_hopper16[(programs,)](
        *(*descriptors, out, lse, *arguments, q.stride(2), k.stride(2), v.stride(2), scale),
        **constants,
        num_warps=4,
    )


def _lies_in_rows(x: torch.Tensor) -> bool:
    """Whether one row per token, batches behind each other, describes x [B, L, H, D] as TMA wants it."""
    batch, tokens, heads, dim = x.shape
    in_line = batch == 1 or x.stride(0) == tokens * x.stride(1)
    whole = x.stride(2) >= 0 and (heads - 1) * x.stride(2) + dim <= x.stride(1)
    return in_line and whole and x.stride(1) % 8 == 0 and x.data_ptr() % 16 == 0
