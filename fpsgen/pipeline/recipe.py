"""The recipe: everything that decides what a video looks like, and nothing that changes from run to run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fpsgen import __version__
from fpsgen.pipeline.request import GenerateRequest

RECIPE_SCHEMA = "fpsgen.recipe/1"
_PACKAGES = ("torch", "triton", "diffusers", "transformers")


def build_recipe(request: GenerateRequest, run: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready. run: what only the loaded model told (device, dtypes, scheduler, schedule)."""
    return {
        "schema": RECIPE_SCHEMA,
        "prompt": request.prompt,
        "negative": request.negative,
        "seed": request.seed,
        "noise": "cpu",  # drawn by torch's CPU generator whatever the device
        "model": {
            "name": request.model.name,
            "source": request.model.source,
            "revision": request.model.revision,
        },
        "width": request.width,
        "height": request.height,
        **({"scaled_to": list(request.scaled_to)} if request.scaled_to else {}),
        "frames": request.frames,
        "fps": request.fps,
        "steps": request.steps,
        "guidance": request.guidance,
        "shift": request.shift,
        "max_sequence_length": request.max_sequence_length,
        "strict": request.strict,
        **run,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What has a part in the frames, by name."""
    found = {"fpsgen": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
