"""Softmax in registers for the sm_90 kernels, in Gluon: row maxima, exponentials, P as an operand, the mask of a
block's tail. Under a GPU's power limit the number of instructions decides, hence PTX where the compiler takes more of
them.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

_MAGIC = gl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
CUBIC = (0.9999281, 0.693261, 0.2426111, 0.0551717)  # of 2^x in [-1/2, 1/2], least relative error: 7.5e-5
_C0, _C1, _C2, _C3 = (gl.constexpr(x) for x in CUBIC)
_OWN = 32  # columns of a row of 128 that one thread holds


def _largest(count: int) -> str:
    """PTX: $0 and $1 become the largest fp32 of two rows of `count`, $2, $4 ... and $3, $5 ...; NaN may be ignored. The
    last two operands are thresholds: a result that does not exceed its threshold may be anything.

    Values are compared as integers, since Hopper compares three integers in one instruction (ptxas joins two max.s32).
    Integers order negative floats the wrong way round. So the largest float of a row of negative ones is its least
    integer, which a second search finds. A warp skips it unless it has such a row with a negative threshold.
    """

    def search(what: str) -> str:  # two chains to a row hide latency
        steps = "".join(f"mov.b32 m{i}, ${2 + i}; " for i in (0, 2, 1, 3))
        for first in range(6, 2 + 2 * count, 4):
            steps += "".join(f"{what}.s32 m{i}, m{i}, ${first + i}; " for i in (0, 2, 1, 3))
        return steps + f"{what}.s32 m0, m0, m2; {what}.s32 m1, m1, m3; "

    first, last = search("max") + "mov.b32 $0, m0; mov.b32 $1, m1; ", search("min")
    below = "".join(f"and.b32 m{i}, m{i}, ${2 + 2 * count + i}; " for i in range(2)) + "or.b32 m0, m0, m1; "  # of signs
    skip = "setp.lt.s32 p, m0, 0; vote.sync.any.pred p, p, 0xffffffff; " + "@!p bra.uni done; "
    keep = "".join(f"setp.lt.s32 p, ${i}, 0; " + f"selp.b32 ${i}, m{i}, ${i}, p; " for i in range(2))
    return f"{{ .reg .b32 m<4>; .reg .pred p; {first}{below}{skip}{last}{keep}done: }}"


_LARGEST = gl.constexpr(_largest(_OWN))
_LARGEST_REGISTERS = gl.constexpr("=&r,=&r" + ",r" * 2 * (_OWN + 1))
# mov.b32 joins both conversions without a further instruction. Used only where test_compile.py checks the machine code:
# ptxas 12.8 (Triton 3.6, 3.7) loses half of a word whose columns are all masked; ptxas 13.4 (Triton 3.9) spills.
_MERGES = gl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8))
_E4M3 = gl.constexpr(
    "{ .reg .b16 low, high; "
    + "cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; "
    + "cvt.rn.satfinite.e4m3x2.f32 high, $4, $3; "
    + "mov.b32 $0, {low, high}; }"
)


INT_OFFSET = _MAGIC


@gluon.jit
def offset_float(x):
    """int32 below 2^22 as fp32, more by INT_OFFSET, exactly: one fast instruction in place of a slow conversion."""
    return (x + 0x4B400000).to(gl.float32, bitcast=True)  # the bits of INT_OFFSET, whose last counts ones


@gluon.jit
def ceil(x):
    return gl.inline_asm_elementwise("cvt.rpi.f32.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def exp2_fma(x):
    """2^x without the special function unit: nearest integer into the exponent, a cubic for the rest."""
    shifted = gl.maximum(x, -120.0) + _MAGIC
    rest = x - (shifted - _MAGIC)
    rest = gl.where(x < -120.0, 0.0, rest)
    whole = (shifted.to(gl.int32, bitcast=True) << 23) + 0x3F800000
    return (((_C3 * rest + _C2) * rest + _C1) * rest + _C0) * whole.to(gl.float32, bitcast=True)


@gluon.jit
def halves(x):
    """Left and right half of the columns; registers only."""
    rows: gl.constexpr = x.shape[0]
    columns: gl.constexpr = x.shape[1] // 2
    return gl.split(gl.permute(gl.reshape(x, [rows, 2, columns]), [0, 2, 1]))


@gluon.jit
def beside(left, right, layout: gl.constexpr):
    rows: gl.constexpr = left.shape[0]
    columns: gl.constexpr = left.shape[1] * 2
    both = gl.join(left, gl.convert_layout(right, left.type.layout))
    return gl.convert_layout(gl.reshape(gl.permute(both, [0, 2, 1]), [rows, columns]), layout)


@gluon.jit
def exp2_mixed(x, POLY: gl.constexpr):
    """2^x, the first POLY-th of the columns on the FMA units (POLY 4 or 8)."""
    left, right = halves(x)
    quarter, rest = halves(left)
    all_layout: gl.constexpr = x.type.layout
    left_layout: gl.constexpr = left.type.layout
    quarter_layout: gl.constexpr = quarter.type.layout
    if POLY == 4:
        quarter = exp2_fma(quarter)
    else:
        first, second = halves(quarter)
        quarter = beside(exp2_fma(first), exp2(second), quarter_layout)
    left = beside(quarter, exp2(rest), left_layout)
    return beside(left, exp2(right), all_layout)


@gluon.jit
def _own_columns(x):
    """x [rows, columns] as tensors of one column of each thread."""
    rows: gl.constexpr = x.shape[0]
    if x.shape[1] == 8:
        parts = gl.split(gl.reshape(x, [rows, 4, 2]))
    else:
        left, right = halves(x)
        parts = _own_columns(left) + _own_columns(right)
    return parts


@gluon.jit
def row_max(qk, m_i):
    """Largest of every row of qk [64, 128] where it exceeds m_i [64], else anything up to m_i. NaN may be ignored."""
    own = _own_columns(qk)
    rows: gl.constexpr = gl.SliceLayout(1, own[0].type.layout)
    threshold = gl.expand_dims(gl.convert_layout(m_i, rows), 1) + gl.zeros_like(own[0])
    operands = own + (threshold,)  # noqa: RUF005 - Gluon unpacks no tuples
    largest = gl.inline_asm_elementwise(
        _LARGEST, _LARGEST_REGISTERS, operands, dtype=gl.float32, is_pure=True, pack=2
    )  # [64, 4]
    return gl.convert_layout(gl.max(largest, 1), gl.SliceLayout(1, qk.type.layout))


@gluon.jit
def p_operand(p, layout: gl.constexpr, LENGTH: gl.constexpr):
    """P in E4M3 as the left operand of P.V. Its columns are renamed to the order that V's keys have; nothing moves.

    LENGTH: keys of the block, 0 where blocks differ. Of 16 or more masked columns a word may hold nothing else.
    """
    rows: gl.constexpr = p.shape[0]
    columns: gl.constexpr = p.shape[1]
    x = gl.permute(gl.reshape(p, [rows, columns // 16, 2, 4, 2]), [0, 1, 3, 2, 4])
    x = gl.reshape(x, [rows, columns])
    if _MERGES and (LENGTH == 0 or columns - 16 < LENGTH):
        x = gl.convert_layout(x, layout)
        x = gl.inline_asm_elementwise(_E4M3, "=r,r,r,r,r", [x], dtype=gl.int8, is_pure=True, pack=4)
        p = x.to(gl.float8e4nv, bitcast=True)
    else:
        p = gl.convert_layout(x.to(gl.float8e4nv), layout)  # words of two rows each, shuffled
    return p


@gluon.jit
def masked(qk, length):
    """Minus infinity in columns from length on.

    A thread holds columns 8a + 2b + c for one b. It compares the constants 8a + c with length - 2b, so that no column
    number takes a register through the loop.
    """
    column = gl.expand_dims(gl.arange(0, qk.shape[1], gl.SliceLayout(0, qk.type.layout)), 0)
    return gl.where(column // 8 * 8 + column % 2 < length - column % 8 // 2 * 2, qk, float("-inf"))
