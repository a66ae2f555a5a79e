"""FP8, tile-sparse attention for video token grids (independent implementation of arXiv 2506.04648).

The names below load their module, and with it torch, on first use: schedules are pure Python, and the command line
judges them before torch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpsgen.attention.op import UnsupportedDeviceError, attend, fps_attention
    from fpsgen.attention.plan import METHODS, AttentionPlan, Method
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

_MODULES = {
    "op": ("UnsupportedDeviceError", "attend", "fps_attention"),
    "plan": ("METHODS", "AttentionPlan", "Method"),
    "reference": ("attention_reference",),
    "schedule": ("PRESETS", "Profile", "Schedule", "preset", "sigma_at_fraction", "windows_from_fractions"),
    "tiles": ("BlockLayout", "TileLists", "Tiling", "fit_tile", "make_tiling", "window_lists"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
