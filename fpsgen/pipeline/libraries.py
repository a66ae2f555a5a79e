"""The libraries that a video needs, imported in one go."""

from __future__ import annotations

import gc


def import_libraries() -> None:
    """Import torch, diffusers and transformers. Garbage collection is paused meanwhile: what modules hold is no
    garbage, and looking through it takes a fifth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        import fpsgen.pipeline.run  # noqa: F401
    finally:
        if collecting:
            gc.enable()
