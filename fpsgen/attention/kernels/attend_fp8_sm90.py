"""FP8 tile-sparse attention forward for Hopper (sm_90a), in Gluon: a producer warp fetches key blocks by TMA, two or
three warpgroups of 64 query rows each turn them into output. Same inputs, lists and results as attend_portable.py.

What makes it fast, each measured on its own (figures/README.md has turns and fp32 sums):
- Persistent programs; the producer runs ahead across jobs, so that keys are there when a query block begins. One more
  warp looks a job ahead of it: all that is known of a job lies in shared memory when it begins, what is known of a
  key block comes with it, and consumers read nothing from global memory.
- The output goes through shared memory once, to be stored in whole lines.
- V's keys lie permuted within 16 (quantize_qkv.py): each thread then holds P as the tensor core wants it, no shuffles.
- Row sums come from the tensor core, as P times a block of 448s, the value to which a constant V is scaled: of exactly
  the P that multiplies V and with the same rounding, so V = 1 gives O = 1; that saves an addition per element. Every
  second column holds ones, and those for 32 keys only: such short sums lose next to nothing, and make the LSE.
- Products of a key block are added up in fp32 registers in the step that rescales the accumulator anyway. Hopper's
  FP8 sums keep about 14 bits: without this, 10,000 keys lose a fifth of a row sum.
- A row's maximum is found with integers, three operands to an instruction, and pairs of P are packed without a shuffle:
  a tenth of the loop's instructions, and under a GPU's power limit instructions are what counts.
- Three consumers take turns at the tensor core: one's P.V and next Q.K run beside the others' exponentials.
- One in `poly` exponentials runs on the FMA units (a cubic, relative error 7.5e-5, far below P's E4M3).

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

from fpsgen.attention.kernels.launch_config import Sm90Config
from fpsgen.attention.kernels.softmax import (
    as_operand,
    bits,
    ceil,
    exp2,
    exp2_mixed,
    masked,
    number,
    pick,
    put,
    row_max,
)
from fpsgen.attention.kernels.tile_scheduler import describe, job_rings, launch_plan, look_ahead, records, ring
from fpsgen.attention.kernels.workspace import Workspace
from fpsgen.attention.plan import BlockLists, DeviceTables

_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # its name until Triton 3.8
_SHIFT = gl.constexpr(math.log2(448.0))  # P = 2^(x - m) * 448
_LN_2 = gl.constexpr(math.log(2.0))
_E4M3_ONE = gl.constexpr(0x38)
_E4M3_TOP = gl.constexpr(0x7E)  # 448


@gluon.jit
def _produce(args, CONSUMERS: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """Queries of every job and key blocks of every list, in order, into the rings; with a key block its K scale and
    number of keys.
    """
    q, k, v, buffers, bars, rings, jobs, groups, num_blocks, list_index, block_len, k_scale = args
    q_s, k_s, v_s, block_s = buffers
    q_full, q_free, k_full, v_full, free, _turns = bars
    walk_s, _rows_s, _v_scale_s, job_full, job_free = rings
    q_bytes: gl.constexpr = CONSUMERS * 64 * D
    block_bytes: gl.constexpr = BLOCK * D
    eight: gl.constexpr = gl.BlockedLayout([8], [32], [1], [0])
    two: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < jobs:
        bh = job // groups
        first = bh * (num_blocks * BLOCK)
        scales = k_scale + bh * num_blocks
        mbarrier.wait(job_full.index(turn & 1), (turn >> 1) & 1)
        walk = walk_s.index(turn & 1).load(eight)
        mbarrier.arrive(job_free.index(turn & 1), count=1)
        count = pick(walk, 0)
        row = pick(walk, 1)
        keys = list_index + pick(walk, 2)
        block = pick(walk, 3)
        following = pick(walk, 4)
        scale = pick(walk, 5)
        length = pick(walk, 6)
        mbarrier.wait(q_free.index(turn & 1), ((turn >> 1) & 1) ^ 1)
        mbarrier.expect(q_full.index(turn & 1), q_bytes)
        for i in gl.static_range(CONSUMERS):
            _load(q, [first + row + i * 64, 0], q_full.index(turn & 1), q_s.index((turn & 1) * CONSUMERS + i))
        for i in range(count):
            slot = step % STAGES
            after = gl.load(keys + gl.minimum(i + 2, count - 1))
            scale_ahead = bits(gl.load(scales + following))
            length_ahead = gl.load(block_len + following)
            mbarrier.wait(free.index(slot), ((step // STAGES) & 1) ^ 1)
            words = gl.full([2], 0, gl.int32, two)
            block_s.index(slot).store(put(put(words, 0, scale), 1, length))
            mbarrier.expect(k_full.index(slot), block_bytes)
            _load(k, [first + block * BLOCK, 0], k_full.index(slot), k_s.index(slot))
            mbarrier.expect(v_full.index(slot), block_bytes)
            _load(v, [bh * D, block * BLOCK], v_full.index(slot), v_s.index(slot))
            block = following
            following = after
            scale = scale_ahead
            length = length_ahead
            step += 1
        turn += 1
        job += gl.num_programs(0)


@gluon.jit
def _take_turn(turns, taken, ME: gl.constexpr, PINGPONG: gl.constexpr):
    """Wait until the consumer before passes its turn on; the first has one to begin with. taken: turns before.

    From P.V of one block to Q.K of the next is one turn. Two stages suffice: who passes a turn on has freed its block.
    """
    if PINGPONG:
        mbarrier.wait(turns.index(ME), (taken & 1) ^ (ME == 0))


@gluon.jit
def _pass_turn(turns, ME: gl.constexpr, CONSUMERS: gl.constexpr, PINGPONG: gl.constexpr):
    if PINGPONG:
        mbarrier.arrive(turns.index((ME + 1) % CONSUMERS), count=1)


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
    PINGPONG: gl.constexpr,
    PROMOTE: gl.constexpr,
):
    """Rows [64 * ME, 64 * ME + 64) of every job. LENGTH: real keys of every block, 0 where blocks differ."""
    buffers, bars, rings, ones_s, jobs, groups, heads, tokens, out, lse = args
    q_s, k_s, v_s, block_s = buffers
    q_full, q_free, k_full, v_full, free, turns = bars
    _walk_s, rows_s, v_scale_s, job_full, job_free = rings
    warps: gl.constexpr = gl.num_warps()
    at_score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BLOCK, 32])
    at_out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, D, 32])
    at_sum: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, 8, 32])
    at_total: gl.constexpr = gl.split(gl.reshape(gl.zeros([64, 8], gl.float32, at_sum), [64, 4, 2]))[0].type.layout
    at_store: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [warps, 1], [1, 0])  # whole lines of out
    score_rows: gl.constexpr = gl.SliceLayout(1, at_score)
    out_rows: gl.constexpr = gl.SliceLayout(1, at_out)
    two: gl.constexpr = gl.BlockedLayout([2], [32], [warps], [0])
    four: gl.constexpr = gl.BlockedLayout([4], [32], [warps], [0])
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < jobs:
        mbarrier.wait(job_full.index(turn & 1), (turn >> 1) & 1)
        record = rows_s.index((turn & 1) * CONSUMERS + ME).load(four)
        count = pick(record, 0)
        scale_q = number(pick(record, 3))
        top = gl.full([64], float("-inf"), gl.float32, score_rows)
        total = gl.zeros([64, 4], gl.float32, at_total)  # four times the same sum
        exact = gl.zeros([64, 4], gl.float32, at_total)  # four parts of it
        acc = gl.zeros([64, D], gl.float32, at_out)
        mbarrier.wait(q_full.index(turn & 1), (turn >> 1) & 1)
        query = q_s.index((turn & 1) * CONSUMERS + ME)
        _take_turn(turns, step + turn, ME, PINGPONG)
        if pick(record, 1) > 0:
            for _ in range(count):
                slot = step % STAGES
                phase = (step // STAGES) & 1
                mbarrier.wait(k_full.index(slot), phase)
                words = block_s.index(slot).load(two)
                score = gl.zeros([64, BLOCK], gl.float32, at_score)
                key = k_s.index(slot).permute((1, 0))
                score = warpgroup_mma(query, key, score, use_acc=False, is_async=True)
                _pass_turn(turns, ME, CONSUMERS, PINGPONG)
                score = warpgroup_mma_wait(0, deps=(score,))
                scale = scale_q * number(pick(words, 0))
                if LENGTH == 0:
                    length = pick(words, 1)
                    if length < BLOCK:
                        score = masked(score, length)
                elif LENGTH < BLOCK:
                    score = masked(score, LENGTH)
                higher = gl.maximum(top, ceil(row_max(score, top) * scale))
                base = gl.where(higher == float("-inf"), 0.0, higher)
                decay = exp2(top - base)
                top = higher
                weight = score * scale - gl.expand_dims(base - _SHIFT, 1)
                weight = exp2_mixed(weight, POLY) if POLY else exp2(weight)
                p = as_operand(weight, gl.DotOperandLayout(0, at_out, 4), LENGTH)
                mbarrier.wait(v_full.index(slot), phase)
                _take_turn(turns, step + turn + 1, ME, PINGPONG)
                part_sum = gl.zeros([64, 8], gl.float32, at_sum)
                same = gl.convert_layout(p, gl.DotOperandLayout(0, at_sum, 4))
                part_sum = warpgroup_mma(same, ones_s.permute((1, 0)), part_sum, use_acc=False, is_async=True)
                decay_out = gl.expand_dims(gl.convert_layout(decay, out_rows), 1)
                part = gl.zeros([64, D], gl.float32, at_out) if PROMOTE else acc * decay_out
                value = v_s.index(slot).permute((1, 0))
                part = warpgroup_mma(p, value, part, use_acc=not PROMOTE, is_async=True)
                part, part_sum = warpgroup_mma_wait(0, deps=(part, part_sum))
                acc = acc * decay_out + part if PROMOTE else part
                all_keys, some_keys = gl.split(gl.reshape(part_sum, [64, 4, 2]))
                decay_total = gl.expand_dims(gl.convert_layout(decay, gl.SliceLayout(1, at_total)), 1)
                total = total * decay_total + all_keys
                exact = exact * decay_total + some_keys
                mbarrier.arrive(free.index(slot), count=1)
                step += 1
        else:  # no row to work for, but the others count on its arrivals
            for _ in range(count):
                _pass_turn(turns, ME, CONSUMERS, PINGPONG)
                mbarrier.wait(k_full.index(step % STAGES), (step // STAGES) & 1)
                mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
                _take_turn(turns, step + turn + 1, ME, PINGPONG)
                mbarrier.arrive(free.index(step % STAGES), count=1)
                step += 1
        _pass_turn(turns, ME, CONSUMERS, PINGPONG)
        mbarrier.arrive(q_free.index(turn & 1), count=1)

        sums = gl.convert_layout(gl.max(total, 1), out_rows)
        inverse = 448.0 / gl.where(sums == 0.0, 1.0, sums)
        scales_v = v_scale_s.index(turn & 1).load(gl.SliceLayout(0, at_out))
        result = (acc * gl.expand_dims(inverse, 1) * gl.expand_dims(scales_v, 0)).to(out.dtype.element_ty)
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
        height = gl.where(height == float("-inf"), 0.0, height) - _SHIFT
        height += gl.log2(gl.convert_layout(gl.sum(exact, 1), out_rows))
        lanes = gl.arange(0, 64, out_rows)
        gl.store(lse + bh.to(gl.int64) * tokens + token + lanes, height * _LN_2, mask=lanes < left)
        mbarrier.arrive(job_free.index(turn & 1), count=1)
        turn += 1
        job += gl.num_programs(0)


@gluon.jit
def attention_forward_hopper(
    q,  # descriptor [B*H*P, D], blocks of 64
    k,  # descriptor [B*H*P, D], blocks of BLOCK
    v,  # descriptor [B*H*D, P], blocks of D x BLOCK, keys permuted
    out,
    lse,
    q_scale,
    k_scale,
    v_scale,
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
    softmax_scale,  # D^-0.5 * log2(e)
    CONSUMERS: gl.constexpr,
    BLOCK: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
    LENGTH: gl.constexpr,
    POLY: gl.constexpr,
    REGISTERS: gl.constexpr,
    PINGPONG: gl.constexpr,
    PROMOTE: gl.constexpr,
):
    q_s = gl.allocate_shared_memory(q.dtype, [2 * CONSUMERS, 64, D], q.layout)
    k_s = gl.allocate_shared_memory(k.dtype, [STAGES, BLOCK, D], k.layout)
    v_s = gl.allocate_shared_memory(v.dtype, [STAGES, D, BLOCK], v.layout)
    # as bits: ptxas 12.8 miscompiles the cast of a constant, half of each word stays undefined
    spread: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    column = gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(1, spread)), 1)
    key = gl.expand_dims(gl.arange(0, BLOCK, gl.SliceLayout(0, spread)), 0)
    ones = gl.where(column % 2 == 0, _E4M3_TOP, gl.where(key // 32 == column // 2, _E4M3_ONE, 0))
    ones = ones.to(gl.int8).to(gl.float8e4nv, bitcast=True)
    at_ones: gl.constexpr = gl.NVMMASharedLayout.get_default_for([8, BLOCK], gl.float8e4nv)
    ones_s = gl.allocate_shared_memory(gl.float8e4nv, [8, BLOCK], at_ones, ones)
    block_s = records(gl.int32, STAGES, 2)
    rings = job_rings(CONSUMERS, CONSUMERS + 1, D)
    bars = ring(2, 1), ring(2, CONSUMERS), ring(STAGES, 1), ring(STAGES, 1), ring(STAGES, CONSUMERS), ring(CONSUMERS, 1)
    fence_async_shared()
    shape = (jobs, groups, num_blocks, num_tiles, num_lists, longest)
    tables = (work, block_start, block_len, list_index, list_count)
    planned = (rings, shape, tables, softmax_scale, (q_scale, k_scale, v_scale))
    buffers = (q_s, k_s, v_s, block_s)
    produced = (q, k, v, buffers, bars, rings, jobs, groups, num_blocks, list_index, block_len, k_scale)
    args = (buffers, bars, rings, ones_s, jobs, groups, heads, tokens, out, lse)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (args, 0, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY, PINGPONG, PROMOTE)),
                (_consume, (args, 1, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY, PINGPONG, PROMOTE)),
                (_produce, (produced, CONSUMERS, BLOCK, D, STAGES)),
                (look_ahead, (planned, CONSUMERS, BLOCK, D, True)),
            ],
            [4, 1, 1],
            [REGISTERS, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (args, 0, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY, PINGPONG, PROMOTE)),
                (_consume, (args, 1, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY, PINGPONG, PROMOTE)),
                (_consume, (args, 2, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY, PINGPONG, PROMOTE)),
                (_produce, (produced, CONSUMERS, BLOCK, D, STAGES)),
                (look_ahead, (planned, CONSUMERS, BLOCK, D, True)),
            ],
            [4, 4, 1, 1],
            [REGISTERS, REGISTERS, 24, 24],
        )


def launch_fp8_sm90(
    quantized: Workspace,
    tables: DeviceTables,
    lists: BlockLists,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    config: Sm90Config,
) -> None:
    """Fill out [B, L, H, 128] (contiguous) and lse fp32 [B, H, L] from quantized inputs with permuted keys in V.

    scale: softmax scale times log2(e). The current device must be that of the tensors, and sm_90.
    """
    batch, _, heads, dim = out.shape
    block, lanes = tables.layout.block, tables.layout.num_blocks * tables.layout.block
    rows, fp8 = (batch * heads * lanes, dim), gl.float8e4nv
    descriptors = (
        describe(quantized.q, rows, (dim, 1), (64, dim), fp8),
        describe(quantized.k, rows, (dim, 1), (block, dim), fp8),
        describe(quantized.v, (batch * heads * dim, lanes), (lanes, 1), (dim, block), fp8),
    )
    programs, arguments, constants = launch_plan(tables, lists, out, config)
    attention_forward_hopper[(programs,)](
        *(*descriptors, out, lse, quantized.q_scale, quantized.k_scale, quantized.v_scale, *arguments, scale),
        **constants,
        PINGPONG=config.pingpong,
        PROMOTE=config.promote,
        num_warps=4,
    )
