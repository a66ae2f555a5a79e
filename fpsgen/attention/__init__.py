"""FP8, tile-sparse attention for video token grids (independent implementation of arXiv 2506.04648).

The names below load their module, and with it torch, on first use: schedules are pure Python, and the command line
judges them before torch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpsgen.attention.lists import kept_density, select_lists
    from fpsgen.attention.methods import METHODS, Method, Precision, Selection, find_method
    from fpsgen.attention.op import UnsupportedDeviceError, attend, fps_attention
    from fpsgen.attention.plan import AttentionPlan, BlockLists
    from fpsgen.attention.presets import PRESETS, preset
    from fpsgen.attention.profile import Profile
    from fpsgen.attention.reference import attention_reference
    from fpsgen.attention.schedule import Schedule, sigma_at_fraction, windows_from_fractions
    from fpsgen.attention.tiles import BlockLayout, TileLists, Tiling, make_tiling, window_lists
    from fpsgen.attention.windows import fit_blocks, fit_tile

__all__ = [
    "METHODS",
    "PRESETS",
    "AttentionPlan",
    "BlockLayout",
    "BlockLists",
    "Method",
    "Precision",
    "Profile",
    "Schedule",
    "Selection",
    "TileLists",
    "Tiling",
    "UnsupportedDeviceError",
    "attend",
    "attention_reference",
    "find_method",
    "fit_blocks",
    "fit_tile",
    "fps_attention",
    "kept_density",
    "make_tiling",
    "preset",
    "select_lists",
    "sigma_at_fraction",
    "window_lists",
    "windows_from_fractions",
]

_MODULES = {
    "lists": ("kept_density", "select_lists"),
    "methods": ("METHODS", "Method", "Precision", "Selection", "find_method"),
    "op": ("UnsupportedDeviceError", "attend", "fps_attention"),
    "plan": ("AttentionPlan", "BlockLists"),
    "profile": ("Profile",),
    "reference": ("attention_reference",),
    "presets": ("PRESETS", "preset"),
    "schedule": ("Schedule", "sigma_at_fraction", "windows_from_fractions"),
    "tiles": ("BlockLayout", "TileLists", "Tiling", "make_tiling", "window_lists"),
    "windows": ("fit_blocks", "fit_tile"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
