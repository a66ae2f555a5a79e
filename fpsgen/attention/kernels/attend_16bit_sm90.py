"""16-bit tile-sparse attention forward for Hopper (sm_90a), in Gluon: attend_fp8_sm90.py's plan without quantization.
q, k, v as the projections wrote them (TMA reads through their strides); same lists and results as attend_portable.py.

A key block that is not full ends in tokens of the next tile. Their scores are masked, but P of zero times a value that
is not finite is NaN, so one more warp zeroes those rows of V in shared memory.

Legend: BLOCK 128 rows of a kernel block, D 128, bh is batch * H + head.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fpsgen.attention.kernels.launch_config import OF_PROFILE, Sm90Config
from fpsgen.attention.kernels.sm90_parts import (
    BarrierPair,
    BarrierRing,
    aggregate,
    barrier_pair,
    barrier_ring,
    empty_record,
    load_record,
    load_tile,
    records,
    scalar,
    store_rows,
    with_word,
    word,
)
from fpsgen.attention.kernels.softmax import exp2, exp2_mixed, masked, row_max
from fpsgen.attention.kernels.tile_scheduler import (
    Sizes,
    Tables,
    describe,
    launch_arguments,
    make_schedule,
    schedule_tiles,
)
from fpsgen.attention.plan import BlockLists, DeviceTables

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@aggregate
class Buffers:
    """Shared memory: q [consumers, 64, D], k and v [stages, BLOCK, D], and block_len [stages, 1], the number of keys of
    each block there.
    """

    q: gl.shared_memory_descriptor
    k: gl.shared_memory_descriptor
    v: gl.shared_memory_descriptor
    block_len: gl.shared_memory_descriptor


@aggregate
class Barriers:
    """q: by iteration. k, v_loaded and v_full: by key block. V is loaded, then zeroed behind its last key: v_full. A
    block's K and V are released together, by k.empty.
    """

    q: BarrierPair
    k: BarrierPair
    v_loaded: BarrierRing
    v_full: BarrierRing


@aggregate
class HeadStrides:
    """Elements from head to head."""

    q: scalar
    k: scalar
    v: scalar


@gluon.jit
def _produce(args, CONSUMERS: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr):
    """The producer warp: queries of every work tile and key blocks of every list."""
    q, k, v, strides, buffers, barriers, schedule, sizes, tables = args
    work = gl.program_id(0)
    iteration = 0
    step = 0  # key blocks so far
    while work < sizes.work_tiles:
        bh = work // sizes.per_head
        first_row = (bh // sizes.heads) * sizes.tokens
        head = bh % sizes.heads
        schedule.barriers.wait(iteration)
        info = schedule.producer_info(iteration)
        block_list = tables.list_index + info.list_start
        next_block = info.next_block
        token = info.block_word
        length = info.block_len
        barriers.q.acquire(iteration)
        q_full = barriers.q.full.barrier(iteration)
        mbarrier.expect(q_full, CONSUMERS * 64 * D * 2)
        for i in gl.static_range(CONSUMERS):
            q_token = schedule.consumer_info(iteration, i).token
            load_tile(q, [first_row + q_token, head * strides.q], q_full, buffers.q.index(i))
        schedule.barriers.release(iteration)
        for i in range(info.num_blocks):
            slot = barriers.k.slot(step)
            after_next = gl.load(block_list + gl.minimum(i + 2, info.num_blocks - 1))
            next_token = gl.load(tables.block_start + next_block)
            next_length = gl.load(tables.block_len + next_block)
            barriers.k.acquire(step)
            buffers.block_len.index(slot).store(with_word(empty_record(1), 0, length))
            k_full = barriers.k.full.barrier(step)
            mbarrier.expect(k_full, BLOCK * D * 2)
            load_tile(k, [first_row + token, head * strides.k], k_full, buffers.k.index(slot))
            v_loaded = barriers.v_loaded.barrier(step)
            mbarrier.expect(v_loaded, BLOCK * D * 2)
            load_tile(v, [first_row + token, head * strides.v], v_loaded, buffers.v.index(slot))
            next_block = after_next
            token = next_token
            length = next_length
            step += 1
        iteration += 1
        work += gl.num_programs(0)


@gluon.jit
def _zero_tails(args, BLOCK: gl.constexpr, D: gl.constexpr, LENGTH: gl.constexpr):
    """A warp that zeroes the rows of V behind a block's last key. Nothing to do where all blocks are full."""
    buffers, barriers, schedule, sizes = args
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [1, 1], [1, 0])
    if LENGTH != BLOCK:
        row = gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(1, layout)), 1)
        work = gl.program_id(0)
        iteration = 0
        step = 0
        while work < sizes.work_tiles:
            schedule.barriers.wait(iteration)
            num_blocks = schedule.producer_info(iteration).num_blocks
            schedule.barriers.release(iteration)
            for _ in range(num_blocks):
                slot = barriers.v_full.slot(step)
                barriers.v_loaded.wait(step)
                length = word(load_record(buffers.block_len.index(slot)), 0) if LENGTH == 0 else LENGTH
                for first in gl.static_range(0, BLOCK, 8):
                    if first + 8 > length:
                        eight_rows = buffers.v.index(slot).slice(first, 8, 0)
                        values = eight_rows.load(layout)
                        eight_rows.store(gl.where(row < length - first, values, gl.zeros_like(values)))
                fence_async_shared()
                barriers.v_full.arrive(step)
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
):
    """A consumer: rows [64 * ME, 64 * ME + 64) of every work tile. LENGTH: keys of all blocks, 0 where they differ."""
    out, lse, buffers, barriers, schedule, sizes = args
    warps: gl.constexpr = gl.num_warps()
    qk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BLOCK, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, D, 16])
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    work = gl.program_id(0)
    iteration = 0
    step = 0  # key blocks so far
    while work < sizes.work_tiles:
        schedule.barriers.wait(iteration)
        info = schedule.consumer_info(iteration, ME)
        m_i = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, qk_layout))  # running maximum, base 2
        l_i = gl.zeros([64], gl.float32, gl.SliceLayout(1, qk_layout))
        acc = gl.zeros([64, D], gl.float32, o_layout)
        barriers.q.wait(iteration)
        if info.rows > 0:
            for _ in range(info.num_blocks):
                slot = barriers.k.slot(step)
                barriers.k.wait(step)
                qk = gl.zeros([64, BLOCK], gl.float32, qk_layout)
                key = buffers.k.index(slot).permute((1, 0))
                qk = warpgroup_mma(buffers.q.index(ME), key, qk, use_acc=False, is_async=True)
                record = load_record(buffers.block_len.index(slot))
                qk = warpgroup_mma_wait(0, deps=(qk,))
                if LENGTH == 0:
                    qk = masked(qk, word(record, 0))  # without a branch: ptxas serializes the products beside one
                elif LENGTH < BLOCK:
                    qk = masked(qk, LENGTH)
                m_new = gl.maximum(m_i, row_max(qk, m_i) * info.scale)
                m_base = gl.where(m_new == float("-inf"), 0.0, m_new)
                alpha = exp2(m_i - m_base)
                m_i = m_new
                p = qk * info.scale - gl.expand_dims(m_base, 1)
                p = exp2_mixed(p, POLY) if POLY else exp2(p)
                acc = acc * gl.expand_dims(gl.convert_layout(alpha, o_rows), 1)
                l_i = l_i * alpha + gl.sum(p, 1)
                p = gl.convert_layout(p.to(buffers.q.dtype), gl.DotOperandLayout(0, o_layout, 2))
                barriers.v_full.wait(step)
                acc = warpgroup_mma(p, buffers.v.index(slot), acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=(acc,))
                barriers.k.release(step)
                step += 1
        else:  # without a row of its own, but other warps count on its arrivals
            for _ in range(info.num_blocks):
                barriers.k.wait(step)
                barriers.v_full.wait(step)
                barriers.k.release(step)
                step += 1
        barriers.q.release(iteration)

        l_o = gl.convert_layout(l_i, o_rows)
        o = acc * gl.expand_dims(1.0 / gl.where(l_o == 0.0, 1.0, l_o), 1)
        m_o = gl.convert_layout(m_i, o_rows)
        lse_base2 = gl.where(m_o == float("-inf"), 0.0, m_o) + gl.log2(l_o)
        info = schedule.consumer_info(iteration, ME)  # again, so that nothing of it stays in registers in the loop
        bh = work // sizes.per_head
        store_rows(out, lse, o, lse_base2, bh, sizes.heads, sizes.tokens, info.token, info.rows)
        schedule.barriers.release(iteration)
        iteration += 1
        work += gl.num_programs(0)


