"""The scheduler warp of the sm_90 kernels, in Gluon: it reads the tables one work tile ahead and leaves in shared
memory what the other warps need to begin a work tile, so that none of them waits for a chain of loads.

A work tile is 64 query rows for each consumer, of one (batch, head). bh is batch * H + head.
"""

from functools import lru_cache
from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fpsgen.attention.kernels.launch_config import Sm90Config
from fpsgen.attention.kernels.sm90_parts import (
    BarrierPair,
    aggregate,
    as_float,
    as_int,
    barrier_pair,
    empty_record,
    load_record,
    records,
    scalar,
    with_word,
    word,
)
from fpsgen.attention.plan import BlockLists, DeviceTables


@aggregate
class Sizes:
    """work_tiles: of the whole call; per_head: of one (batch, head). query_tiles, list_groups, list_length: M, G, K of
    the lists.
    """

    work_tiles: scalar
    per_head: scalar
    heads: scalar
    tokens: scalar
    num_blocks: scalar
    query_tiles: scalar
    list_groups: scalar
    list_length: scalar


@aggregate
class Tables:
    """Pointers to DeviceTables and BlockLists."""

    work: gl.tensor
    block_start: gl.tensor
    block_len: gl.tensor
    list_index: gl.tensor
    list_count: gl.tensor


@aggregate
class ProducerInfo:
    """num_blocks: of the list; row: first query row, in padded rows; list_start: offset of the list; block, next_block:
    its first two key blocks; block_word: of the first block its K scale, as int (FP8), or first token (16 bit);
    block_len: its number of keys.
    """

    num_blocks: gl.tensor
    row: gl.tensor
    list_start: gl.tensor
    block: gl.tensor
    next_block: gl.tensor
    block_word: gl.tensor
    block_len: gl.tensor


@aggregate
class ConsumerInfo:
    """num_blocks: of the list; rows: own query rows that are tokens, 0 or less for none; token: the first; scale: of
    Q.K, base 2, with the Q scale.
    """

    num_blocks: gl.tensor
    rows: gl.tensor
    token: gl.tensor
    scale: gl.tensor


@aggregate
class Schedule:
    """Records of a program's current and next work tile in shared memory, by iteration."""

    barriers: BarrierPair
    producer: gl.shared_memory_descriptor
    consumer: gl.shared_memory_descriptor
    v_scale: gl.shared_memory_descriptor
    v_mean: gl.shared_memory_descriptor
    consumers: gl.constexpr

    @gluon.jit
    def producer_info(self, iteration):
        record = load_record(self.producer.index(iteration & 1))
        return ProducerInfo(
            word(record, 0),
            word(record, 1),
            word(record, 2),
            word(record, 3),
            word(record, 4),
            word(record, 5),
            word(record, 6),
        )

    @gluon.jit
    def consumer_info(self, iteration, ME: gl.constexpr):
        record = load_record(self.consumer.index((iteration & 1) * self.consumers + ME))
        return ConsumerInfo(word(record, 0), word(record, 1), word(record, 2), as_float(word(record, 3)))


@gluon.jit
def make_schedule(CONSUMERS: gl.constexpr, READERS: gl.constexpr, D: gl.constexpr, CENTER_V: gl.constexpr):
    """READERS: warps and warpgroups that read the records and release them."""
    producer = records(gl.int32, 2, 8)
    consumer = records(gl.int32, 2 * CONSUMERS, 4)
    v_scale = records(gl.float32, 2, D)
    v_mean = records(gl.float32, 2, D) if CENTER_V else v_scale
    return Schedule(barrier_pair(2, READERS), producer, consumer, v_scale, v_mean, CONSUMERS)


