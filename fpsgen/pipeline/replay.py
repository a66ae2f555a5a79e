"""From a recipe back to the request that it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, MODEL, FpsgenError
from fpsgen.models.catalog.registry import HUB_ID, ModelSpec, models, resolve
from fpsgen.pipeline.output import resolve_output, sidecar
from fpsgen.pipeline.recipe import RECIPE_SCHEMA, versions
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.text import show
from fpsgen.video import read_recipe

_KINDS = {
    **dict.fromkeys(("prompt", "negative", "method", "device", "dtype"), str),
    **dict.fromkeys(("seed", "width", "height", "frames", "fps", "steps", "max_sequence_length"), int),
    **dict.fromkeys(("guidance", "shift"), (int, float)),
    **dict.fromkeys(("model", "schedule", "versions"), dict),
    "strict": bool,
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def load_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(recipe, report or None) of an MP4 or of the JSON file beside one. Raises FpsgenError BAD_INPUT.

    The recipe is the MP4's own; the report is in the JSON file alone, and counts only if the recipes agree.
    """
    if not path.is_file():
        raise FpsgenError(f"{show(path)} is not a file", "name an MP4 that fpsgen made", BAD_INPUT)
    beside = path if path.suffix.lower() == ".json" else sidecar(path)
    try:
        data = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        data = data if isinstance(data, dict) else {}
    except (OSError, ValueError):
        data = {}
    recipe = data.get("recipe") if beside == path else read_recipe(path)
    if not isinstance(recipe, dict):
        remedy = "videos made with --no-metadata and those of other tools have none"
        raise FpsgenError(f"{show(path)} holds no recipe of fpsgen", remedy, BAD_INPUT)
    if recipe.get("schema") != RECIPE_SCHEMA:
        what = f"{show(path)} has a recipe of the form {show(recipe.get('schema'))!r}, not {RECIPE_SCHEMA!r}"
        raise FpsgenError(what, "install the version of fpsgen that made it", BAD_INPUT)
    return recipe, data.get("report") if data.get("recipe") == recipe else None


def request_from(
    recipe: dict[str, Any], output: str | None, overwrite: bool, device: str | None
) -> tuple[GenerateRequest, list[str]]:
    """The request, and what differs from when the video was made, so that the new one may differ too.

    output: as for `generate`. device: as for `generate`; None takes the recipe's kind. Raises FpsgenError: BAD_INPUT
    for a recipe that is not whole, MODEL, DISK, USAGE.
    """
    for key, kind in _KINDS.items():
        if not isinstance(recipe.get(key), kind):
            raise FpsgenError(f"the recipe has no usable {key}", "name an MP4 as fpsgen wrote it", BAD_INPUT)
    try:
        schedule = Schedule.from_toml(recipe["schedule"]["toml"])
    except (KeyError, TypeError, ValueError) as error:
        raise FpsgenError(f"the recipe's schedule cannot be read: {error}", "name another MP4", BAD_INPUT) from error
    spec, folder, differ = _model(recipe["model"])
    path, numbered = resolve_output(output, recipe["prompt"], recipe["seed"], overwrite)
    request = GenerateRequest(
        prompt=recipe["prompt"],
        negative=recipe["negative"],
        model=spec,
        model_path=folder,
        width=recipe["width"],
        height=recipe["height"],
        scaled_to=_scaled(recipe),
        frames=recipe["frames"],
        fps=recipe["fps"],
        steps=recipe["steps"],
        guidance=float(recipe["guidance"]),
        shift=float(recipe["shift"]),
        seed=recipe["seed"],
        max_sequence_length=recipe["max_sequence_length"],
        method=None if recipe["method"] == "as scheduled" else recipe["method"],
        schedule=schedule,
        strict=recipe["strict"],
        device=device or ("cpu" if recipe["device"] == "cpu" else "cuda"),
        dtype=_DTYPES.get(recipe["dtype"], "auto"),
        output=path,
        numbered=numbered,
        overwrite=overwrite,
        metadata=True,
    )
    now = versions()
    for name, was in recipe["versions"].items():
        if now.get(name) != was:
            differ.append(f"{name} was {show(was)} and is {now.get(name, 'not installed')}")
    return request, differ


def _scaled(recipe: dict[str, Any]) -> tuple[int, int] | None:
    size = recipe.get("scaled_to")
    if size is None:
        return None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and 16 <= side <= 8192 for side in size):
        return size[0], size[1]
    raise FpsgenError("the recipe has no usable scaled_to", "name an MP4 as fpsgen wrote it", BAD_INPUT)


def _model(wanted: dict[str, Any]) -> tuple[ModelSpec, Path, list[str]]:
    """The recipe's model on this machine, and how it may differ."""
    name, source, revision = (str(wanted.get(key)) for key in ("name", "source", "revision"))
    known = next((spec for spec in models() if spec.name == name and spec.source == source), None)
    if known is None and not Path(source).is_dir() and not HUB_ID.fullmatch(source):
        what = f"the model of this video, {show(source)}, is not on this machine"
        raise FpsgenError(what, "put the folder back, or make the video anew with fpsgen generate", MODEL)
    spec, folder, _ = resolve(name if known is not None else source)
    if revision == "local":
        return spec, folder, ["its model is a local folder, which may have changed since"]
    now = spec.revision if spec.embedded else folder.name
    pinned = revision if revision != "main" else now
    return spec, folder, [] if now == pinned else [f"the model was at {revision[:12]} and is at {now[:12]}"]
