"""FP8 tile-sparse attention forward for Hopper (sm_90a), in Gluon: a producer warp fetches key blocks by TMA, two or
three warpgroups of 64 query rows each turn them into output. Same inputs, lists and results as forward.py.

What makes it fast, each measured on its own on an H100 (figures/README.md has how):
- Persistent programs; the producer runs ahead across jobs, so that keys are there when a query block begins.
- V's keys lie permuted within 16 (prepare.py): each thread then holds P as the tensor core wants it, no shuffles.
- Row sums come from the tensor core, as P times a block of 448s, the value to which a constant V is scaled: of exactly
  the P that multiplies V and with the same rounding, so V = 1 gives O = 1; that saves an addition per element. Every
  second column holds ones, and those for 32 keys only: such short sums lose next to nothing, and make the LSE.
- Products of a key block are added up in fp32 registers in the step that rescales the accumulator anyway. Hopper's
  FP8 sums keep about 14 bits: without this, 10,000 keys lose a fifth of a row sum.
- One in `poly` exponentials runs on the FMA units (a cubic, relative error 1e-4, far below P's E4M3).

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

from fpsgen.attention.kernels.launch import HopperConfig
from fpsgen.attention.kernels.prepare import Prepared
from fpsgen.attention.methods import PlanTensors

_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # its name until Triton 3.8
_SHIFT = gl.constexpr(math.log2(448.0))  # P = 2^(x - m) * 448
_LN_2 = gl.constexpr(math.log(2.0))
_E4M3_ONE = gl.constexpr(0x38)
_E4M3_TOP = gl.constexpr(0x7E)  # 448
_MAGIC = gl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer


@gluon.jit
def _ceil(x):
    return gl.inline_asm_elementwise("cvt.rpi.f32.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _exp2_fma(x):
    """2^x without the special function unit: nearest integer into the exponent, a cubic for the rest."""
    shifted = gl.maximum(x, -120.0) + _MAGIC
    rest = x - (shifted - _MAGIC)
    rest = gl.where(x < -120.0, 0.0, rest)
    whole = (shifted.to(gl.int32, bitcast=True) << 23) + 0x3F800000
    return (((0.0555054 * rest + 0.2402265) * rest + 0.6931472) * rest + 1.0) * whole.to(gl.float32, bitcast=True)


@gluon.jit
def _halves(x):
    """Left and right half of the columns; registers only."""
    rows: gl.constexpr = x.shape[0]
    columns: gl.constexpr = x.shape[1] // 2
    return gl.split(gl.permute(gl.reshape(x, [rows, 2, columns]), [0, 2, 1]))


@gluon.jit
def _beside(left, right, layout: gl.constexpr):
    rows: gl.constexpr = left.shape[0]
    columns: gl.constexpr = left.shape[1] * 2
    both = gl.join(left, gl.convert_layout(right, left.type.layout))
    return gl.convert_layout(gl.reshape(gl.permute(both, [0, 2, 1]), [rows, columns]), layout)


@gluon.jit
def _exp2_mixed(x, POLY: gl.constexpr):
    """2^x, the first POLY-th of the columns on the FMA units (POLY 4 or 8)."""
    left, right = _halves(x)
    quarter, rest = _halves(left)
    at_all: gl.constexpr = x.type.layout
    at_left: gl.constexpr = left.type.layout
    at_quarter: gl.constexpr = quarter.type.layout
    if POLY == 4:
        quarter = _exp2_fma(quarter)
    else:
        first, second = _halves(quarter)
        quarter = _beside(_exp2_fma(first), _exp2(second), at_quarter)
    left = _beside(quarter, _exp2(rest), at_left)
    return _beside(left, _exp2(right), at_all)


@gluon.jit
def _operand(weight, layout: gl.constexpr):
    """P in E4M3 as left operand. Its columns are taken in the order that V's keys have: a matter of names only."""
    rows: gl.constexpr = weight.shape[0]
    columns: gl.constexpr = weight.shape[1]
    x = gl.permute(gl.reshape(weight, [rows, columns // 16, 2, 4, 2]), [0, 1, 3, 2, 4])
    return gl.convert_layout(gl.reshape(x, [rows, columns]).to(gl.float8e4nv), layout)


@gluon.jit
def _produce(args, CONSUMERS: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """Queries of every job and key blocks of every list, in order, into the rings."""
    q, k, v, q_s, k_s, v_s, q_full, q_free, k_full, v_full, free, shape, work, list_index, list_count = args
    jobs, groups, _heads, _tokens, num_blocks, num_tiles, num_lists, longest = shape
    q_bytes: gl.constexpr = CONSUMERS * 64 * D
    block_bytes: gl.constexpr = BLOCK * D
    job = gl.program_id(0)
    turn = 0
    step = 0
    while job < jobs:
        bh = job // groups
        entry = work + (job % groups) * 4
        row = gl.load(entry)
        line = (bh % num_lists) * num_tiles + gl.load(entry + 2)
        count = gl.load(list_count + line)
        first = bh * (num_blocks * BLOCK)
        mbarrier.wait(q_free.index(turn & 1), ((turn >> 1) & 1) ^ 1)
        mbarrier.expect(q_full.index(turn & 1), q_bytes)
        for i in gl.static_range(CONSUMERS):
            _load(q, [first + row + i * 64, 0], q_full.index(turn & 1), q_s.index((turn & 1) * CONSUMERS + i))
        keys = list_index + line * longest
        block = gl.load(keys)
        for i in range(count):
            slot = step % STAGES
            ahead = gl.load(keys + gl.minimum(i + 1, count - 1))
            mbarrier.wait(free.index(slot), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(k_full.index(slot), block_bytes)
            _load(k, [first + block * BLOCK, 0], k_full.index(slot), k_s.index(slot))
            mbarrier.expect(v_full.index(slot), block_bytes)
            _load(v, [bh * D, block * BLOCK], v_full.index(slot), v_s.index(slot))
            block = ahead
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
    buffers, shape, tables, softmax_scale, q_scale, k_scale, v_scale, out, lse = args
    q_s, k_s, v_s, ones_s, q_full, q_free, k_full, v_full, free = buffers
    jobs, groups, heads, tokens, num_blocks, num_tiles, num_lists, longest = shape
    work, block_start, block_len, list_index, list_count = tables
    warps: gl.constexpr = gl.num_warps()
    at_score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BLOCK, 32])
    at_out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, D, 32])
    at_sum: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, 8, 32])
    at_total: gl.constexpr = gl.split(gl.reshape(gl.zeros([64, 8], gl.float32, at_sum), [64, 4, 2]))[0].type.layout
    score_rows: gl.constexpr = gl.SliceLayout(1, at_score)
    out_rows: gl.constexpr = gl.SliceLayout(1, at_out)
    columns = gl.expand_dims(gl.arange(0, BLOCK, gl.SliceLayout(0, at_score)), 0)
    job = gl.program_id(0)
    turn = 0
    step = 0
    entry = work + (job % groups) * 4
    row = gl.load(entry) + ME * 64
    end = gl.load(entry + 1)
    tile = gl.load(entry + 2)
    while job < jobs:
        bh = job // groups
        line = (bh % num_lists) * num_tiles + tile
        count = gl.load(list_count + line)
        own = gl.minimum(row // BLOCK, num_blocks - 1)
        left = gl.where(row < end, gl.load(block_len + own) - row % BLOCK, 0)  # rows with a token
        token = gl.load(block_start + own) + row % BLOCK
        keys = list_index + line * longest
        scales = k_scale + bh * num_blocks
        scale_q = gl.load(q_scale + bh * num_blocks + own) * softmax_scale
        block = gl.load(keys)
        block = gl.maximum(block, 0)  # an empty list holds -1
        scale = scale_q * gl.load(scales + block)
        length = gl.load(block_len + block)
        top = gl.full([64], float("-inf"), gl.float32, score_rows)
        total = gl.zeros([64, 4], gl.float32, at_total)  # four times the same sum
        exact = gl.zeros([64, 4], gl.float32, at_total)  # four parts of it
        acc = gl.zeros([64, D], gl.float32, at_out)
        mbarrier.wait(q_full.index(turn & 1), (turn >> 1) & 1)
        query = q_s.index((turn & 1) * CONSUMERS + ME)
        if left > 0:
            for i in range(count):
                slot = step % STAGES
                phase = (step // STAGES) & 1
                ahead = gl.load(keys + gl.minimum(i + 1, count - 1))
                scale_ahead = scale_q * gl.load(scales + ahead)
                mbarrier.wait(k_full.index(slot), phase)
                score = gl.zeros([64, BLOCK], gl.float32, at_score)
                key = k_s.index(slot).permute((1, 0))
                score = warpgroup_mma(query, key, score, use_acc=False, is_async=True)
                score = warpgroup_mma_wait(0, deps=(score,))
                if LENGTH == 0:
                    length_ahead = gl.load(block_len + ahead)
                    if length < BLOCK:
                        score = gl.where(columns < length, score, float("-inf"))
                    length = length_ahead
                elif LENGTH < BLOCK:
                    score = gl.where(columns < LENGTH, score, float("-inf"))
                higher = gl.maximum(top, _ceil(gl.max(score, 1) * scale))
                base = gl.where(higher == float("-inf"), 0.0, higher)
                decay = _exp2(top - base)
                top = higher
                weight = score * scale - gl.expand_dims(base - _SHIFT, 1)
                weight = _exp2_mixed(weight, POLY) if POLY else _exp2(weight)
                p = _operand(weight, gl.DotOperandLayout(0, at_out, 4))
                mbarrier.wait(v_full.index(slot), phase)
                part_sum = gl.zeros([64, 8], gl.float32, at_sum)
                same = gl.convert_layout(p, gl.DotOperandLayout(0, at_sum, 4))
                part_sum = warpgroup_mma(same, ones_s.permute((1, 0)), part_sum, use_acc=False, is_async=True)
                part = gl.zeros([64, D], gl.float32, at_out)
                part = warpgroup_mma(p, v_s.index(slot).permute((1, 0)), part, use_acc=False, is_async=True)
                part, part_sum = warpgroup_mma_wait(0, deps=(part, part_sum))
                acc = acc * gl.expand_dims(gl.convert_layout(decay, out_rows), 1) + part
                all_keys, some_keys = gl.split(gl.reshape(part_sum, [64, 4, 2]))
                decay_total = gl.expand_dims(gl.convert_layout(decay, gl.SliceLayout(1, at_total)), 1)
                total = total * decay_total + all_keys
                exact = exact * decay_total + some_keys
                mbarrier.arrive(free.index(slot), count=1)
                scale = scale_ahead
                step += 1
        else:  # no row to work for, but the others count on its arrivals
            for _ in range(count):
                mbarrier.wait(k_full.index(step % STAGES), (step // STAGES) & 1)
                mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
                mbarrier.arrive(free.index(step % STAGES), count=1)
                step += 1
        mbarrier.arrive(q_free.index(turn & 1), count=1)
        turn += 1
        job += gl.num_programs(0)
        entry = work + (gl.minimum(job, jobs - 1) % groups) * 4
        row = gl.load(entry) + ME * 64  # the next job's, on their way while this one is written
        end = gl.load(entry + 1)
        tile = gl.load(entry + 2)

        sums = gl.convert_layout(gl.max(total, 1), out_rows)
        channels = gl.arange(0, D, gl.SliceLayout(0, at_out))
        inverse = 448.0 / gl.where(sums == 0.0, 1.0, sums)
        result = acc * gl.expand_dims(inverse, 1) * gl.expand_dims(gl.load(v_scale + bh * D + channels), 0)
        height = gl.convert_layout(top, out_rows)
        height = gl.where(height == float("-inf"), 0.0, height) - _SHIFT
        height += gl.log2(gl.convert_layout(gl.sum(exact, 1), out_rows))
        lanes = gl.arange(0, 64, out_rows)
        keep = lanes < left
        place = ((bh // heads).to(gl.int64) * tokens + token) * heads + bh % heads
        cells = gl.expand_dims(lanes * (heads * D), 1) + gl.expand_dims(channels, 0)
        gl.store(out + place * D + cells, result.to(out.dtype.element_ty), mask=gl.expand_dims(keep, 1))
        gl.store(lse + bh.to(gl.int64) * tokens + token + lanes, height * _LN_2, mask=keep)


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
    bar: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    q_free = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_free.index(i), count=CONSUMERS)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(free.index(i), count=CONSUMERS)
    fence_async_shared()
    shape = (jobs, groups, heads, tokens, num_blocks, num_tiles, num_lists, longest)
    produced = (q, k, v, q_s, k_s, v_s, q_full, q_free, k_full, v_full, free, shape, work, list_index, list_count)
    buffers = (q_s, k_s, v_s, ones_s, q_full, q_free, k_full, v_full, free)
    tables = (work, block_start, block_len, list_index, list_count)
    args = (buffers, shape, tables, softmax_scale, q_scale, k_scale, v_scale, out, lse)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (args, 0, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_consume, (args, 1, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_produce, (produced, CONSUMERS, BLOCK, D, STAGES)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (args, 0, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_consume, (args, 1, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_consume, (args, 2, CONSUMERS, BLOCK, D, STAGES, LENGTH, POLY)),
                (_produce, (produced, CONSUMERS, BLOCK, D, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )


def launch_hopper(
    ready: Prepared, at: PlanTensors, out: torch.Tensor, lse: torch.Tensor, scale: float, config: HopperConfig
) -> None:
    """Fill out [B, L, H, 128] (contiguous) and lse fp32 [B, H, L] from prepared inputs with permuted keys in V.

    scale: softmax scale times log2(e). The current device must be that of the tensors, and sm_90.
    """
    batch, tokens, heads, dim = out.shape
    block, blocks = at.layout.block, at.layout.num_blocks
    work = at.work(config.consumers)
    jobs = work.shape[0] * batch * heads
    attention_forward_hopper[(min(jobs, _processors(out.device)),)](
        _descriptor(ready.q.view(-1, dim), [64, dim]),
        _descriptor(ready.k.view(-1, dim), [block, dim]),
        _descriptor(ready.v.view(-1, blocks * block), [dim, block]),
        *(out, lse, ready.q_scale, ready.k_scale, ready.v_scale),
        *(work, at.block_start, at.block_len, at.list_index, at.list_count),
        *(jobs, work.shape[0], heads, tokens, blocks),
        *(at.list_count.shape[1], at.list_count.shape[0], at.list_index.shape[2], scale),
        CONSUMERS=config.consumers,
        BLOCK=block,
        D=dim,
        STAGES=config.stages,
        LENGTH=at.layout.uniform,
        POLY=config.poly,
        REGISTERS=config.registers,
        num_warps=4,
    )


def _descriptor(x: torch.Tensor, shape: list[int]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x, shape, gl.NVMMASharedLayout.get_default_for(shape, gl.float8e4nv))


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