@gluon.jit(do_not_specialize=OF_PROFILE)
def attend_16bit_sm90(
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
    work_tiles,
    per_head,
    heads,
    tokens,
    num_blocks,
    query_tiles,
    list_groups,
    list_length,
    stride_qh,  # elements
    stride_kh,
    stride_vh,
    softmax_scale,  # D^-0.5 * log2(e)
    CONSUMERS: gl.constexpr,
    BLOCK: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
    LENGTH: gl.constexpr,
    POLY: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    zeroes: gl.constexpr = LENGTH != BLOCK
    buffers = Buffers(
        gl.allocate_shared_memory(q.dtype, [CONSUMERS, 64, D], q.layout),
        gl.allocate_shared_memory(k.dtype, [STAGES, BLOCK, D], k.layout),
        gl.allocate_shared_memory(v.dtype, [STAGES, BLOCK, D], v.layout),
        records(gl.int32, STAGES, 1),
    )
    schedule = make_schedule(CONSUMERS, CONSUMERS + 1 + zeroes, D, False)
    v_loaded = barrier_ring(STAGES, 1)
    v_full = barrier_ring(STAGES, 1) if zeroes else v_loaded
    barriers = Barriers(barrier_pair(1, CONSUMERS), barrier_pair(STAGES, CONSUMERS), v_loaded, v_full)
    fence_async_shared()
    sizes = Sizes(work_tiles, per_head, heads, tokens, num_blocks, query_tiles, list_groups, list_length)
    tables = Tables(work, block_start, block_len, list_index, list_count)
    consumer = (out, lse, buffers, barriers, schedule, sizes)
    strides = HeadStrides(stride_qh, stride_kh, stride_vh)
    producer = (q, k, v, strides, buffers, barriers, schedule, sizes, tables)
    zeroing = (buffers, barriers, schedule, sizes)
    scheduler = (schedule, sizes, tables, softmax_scale, ())
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (consumer, 0, BLOCK, D, LENGTH, POLY)),
                (_consume, (consumer, 1, BLOCK, D, LENGTH, POLY)),
                (_produce, (producer, CONSUMERS, BLOCK, D)),
                (_zero_tails, (zeroing, BLOCK, D, LENGTH)),
                (schedule_tiles, (scheduler, BLOCK, D, False, False)),
            ],
            [4, 1, 1, 1],
            [REGISTERS, 24, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (consumer, 0, BLOCK, D, LENGTH, POLY)),
                (_consume, (consumer, 1, BLOCK, D, LENGTH, POLY)),
                (_consume, (consumer, 2, BLOCK, D, LENGTH, POLY)),
                (_produce, (producer, CONSUMERS, BLOCK, D)),
                (_zero_tails, (zeroing, BLOCK, D, LENGTH)),
                (schedule_tiles, (scheduler, BLOCK, D, False, False)),
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
    q, k, v = (x if _fits_tma(x) else x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))

    def rows_of(x: torch.Tensor, rows: int) -> TensorDescriptor:
        shape = (batch * tokens, (heads - 1) * x.stride(2) + dim)
        return describe(x, shape, (x.stride(1), 1), (rows, dim), _TYPES[x.dtype])

    descriptors = (rows_of(q, 64), rows_of(k, tables.layout.block), rows_of(v, tables.layout.block))
    programs, arguments, constants = launch_arguments(tables, lists, out, config)
    attend_16bit_sm90[(programs,)](
        *(*descriptors, out, lse, *arguments, q.stride(2), k.stride(2), v.stride(2), scale),
        **constants,
        num_warps=4,
    )


def _fits_tma(x: torch.Tensor) -> bool:
    """Whether x [B, L, H, D] is a matrix of one row per token, batches behind each other, aligned as TMA needs it."""
    batch, tokens, heads, dim = x.shape
    one_matrix = batch == 1 or x.stride(0) == tokens * x.stride(1)
    row_holds_heads = x.stride(2) >= 0 and (heads - 1) * x.stride(2) + dim <= x.stride(1)
    return one_matrix and row_holds_heads and x.stride(1) % 8 == 0 and x.data_ptr() % 16 == 0
