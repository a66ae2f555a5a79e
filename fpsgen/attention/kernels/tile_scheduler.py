"""How the warps of a Hopper program hand work to each other, in Gluon: rings of barriers, and a warp that looks one job
ahead, so that all that is known of a job lies in shared memory when it begins.

A job is one group of 64 query rows for each consumer, of one (batch, head). Its records of 32-bit words:
- walk [2, 8], for the producer: key blocks in the list, first padded query row, start of the list, the list's first
  and second block, of the first block also its K scale (FP8) or first token (16 bit) and its length.
- rows [2 * CONSUMERS, 4], for each consumer: key blocks in the list, own rows with a token (0: nothing to do), first
  token, score scale (softmax scale, base 2, times the Q scale).

Legend: BLOCK rows of a kernel block, STAGES key blocks in flight.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fpsgen.attention.kernels.launch_config import Sm90Config
from fpsgen.attention.kernels.softmax import bits, put
from fpsgen.attention.plan import BlockLists, DeviceTables


@gluon.jit
def ring(SIZE: gl.constexpr, COUNT: gl.constexpr):
    """SIZE barriers, each open after COUNT arrivals."""
    bars = gl.allocate_shared_memory(gl.int64, [SIZE, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SIZE):
        mbarrier.init(bars.index(i), count=COUNT)
    return bars


@gluon.jit
def records(TYPE: gl.constexpr, COUNT: gl.constexpr, WORDS: gl.constexpr):
    return gl.allocate_shared_memory(TYPE, [COUNT, WORDS], gl.SwizzledSharedLayout(1, 1, 1, order=[0]))


@gluon.jit
def job_rings(CONSUMERS: gl.constexpr, READERS: gl.constexpr, D: gl.constexpr):
    """walk, rows, V scales, and the barriers of jobs; READERS: warps and warpgroups that read them."""
    walk_s = records(gl.int32, 2, 8)
    rows_s = records(gl.int32, 2 * CONSUMERS, 4)
    v_scale_s = records(gl.float32, 2, D)
    return walk_s, rows_s, v_scale_s, ring(2, 1), ring(2, READERS)


@gluon.jit
def look_ahead(args, CONSUMERS: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr, FP8: gl.constexpr):
    """Chains of loads that would stop the tensor cores at each job's start, one job early."""
    rings, shape, tables, softmax_scale, scales = args
    walk_s, rows_s, v_scale_s, job_full, job_free = rings
    jobs, groups, num_blocks, num_tiles, num_lists, longest = shape
    work, block_start, block_len, list_index, list_count = tables
    channels = gl.arange(0, D, gl.BlockedLayout([D // 32], [32], [1], [0]))
    eight: gl.constexpr = gl.BlockedLayout([8], [32], [1], [0])
    four: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    job = gl.program_id(0)
    turn = 0
    while job < jobs:
        bh = job // groups
        entry = work + (job % groups) * 4
        row = gl.load(entry)
        end = gl.load(entry + 1)
        line = (bh % num_lists) * num_tiles + gl.load(entry + 2)
        count = gl.load(list_count + line)
        keys = line * longest
        first = gl.maximum(gl.load(list_index + keys), 0)  # an empty list holds -1
        second = gl.maximum(gl.load(list_index + keys + gl.minimum(longest - 1, 1)), 0)
        walk = gl.full([8], 0, gl.int32, eight)
        walk = put(put(put(walk, 0, count), 1, row), 2, keys)
        walk = put(put(put(walk, 3, first), 4, second), 6, gl.load(block_len + first))
        if FP8:
            q_scale, k_scale, v_scale = scales
            scales_v = gl.load(v_scale + bh * D + channels)
            walk = put(walk, 5, bits(gl.load(k_scale + bh * num_blocks + first)))
        else:
            walk = put(walk, 5, gl.load(block_start + first))
        mbarrier.wait(job_free.index(turn & 1), ((turn >> 1) & 1) ^ 1)
        walk_s.index(turn & 1).store(walk)
        if FP8:
            v_scale_s.index(turn & 1).store(scales_v)
        for i in gl.static_range(CONSUMERS):
            at = row + i * 64
            own = gl.minimum(at // BLOCK, num_blocks - 1)
            left = gl.where(at < end, gl.load(block_len + own) - at % BLOCK, 0)  # rows with a token
            token = gl.load(block_start + own) + at % BLOCK
            scale = softmax_scale
            if FP8:
                scale = gl.load(q_scale + bh * num_blocks + own) * softmax_scale
            rows = gl.full([4], 0, gl.int32, four)
            rows = put(put(rows, 0, count), 1, left)
            rows = put(put(rows, 2, token), 3, bits(scale))
            rows_s.index((turn & 1) * CONSUMERS + i).store(rows)
        mbarrier.arrive(job_full.index(turn & 1), count=1)
        turn += 1
        job += gl.num_programs(0)


def launch_plan(
    tables: DeviceTables, lists: BlockLists, out: torch.Tensor, config: Sm90Config
) -> tuple[int, tuple, dict[str, Any]]:
    """Programs, arguments from `work` to `longest`, and constants of an sm_90 kernel that fills out [B, L, H, D]."""
    batch, tokens, heads, dim = out.shape
    work = tables.work_tiles(config.consumers)
    jobs = work.shape[0] * batch * heads
    arguments = (work, tables.block_start, tables.block_len, *lists)
    arguments += (jobs, work.shape[0], heads, tokens, tables.layout.num_blocks)
    arguments += (lists.list_count.shape[1], lists.list_count.shape[0], lists.list_index.shape[2])
    constants = {"CONSUMERS": config.consumers, "BLOCK": tables.layout.block, "D": dim, "STAGES": config.stages}
    constants |= {"LENGTH": tables.layout.uniform, "POLY": config.poly, "REGISTERS": config.registers}
    programs = min(jobs, torch.cuda.get_device_properties(out.device).multi_processor_count)
    return programs, arguments, constants


def describe(
    x: torch.Tensor, shape: tuple[int, int], strides: tuple[int, int], block: tuple[int, int], dtype: gl.dtype
) -> TensorDescriptor:
    """A TMA descriptor of x's memory taken as `shape` and `strides`, in blocks."""
    layout = gl.NVMMASharedLayout.get_default_for([*block], dtype)
    return TensorDescriptor(x, [*shape], [*strides], [*block], layout)
