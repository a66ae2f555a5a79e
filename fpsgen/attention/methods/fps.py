"""FPSAttention: FP8 and a sliding window of tiles, scheduled over the denoising steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpsgen.attention.methods.base import Method, Precision, Selection

if TYPE_CHECKING:
    from fpsgen.attention.profile import Profile


class _Scheduled(Method):
    def adapt(self, profile: Profile) -> Profile:
        """The schedule is this method's own: profiles stay as they are."""
        return profile


METHOD = _Scheduled(
    name="fps",
    summary="FP8 and a sliding window of tiles, as the schedule says",
    citation="FPSAttention, arXiv 2506.04648",
    colour="#16a34a",
    selection=Selection(windowed=True),
    qk=Precision.E4M3,
    pv=Precision.E4M3,
    # queries and keys in INT8 err less on untrained weights, see docs/numerics.md
    options={"qk": "e4m3"},
    allowed={"qk": ("e4m3", "int8")},
)
