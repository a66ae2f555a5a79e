"""Sliding tile attention in 16 bits: the sparse half of FPSAttention alone.

Option `head_windows` gives each head a window of its own, as the original does: "3x3x5 all 3x5x7" for three heads, in
units of windows (key blocks, or tiles). The original finds them by a search over prompts, which is not part of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpsgen.attention.methods import bf16
from fpsgen.attention.methods.base import Method, Selection

if TYPE_CHECKING:
    from fpsgen.attention.profile import Profile


class _SlidingTile(Method):
    def adapt(self, profile: Profile) -> Profile:
        """Windows are kept; a profile without one is dense attention in 16 bits."""
        if profile.method == self.name:
            return profile
        return bf16.METHOD.adapt(profile) if profile.sees_all else super().adapt(profile)


METHOD = _SlidingTile(
    name="sta",
    summary="a sliding window of tiles in 16 bits",
    citation="Sliding Tile Attention, arXiv 2502.04507",
    colour="#d97706",
    selection=Selection(windowed=True),
    options={"head_windows": ""},
)
