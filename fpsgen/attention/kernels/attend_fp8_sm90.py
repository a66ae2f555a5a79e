"""FP8 tile-sparse attention forward for Hopper (sm_90a), in Gluon: a producer warp loads key blocks by TMA, two or
three warpgroups of 64 query rows each compute. Same inputs, lists and results as attend_portable.py.

What makes it fast, each measured on its own (figures/README.md):
- Programs are persistent, and the producer runs ahead into the next work tile. The scheduler warp reads the tables one
  work tile ahead (tile_scheduler.py). Consumers read nothing from global memory.
- The output goes through shared memory once, to be stored in whole lines.
- V's keys lie permuted within 16 (quantize_qkv.py). Each thread then holds P as the tensor core wants it: no shuffles.
- Row sums come from the tensor core, as P times a block of 448s, the value to which a constant V is scaled. They add
  exactly the P that multiplies V, with the same rounding, so V = 1 gives O = 1, and no instruction per element. Every
  second column of that block holds ones instead, each for 32 keys only: such short sums lose next to nothing, and make
  the LSE.
- Products of a key block are added up in fp32 registers in the step that rescales the accumulator anyway. Hopper's
  FP8 sums keep about 14 bits: without this, 10,000 keys lose a fifth of a row sum.
- A row's maximum is found with integers, three operands to an instruction, and pairs of P are packed without a shuffle:
  a tenth of the loop's instructions. Under a GPU's power limit the number of instructions decides.
- Ping-pong: three consumers take the tensor core one after the other, so that one's P.V and next Q.K run beside the
  others' exponentials.
- One in `poly` exponentials runs on the FMA units (a cubic, relative error 7.5e-5, far below P's E4M3).

Legend: BLOCK 128 rows of a kernel block, D 128, bh is batch * H + head.
"""

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from fpsgen.attention.kernels.launch_config import OF_PROFILE, Sm90Config
from fpsgen.attention.kernels.sm90_parts import (
    BarrierPair,
    BarrierRing,
    PingPong,
    aggregate,
    as_float,
    as_int,
    barrier_pair,
    barrier_ring,
    empty_record,
    load_record,
    load_tile,
    records,
    store_rows,
    with_word,
    word,
)
from fpsgen.attention.kernels.softmax import (
    INT_OFFSET,
    ceil,
    exp2,
    exp2_mixed,
    masked,
    offset_float,
    p_operand,
    row_max,
)
from fpsgen.attention.kernels.tile_scheduler import (
    Sizes,
    Tables,
    describe,
    launch_arguments,
    make_schedule,
    schedule_tiles,
)
from fpsgen.attention.kernels.workspace import Workspace
from fpsgen.attention.plan import BlockLists, DeviceTables

_SHIFT = gl.constexpr(math.log2(448.0))  # P = 2^(x - m) * 448
_E4M3_ONE = gl.constexpr(0x38)
_E4M3_MAX = gl.constexpr(0x7E)  # 448


@aggregate
class Buffers:
    """Shared memory: q [2 * consumers, 64, D], k [stages, BLOCK, D], v [stages, D, BLOCK]; block_info [stages, 2], K
    scale and number of keys of the block in k; ones [8, BLOCK], what P is multiplied with for row sums.
    """

    q: gl.shared_memory_descriptor
    k: gl.shared_memory_descriptor
    v: gl.shared_memory_descriptor
    block_info: gl.shared_memory_descriptor
    ones: gl.shared_memory_descriptor


@aggregate
class Barriers:
    """q: by iteration. k, and v_full: by key block; a block's K and V are released together, by k.empty."""

    q: BarrierPair
    k: BarrierPair
    v_full: BarrierRing
    ping_pong: PingPong