@gluon.jit
def schedule_tiles(args, BLOCK: gl.constexpr, D: gl.constexpr, FP8: gl.constexpr, CENTER_V: gl.constexpr):
    """The scheduler warp. args: schedule, sizes, tables, softmax scale; with FP8 Q, K and V scales and V's mean."""
    schedule, sizes, tables, softmax_scale, scales = args
    channels = gl.arange(0, D, gl.BlockedLayout([D // 32], [32], [1], [0]))
    work = gl.program_id(0)
    iteration = 0
    while work < sizes.work_tiles:
        bh = work // sizes.per_head
        entry = tables.work + (work % sizes.per_head) * 4
        row = gl.load(entry)
        end = gl.load(entry + 1)
        list_number = (bh % sizes.list_groups) * sizes.query_tiles + gl.load(entry + 2)
        num_blocks = gl.load(tables.list_count + list_number)
        start = list_number * sizes.list_length
        first = gl.maximum(gl.load(tables.list_index + start), 0)  # an empty list holds -1
        second = gl.maximum(gl.load(tables.list_index + start + gl.minimum(sizes.list_length - 1, 1)), 0)
        record = with_word(with_word(with_word(empty_record(8), 0, num_blocks), 1, row), 2, start)
        record = with_word(with_word(record, 3, first), 4, second)
        record = with_word(record, 6, gl.load(tables.block_len + first))
        if FP8:
            q_scale, k_scale, v_scale, v_mean = scales
            own_v_scale = gl.load(v_scale + bh * D + channels)
            if CENTER_V:
                own_v_mean = gl.load(v_mean + bh * D + channels)
            record = with_word(record, 5, as_int(gl.load(k_scale + bh * sizes.num_blocks + first)))
        else:
            record = with_word(record, 5, gl.load(tables.block_start + first))
        schedule.barriers.acquire(iteration)
        schedule.producer.index(iteration & 1).store(record)
        if FP8:
            schedule.v_scale.index(iteration & 1).store(own_v_scale)
            if CENTER_V:
                schedule.v_mean.index(iteration & 1).store(own_v_mean)
        for i in gl.static_range(schedule.consumers):
            own_row = row + i * 64
            block = gl.minimum(own_row // BLOCK, sizes.num_blocks - 1)
            rows = gl.where(own_row < end, gl.load(tables.block_len + block) - own_row % BLOCK, 0)
            token = gl.load(tables.block_start + block) + own_row % BLOCK
            scale = softmax_scale
            if FP8:
                scale = gl.load(q_scale + bh * sizes.num_blocks + block) * softmax_scale
            record = with_word(with_word(empty_record(4), 0, num_blocks), 1, rows)
            record = with_word(with_word(record, 2, token), 3, as_int(scale))
            schedule.consumer.index((iteration & 1) * schedule.consumers + i).store(record)
        schedule.barriers.commit(iteration)
        iteration += 1
        work += gl.num_programs(0)


def launch_arguments(
    tables: DeviceTables, lists: BlockLists, out: torch.Tensor, config: Sm90Config
) -> tuple[int, tuple, dict[str, Any]]:
    """Number of programs, arguments from `work` to `list_length`, and constants of an sm_90 kernel that fills out
    [B, L, H, D].
    """
    batch, tokens, heads, dim = out.shape
    work = tables.work_tiles(config.consumers)
    work_tiles = work.shape[0] * batch * heads
    arguments = (work, tables.block_start, tables.block_len, *lists)
    arguments += (work_tiles, work.shape[0], heads, tokens, tables.layout.num_blocks)
    arguments += (lists.list_count.shape[1], lists.list_count.shape[0], lists.list_index.shape[2])
    constants = {"CONSUMERS": config.consumers, "BLOCK": tables.layout.block, "D": dim, "STAGES": config.stages}
    constants |= {"LENGTH": tables.layout.uniform, "POLY": config.poly, "REGISTERS": config.registers}
    programs = min(work_tiles, _processors(out.device))
    return programs, arguments, constants


def describe(
    x: torch.Tensor, shape: tuple[int, int], strides: tuple[int, int], block: tuple[int, int], dtype: gl.dtype
) -> TensorDescriptor:
    """A TMA descriptor of x's memory taken as `shape` and `strides`, in blocks."""
    return TensorDescriptor(x, [*shape], [*strides], [*block], _shared_layout(block, dtype))


@lru_cache
def _shared_layout(block: tuple[int, int], dtype: gl.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([*block], dtype)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
