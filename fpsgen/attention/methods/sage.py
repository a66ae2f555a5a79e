"""SageAttention2: dense attention with INT8 queries and keys, E4M3 values and weights.

What differs from the original: queries and keys have one scale per kernel block of 64 or 128 tokens in tile order,
where the original's finest choice gives the tokens of one thread their own ("per_thread"); queries are not smoothed; P
is scaled by a power of two and 448, not by the row's own maximum, which is as fine (see reference.py).
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from fpsgen.attention.methods.base import Method, Precision

if TYPE_CHECKING:
    from fpsgen.attention.profile import Profile


class _Sage(Method):
    def adapt(self, profile: Profile) -> Profile:
        """Scales per block, as the original has them: the schedule's granularity is fps' own."""
        return replace(super().adapt(profile), granularity=1)


METHOD = _Sage(
    name="sage",
    summary="dense attention with Q and K in INT8 per block, K without its mean, V and P in E4M3",
    citation="SageAttention2, arXiv 2411.10958",
    colour="#9333ea",
    qk=Precision.INT8,
    pv=Precision.E4M3,
    smooth_k=True,
    # of sageattn_qk_int8_pv_fp8_cuda, with its default
    options=MappingProxyType({"smooth_v": False}),
)
