"""SageAttention2: dense attention with INT8 queries and keys, E4M3 values and weights.

What differs from the original: queries and keys have one scale per kernel block of 64 or 128 tokens in tile order,
where the original's finest choice gives the tokens of one thread their own ("per_thread"); queries are not smoothed; P
is scaled by a power of two and 448, not by the row's own maximum, which is as fine (see reference.py).
"""

from __future__ import annotations

from fpsgen.attention.methods.base import Method, Precision

METHOD = Method(
    name="sage",
    summary="dense attention with Q and K in INT8 per block, K without its mean, V and P in E4M3",
    citation="SageAttention2, arXiv 2411.10958",
    colour="#9333ea",
    qk=Precision.INT8,
    pv=Precision.E4M3,
    smooth_k=True,
    per_block_scales=True,
    # of sageattn_qk_int8_pv_fp8_cuda, with its default
    options={"smooth_v": False},
)
