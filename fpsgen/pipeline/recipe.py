"""The recipe: everything that decides what a video looks like, and nothing that changes from run to run.

Which settings it holds is said in the table of settings.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fpsgen import __version__
from fpsgen.pipeline.plan import scaling_note
from fpsgen.pipeline.request import GenerateRequest, deciding_names, json_ready

RECIPE_SCHEMA = "fpsgen.recipe/1"
_PACKAGES = ("torch", "triton", "diffusers", "transformers")


def build_recipe(request: GenerateRequest, run: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready. run: what only the loaded model shows (device, dtypes, scheduler, schedule), in place of what was
    asked for.
    """
    values = request.values()
    names = [*deciding_names("recipe"), "max_sequence_length"]
    recipe = {"schema": RECIPE_SCHEMA} | {name: json_ready(values[name]) for name in names}
    if recipe["scaled_to"] is None:
        del recipe["scaled_to"]
    else:
        recipe["scaled"] = scaling_note(request)
    if request.model.replaced_scheduler:
        recipe["scheduler_replaced"] = request.model.replaced_scheduler
    recipe["noise"] = "cpu"  # drawn by torch's CPU generator whatever the device
    return recipe | run | {"versions": versions()}


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions by name: of fpsgen, Python and `packages`, which unless named are what has a part in the frames."""
    found = {"fpsgen": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
