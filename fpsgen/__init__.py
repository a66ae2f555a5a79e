"""fpsgen: Wan2.1 video generation with FP8, tile-sparse attention.

An independent implementation of FPSAttention (arXiv 2506.04648). Two names are public here and load torch on first use:

    fpsgen.apply(pipe)          patch a diffusers WanPipeline from outside, see fpsgen/models/patch/apply.py
    fpsgen.fps_attention(...)   the attention alone, see fpsgen/attention/op.py
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpsgen.attention.op import fps_attention
    from fpsgen.models.patch.apply import apply

__version__ = "0.2.0"
__all__ = ["__version__", "apply", "fps_attention"]

_LAZY = {"apply": "fpsgen.models.patch.apply", "fps_attention": "fpsgen.attention.op"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fpsgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