@gluon.jit
def _produce(args, CONSUMERS: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr):
    """The producer warp: queries of every work tile and key blocks of every list."""
    q, k, v, k_scale, buffers, barriers, schedule, sizes, tables = args
    work = gl.program_id(0)
    iteration = 0
    step = 0  # key blocks so far
    while work < sizes.work_tiles:
        bh = work // sizes.per_head
        first_row = bh * (sizes.num_blocks * BLOCK)
        k_scales = k_scale + bh * sizes.num_blocks
        schedule.barriers.wait(iteration)
        info = schedule.producer_info(iteration)
        schedule.barriers.release(iteration)
        block_list = tables.list_index + info.list_start
        block = info.block
        next_block = info.next_block
        scale = info.block_word
        length = info.block_len
        barriers.q.acquire(iteration)
        q_full = barriers.q.full.barrier(iteration)
        mbarrier.expect(q_full, CONSUMERS * 64 * D)
        for i in gl.static_range(CONSUMERS):
            rows = first_row + info.row + i * 64
            load_tile(q, [rows, 0], q_full, buffers.q.index((iteration & 1) * CONSUMERS + i))
        for i in range(info.num_blocks):
            slot = barriers.k.slot(step)
            after_next = gl.load(block_list + gl.minimum(i + 2, info.num_blocks - 1))
            next_scale = as_int(gl.load(k_scales + next_block))
            next_length = gl.load(tables.block_len + next_block)
            barriers.k.acquire(step)
            record = with_word(with_word(empty_record(2), 0, scale), 1, length)
            buffers.block_info.index(slot).store(record)
            k_full = barriers.k.full.barrier(step)
            mbarrier.expect(k_full, BLOCK * D)
            load_tile(k, [first_row + block * BLOCK, 0], k_full, buffers.k.index(slot))
            v_full = barriers.v_full.barrier(step)
            mbarrier.expect(v_full, BLOCK * D)
            load_tile(v, [bh * D, block * BLOCK], v_full, buffers.v.index(slot))
            block = next_block
            next_block = after_next
            scale = next_scale
            length = next_length
            step += 1
        iteration += 1
        work += gl.num_programs(0)


