"""Parts that the sm_90 kernels share, in Gluon: barriers between warps, records in shared memory, what a consumer
stores.

A program is persistent: it computes one work tile after another, here counted by `iteration`. Its warps are one
producer (loads queries and key blocks by TMA), the scheduler (tile_scheduler.py) and two or three consumer warpgroups.
"""

# Annotations must be types, not strings: Gluon checks the fields of aggregates by them.

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.language.core import _aggregate

load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # its name until Triton 3.8
scalar = gl.tensor | gl.constexpr  # an integer argument that is 1 arrives as a constant
_LN_2 = gl.constexpr(math.log(2.0))


def aggregate(cls: type) -> type:
    """A Gluon aggregate whose constructor takes the fields in their order."""
    fields = tuple(cls.__annotations__.items())

    def init(self, *values):
        for i, value in enumerate(values):  # as plain as Triton's search for what a function uses wants it
            name, kind = fields[i]
            setattr(self, name, value if isinstance(value, kind) else gl.constexpr(value))

    cls.__init__ = gluon.constexpr_function(init)
    return _aggregate(cls)


@aggregate
class BarrierRing:
    """A barrier for each slot of a ring. Item i of what passes through the ring lies in slot i % size, and is phase
    i // size of the slot's barrier.
    """

    barriers: gl.shared_memory_descriptor
    size: gl.constexpr

    @gluon.jit
    def slot(self, item):
        return item & 1 if self.size == 2 else item % self.size

    @gluon.jit
    def phase(self, item):
        return (item >> 1) & 1 if self.size == 2 else (item // self.size) & 1

    @gluon.jit
    def barrier(self, item):
        return self.barriers.index(self.slot(item))

    @gluon.jit
    def wait(self, item):
        """Until the item's phase is complete."""
        mbarrier.wait(self.barrier(item), self.phase(item))

    @gluon.jit
    def wait_before(self, item):
        """Until the phase before the item's is complete, which the first item of a slot finds so."""
        mbarrier.wait(self.barrier(item), self.phase(item) ^ 1)

    @gluon.jit
    def arrive(self, item):
        mbarrier.arrive(self.barrier(item), count=1)


@gluon.jit
def barrier_ring(SIZE: gl.constexpr, ARRIVALS: gl.constexpr):
    """Barriers whose phases are complete after ARRIVALS arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [SIZE, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SIZE):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return BarrierRing(barriers, SIZE)


@aggregate
class BarrierPair:
    """A ring's two barriers per slot: `full` when a producer has filled it, `empty` when all consumers have read it."""

    full: BarrierRing
    empty: BarrierRing

    @gluon.jit
    def slot(self, item):
        return self.full.slot(item)

    @gluon.jit
    def acquire(self, item):
        """Producer: until the item's slot may be filled."""
        self.empty.wait_before(item)

    @gluon.jit
    def commit(self, item):
        """Producer: the item's slot is filled."""
        self.full.arrive(item)

    @gluon.jit
    def wait(self, item):
        """Consumer: until the item's slot is filled."""
        self.full.wait(item)

    @gluon.jit
    def release(self, item):
        """Consumer: the item's slot is read."""
        self.empty.arrive(item)


@gluon.jit
def barrier_pair(SIZE: gl.constexpr, CONSUMERS: gl.constexpr):
    return BarrierPair(barrier_ring(SIZE, 1), barrier_ring(SIZE, CONSUMERS))


@aggregate
class PingPong:
    """Lets one consumer at a time issue products to the tensor core, while the others compute exponentials.

    Consumers hold it one after the other, from P.V of one key block to Q.K of the next.
    """

    barriers: gl.shared_memory_descriptor
    consumers: gl.constexpr
    enabled: gl.constexpr

    @gluon.jit
    def acquire(self, ME: gl.constexpr, times):
        """Until the consumer before this one has released it. times: how often this one has acquired it."""
        if self.enabled:
            mbarrier.wait(self.barriers.index(ME), (times & 1) ^ (ME == 0))  # the first begins

    @gluon.jit
    def release(self, ME: gl.constexpr):
        if self.enabled:
            mbarrier.arrive(self.barriers.index((ME + 1) % self.consumers), count=1)


@gluon.jit
def records(TYPE: gl.constexpr, COUNT: gl.constexpr, WORDS: gl.constexpr):
    """Shared memory for COUNT records of some 32-bit words."""
    return gl.allocate_shared_memory(TYPE, [COUNT, WORDS], gl.SwizzledSharedLayout(1, 1, 1, order=[0]))


@gluon.jit
def empty_record(WORDS: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([WORDS], [32], [gl.num_warps()], [0])
    return gl.full([WORDS], 0, gl.int32, layout)


@gluon.jit
def load_record(memory):
    """A record [N] that every thread holds whole."""
    layout: gl.constexpr = gl.BlockedLayout([memory.shape[0]], [32], [gl.num_warps()], [0])
    return memory.load(layout)


@gluon.jit
def word(record, INDEX: gl.constexpr):
    index = gl.arange(0, record.shape[0], record.type.layout)
    return gl.sum(gl.where(index == INDEX, record, 0), 0)


@gluon.jit
def with_word(record, INDEX: gl.constexpr, value):
    return gl.where(gl.arange(0, record.shape[0], record.type.layout) == INDEX, value, record)


@gluon.jit
def as_int(x):
    return x.to(gl.int32, bitcast=True)


@gluon.jit
def as_float(x):
    return x.to(gl.float32, bitcast=True)


@gluon.jit
def store_rows(out, lse, o, lse_base2, bh, heads, tokens, token, rows):
    """Store o [64, D] and lse_base2 [64] of head bh % heads in batch bh // heads, the first `rows` rows from `token`
    on.
    """
    D: gl.constexpr = o.shape[1]
    WIDTH: gl.constexpr = 16 if out.dtype.element_ty.primitive_bitwidth == 8 else 8
    layout: gl.constexpr = gl.BlockedLayout(  # whole lines
        [1, WIDTH], [32 * WIDTH // D, D // WIDTH], [gl.num_warps(), 1], [1, 0]
    )
    o = gl.convert_layout(o.to(out.dtype.element_ty), layout)
    first = ((bh // heads).to(gl.int64) * tokens + token) * heads + bh % heads
    row = gl.expand_dims(gl.arange(0, 64, gl.SliceLayout(1, layout)), 1)
    offsets = row * (heads * D) + gl.expand_dims(gl.arange(0, D, gl.SliceLayout(0, layout)), 0)
    gl.store(out + first * D + offsets, o, mask=row < rows)
    row = gl.arange(0, 64, lse_base2.type.layout)
    gl.store(lse + bh.to(gl.int64) * tokens + token + row, lse_base2 * _LN_2, mask=row < rows)
