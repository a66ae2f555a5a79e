"""FP8, tile-sparse attention for video token grids (independent implementation of arXiv 2506.04648)."""

from fpsgen.attention.function import UnsupportedDeviceError, attend, fps_attention
from fpsgen.attention.methods import METHODS, AttentionPlan, Method
from fpsgen.attention.reference import attention_reference
from fpsgen.attention.schedule import (
    PRESETS,
    Profile,
    Schedule,
    preset,
    sigma_at_fraction,
    windows_from_fractions,
)
from fpsgen.attention.tiles import BlockLayout, TileLists, Tiling, fit_tile, make_tiling, window_lists

__all__ = [
    "METHODS",
    "PRESETS",
    "AttentionPlan",
    "BlockLayout",
    "Method",
    "Profile",
    "Schedule",
    "TileLists",
    "Tiling",
    "UnsupportedDeviceError",
    "attend",
    "attention_reference",
    "fit_tile",
    "fps_attention",
    "make_tiling",
    "preset",
    "sigma_at_fraction",
    "window_lists",
    "windows_from_fractions",
]