@gluon.jit
def _consume(
    args,
    ME: gl.constexpr,
    BLOCK: gl.constexpr,
    D: gl.constexpr,
    LENGTH: gl.constexpr,
    POLY: gl.constexpr,
    PROMOTE: gl.constexpr,
    CENTER_V: gl.constexpr,
):
    """A consumer: rows [64 * ME, 64 * ME + 64) of every work tile. LENGTH: keys of all blocks, 0 where they differ."""
    out, lse, buffers, barriers, schedule, sizes = args
    warps: gl.constexpr = gl.num_warps()
    qk_type: gl.constexpr = gl.int32 if buffers.q.dtype == gl.int8 else gl.float32
    qk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BLOCK, 32])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, D, 32])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, 8, 32])
    l_layout: gl.constexpr = gl.split(gl.reshape(gl.zeros([64, 8], gl.float32, sum_layout), [64, 4, 2]))[0].type.layout
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    work = gl.program_id(0)
    iteration = 0
    step = 0  # key blocks so far
    while work < sizes.work_tiles:
        schedule.barriers.wait(iteration)
        info = schedule.consumer_info(iteration, ME)
        m_i = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, qk_layout))  # running maximum, base 2
        l_i = gl.zeros([64, 4], gl.float32, l_layout)  # the row sum in units of V's, four times the same
        l_parts = gl.zeros([64, 4], gl.float32, l_layout)  # four parts of the row sum, for the LSE
        acc = gl.zeros([64, D], gl.float32, o_layout)
        barriers.q.wait(iteration)
        query = buffers.q.index((iteration & 1) * schedule.consumers + ME)
        barriers.ping_pong.acquire(ME, step + iteration)
        if info.rows > 0:
            for _ in range(info.num_blocks):
                slot = barriers.k.slot(step)
                barriers.k.wait(step)
                record = load_record(buffers.block_info.index(slot))
                qk = gl.zeros([64, BLOCK], qk_type, qk_layout)
                qk = warpgroup_mma(query, buffers.k.index(slot).permute((1, 0)), qk, use_acc=False, is_async=True)
                barriers.ping_pong.release(ME)
                qk = warpgroup_mma_wait(0, deps=(qk,))
                scale = info.scale * as_float(word(record, 0))
                if qk_type == gl.int32:  # all scores are more by INT_OFFSET, which goes with the maximum below
                    qk = offset_float(qk)
                if LENGTH == 0:
                    length = word(record, 1)
                    if length < BLOCK:
                        qk = masked(qk, length)
                elif LENGTH < BLOCK:
                    qk = masked(qk, LENGTH)
                qk_max = row_max(qk, m_i)
                if qk_type == gl.int32:
                    qk_max -= INT_OFFSET
                m_new = gl.maximum(m_i, ceil(qk_max * scale))
                m_base = gl.where(m_new == float("-inf"), 0.0, m_new)
                alpha = exp2(m_i - m_base)
                m_i = m_new
                p_base = m_base - _SHIFT
                if qk_type == gl.int32:
                    p_base += INT_OFFSET * scale
                p = qk * scale - gl.expand_dims(p_base, 1)
                p = exp2_mixed(p, POLY) if POLY else exp2(p)
                p = p_operand(p, gl.DotOperandLayout(0, o_layout, 4), LENGTH)
                barriers.v_full.wait(step)
                barriers.ping_pong.acquire(ME, step + iteration + 1)
                block_sum = gl.zeros([64, 8], gl.float32, sum_layout)
                p_sum = gl.convert_layout(p, gl.DotOperandLayout(0, sum_layout, 4))
                block_sum = warpgroup_mma(p_sum, buffers.ones.permute((1, 0)), block_sum, use_acc=False, is_async=True)
                alpha_o = gl.expand_dims(gl.convert_layout(alpha, o_rows), 1)
                pv = gl.zeros([64, D], gl.float32, o_layout) if PROMOTE else acc * alpha_o
                pv = warpgroup_mma(p, buffers.v.index(slot).permute((1, 0)), pv, use_acc=not PROMOTE, is_async=True)
                pv, block_sum = warpgroup_mma_wait(0, deps=(pv, block_sum))
                acc = acc * alpha_o + pv if PROMOTE else pv
                block_l, block_parts = gl.split(gl.reshape(block_sum, [64, 4, 2]))
                alpha_l = gl.expand_dims(gl.convert_layout(alpha, gl.SliceLayout(1, l_layout)), 1)
                l_i = l_i * alpha_l + block_l
                l_parts = l_parts * alpha_l + block_parts
                barriers.k.release(step)
                step += 1
        else:  # without a row of its own, but other warps count on its arrivals
            for _ in range(info.num_blocks):
                barriers.ping_pong.release(ME)
                barriers.k.wait(step)
                barriers.v_full.wait(step)
                barriers.ping_pong.acquire(ME, step + iteration + 1)
                barriers.k.release(step)
                step += 1
        barriers.ping_pong.release(ME)
        barriers.q.release(iteration)

        l_o = gl.convert_layout(gl.max(l_i, 1), o_rows)
        inverse = 448.0 / gl.where(l_o == 0.0, 1.0, l_o)
        v_scale = schedule.v_scale.index(iteration & 1).load(gl.SliceLayout(0, o_layout))
        o = acc * gl.expand_dims(inverse, 1) * gl.expand_dims(v_scale, 0)
        if CENTER_V:
            v_mean = schedule.v_mean.index(iteration & 1).load(gl.SliceLayout(0, o_layout))
            o += gl.where(gl.expand_dims(l_o, 1) == 0.0, 0.0, gl.expand_dims(v_mean, 0))
        m_o = gl.convert_layout(m_i, o_rows)
        lse_base2 = gl.where(m_o == float("-inf"), 0.0, m_o) - _SHIFT
        lse_base2 += gl.log2(gl.convert_layout(gl.sum(l_parts, 1), o_rows))
        info = schedule.consumer_info(iteration, ME)  # again, so that nothing of it stays in registers in the loop
        bh = work // sizes.per_head
        store_rows(out, lse, o, lse_base2, bh, sizes.heads, sizes.tokens, info.token, info.rows)
        schedule.barriers.release(iteration)
        iteration += 1
        work += gl.num_programs(0)


