"""Register-level parts of forward_hopper.py, in Gluon: exponentials, P as an operand, the mask of a block's tail, and
records of a few 32-bit words that one warp leaves for others in shared memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

_MAGIC = gl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
CUBIC = (0.9999281, 0.693261, 0.2426111, 0.0551717)  # of 2^x in [-1/2, 1/2], least relative error: 7.5e-5
_C0, _C1, _C2, _C3 = (gl.constexpr(x) for x in CUBIC)


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
    at_all: gl.constexpr = x.type.layout
    at_left: gl.constexpr = left.type.layout
    at_quarter: gl.constexpr = quarter.type.layout
    if POLY == 4:
        quarter = exp2_fma(quarter)
    else:
        first, second = halves(quarter)
        quarter = beside(exp2_fma(first), exp2(second), at_quarter)
    left = beside(quarter, exp2(rest), at_left)
    return beside(left, exp2(right), at_all)


@gluon.jit
def as_operand(weight, layout: gl.constexpr):
    """P in E4M3 as left operand. Its columns are taken in the order that V's keys have: a matter of names only."""
    rows: gl.constexpr = weight.shape[0]
    columns: gl.constexpr = weight.shape[1]
    x = gl.permute(gl.reshape(weight, [rows, columns // 16, 2, 4, 2]), [0, 1, 3, 2, 4])
    return gl.convert_layout(gl.reshape(x, [rows, columns]).to(gl.float8e4nv), layout)


@gluon.jit
def masked(score, length):
    """Minus infinity in columns from length on. A thread holds columns 8a + 2b + c for one b of its own: compared as
    8a + c, constants, with length - 2b, so that no column number takes a register through the loop.
    """
    column = gl.expand_dims(gl.arange(0, score.shape[1], gl.SliceLayout(0, score.type.layout)), 0)
    return gl.where(column // 8 * 8 + column % 2 < length - column % 8 // 2 * 2, score, float("-inf"))


@gluon.jit
def pick(words, which: gl.constexpr):
    """One word of a record [N] that every thread holds whole."""
    index = gl.arange(0, words.shape[0], words.type.layout)
    return gl.sum(gl.where(index == which, words, 0), 0)


@gluon.jit
def put(words, which: gl.constexpr, value):
    return gl.where(gl.arange(0, words.shape[0], words.type.layout) == which, value, words)


@gluon.jit
def bits(x):
    return x.to(gl.int32, bitcast=True)


@gluon.jit
def number(x):
    return x.to(gl.float32, bitcast=True)