@gluon.jit(do_not_specialize=OF_PROFILE)
def attend_fp8_sm90(
    q,  # descriptor [B*H*P, D], blocks of 64
    k,  # descriptor [B*H*P, D], blocks of BLOCK
    v,  # descriptor [B*H*D, P], blocks of D x BLOCK, keys permuted
    out,
    lse,
    q_scale,
    k_scale,
    v_scale,
    v_mean,
    work,
    block_start,
    block_len,
    list_index,
    list_count,
    work_tiles,
    per_head,
    heads,
    tokens,
    num_blocks,
    query_tiles,
    list_groups,
    list_length,
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
    CENTER_V: gl.constexpr,
):
    q_s = gl.allocate_shared_memory(q.dtype, [2 * CONSUMERS, 64, D], q.layout)
    k_s = gl.allocate_shared_memory(k.dtype, [STAGES, BLOCK, D], k.layout)
    v_s = gl.allocate_shared_memory(v.dtype, [STAGES, D, BLOCK], v.layout)
    # as bits: ptxas 12.8 miscompiles the cast of a constant, half of each word stays undefined
    spread: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    column = gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(1, spread)), 1)
    key = gl.expand_dims(gl.arange(0, BLOCK, gl.SliceLayout(0, spread)), 0)
    ones = gl.where(column % 2 == 0, _E4M3_MAX, gl.where(key // 32 == column // 2, _E4M3_ONE, 0))
    ones = ones.to(gl.int8).to(gl.float8e4nv, bitcast=True)
    ones_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([8, BLOCK], gl.float8e4nv)
    ones_s = gl.allocate_shared_memory(gl.float8e4nv, [8, BLOCK], ones_layout, ones)
    buffers = Buffers(q_s, k_s, v_s, records(gl.int32, STAGES, 2), ones_s)
    schedule = make_schedule(CONSUMERS, CONSUMERS + 1, D, CENTER_V)
    barriers = Barriers(
        barrier_pair(2, CONSUMERS),
        barrier_pair(STAGES, CONSUMERS),
        barrier_ring(STAGES, 1),
        PingPong(barrier_ring(CONSUMERS, 1).barriers, CONSUMERS, PINGPONG),
    )
    fence_async_shared()
    sizes = Sizes(work_tiles, per_head, heads, tokens, num_blocks, query_tiles, list_groups, list_length)
    tables = Tables(work, block_start, block_len, list_index, list_count)
    consumer = (out, lse, buffers, barriers, schedule, sizes)
    producer = (q, k, v, k_scale, buffers, barriers, schedule, sizes, tables)
    scheduler = (schedule, sizes, tables, softmax_scale, (q_scale, k_scale, v_scale, v_mean))
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (consumer, 0, BLOCK, D, LENGTH, POLY, PROMOTE, CENTER_V)),
                (_consume, (consumer, 1, BLOCK, D, LENGTH, POLY, PROMOTE, CENTER_V)),
                (_produce, (producer, CONSUMERS, BLOCK, D)),
                (schedule_tiles, (scheduler, BLOCK, D, True, CENTER_V)),
            ],
            [4, 1, 1],
            [REGISTERS, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (consumer, 0, BLOCK, D, LENGTH, POLY, PROMOTE, CENTER_V)),
                (_consume, (consumer, 1, BLOCK, D, LENGTH, POLY, PROMOTE, CENTER_V)),
                (_consume, (consumer, 2, BLOCK, D, LENGTH, POLY, PROMOTE, CENTER_V)),
                (_produce, (producer, CONSUMERS, BLOCK, D)),
                (schedule_tiles, (scheduler, BLOCK, D, True, CENTER_V)),
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
    center_v: bool,
) -> None:
    """Fill out [B, L, H, 128] (contiguous) and lse fp32 [B, H, L] from quantized inputs with permuted keys in V.

    scale: softmax scale times log2(e). center_v: V was quantized without its mean. The current device must be that of
    the tensors, and sm_90.
    """
    batch, _, heads, dim = out.shape
    block, rows = tables.layout.block, tables.layout.num_blocks * tables.layout.block
    qk_shape, fp8 = (batch * heads * rows, dim), gl.float8e4nv
    qk_type = gl.int8 if quantized.q.dtype == torch.int8 else fp8
    descriptors = (
        describe(quantized.q, qk_shape, (dim, 1), (64, dim), qk_type),
        describe(quantized.k, qk_shape, (dim, 1), (block, dim), qk_type),
        describe(quantized.v, (batch * heads * dim, rows), (rows, 1), (dim, block), fp8),
    )
    programs, arguments, constants = launch_arguments(tables, lists, out, config)
    attend_fp8_sm90[(programs,)](
        *(*descriptors, out, lse, quantized.q_scale, quantized.k_scale, quantized.v_scale),
        *(quantized.v_mean if center_v else quantized.v_scale, *arguments, scale),
        **constants,
        PINGPONG=config.pingpong,
        PROMOTE=config.promote,
        CENTER_V=center_v,
        num_warps=4,
    )
