"""From a recipe back to the request that it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fpsgen.attention.schedule import AS_SCHEDULED, Schedule
from fpsgen.errors import BAD_INPUT, MODEL, FpsgenError
from fpsgen.fields import Field, Spec, fields, many, mapping, or_null, raw, whole
from fpsgen.files import read_json
from fpsgen.models.catalog.cache import HUB_ID
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.catalog.manifest import sha256
from fpsgen.models.catalog.registry import models
from fpsgen.pipeline.output import resolve_output, sidecar
from fpsgen.pipeline.plan import check_lora, check_prompt
from fpsgen.pipeline.recipe import RECIPE_SCHEMA, versions
from fpsgen.pipeline.request import DTYPES, GenerateRequest, request_from_values
from fpsgen.pipeline.size import resolve_frames
from fpsgen.settings.gather import Settings, refusal
from fpsgen.settings.table import SETTINGS
from fpsgen.text import show
from fpsgen.video import read_recipe

_MAX_SIDECAR = 16 << 20  # bytes
_REMEDY = "name a video as fpsgen wrote it"
_SIDE = whole(16, 8192)
# values of a recipe that no option judges
_RECIPE: Spec = {
    "prompt": raw(1 << 20),
    "width": _SIDE,
    "height": _SIDE,
    "scaled_to": or_null(many(_SIDE, 2, 2)),
    "max_sequence_length": whole(1, 1 << 16),
    "method": raw(100),
    "model": dict.fromkeys(("name", "source", "revision"), raw(4096)),
    "versions": mapping(Field(show, "a version")),
}


def load_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(recipe, report or None) of a video or of the JSON file beside one. Raises FpsgenError BAD_INPUT.

    The recipe is the video's own; the report is in the JSON file alone, and counts only if the recipes agree.
    """
    if not os.path.isfile(path):
        raise FpsgenError(f"{show(path)} is not a file", "name a video that fpsgen made", BAD_INPUT)
    beside = path if path.suffix.lower() == ".json" else sidecar(path)
    data: dict[str, Any] = {}
    try:
        data = read_json(beside, _MAX_SIDECAR, show(beside)) if os.path.isfile(beside) else {}
    except FpsgenError:
        if beside == path:
            raise
    recipe = data.get("recipe") if beside == path else read_recipe(path)
    if not isinstance(recipe, dict):
        remedy = "videos made with --no-metadata and those of other tools have none"
        raise FpsgenError(f"{show(path)} holds no recipe of fpsgen", remedy, BAD_INPUT)
    if recipe.get("schema") != RECIPE_SCHEMA:
        what = f"{show(path)} has a recipe of the form {show(recipe.get('schema'))!r}, not {RECIPE_SCHEMA!r}"
        raise FpsgenError(what, "install the version of fpsgen that made it", BAD_INPUT)
    return recipe, data.get("report") if data.get("recipe") == recipe else None


def request_from(recipe: dict[str, Any], settings: Settings) -> tuple[GenerateRequest, list[str]]:
    """The request, and what differs from when the video was made, so that the new one may differ too.

    settings: where the new video goes, and the device; unset takes the recipe's kind of device. Every value is judged
    as the command line judges it. Raises FpsgenError: BAD_INPUT for a recipe that is not whole, MODEL, DISK, USAGE.
    """
    asked = settings.origin("device") != "default"
    device = settings.device if asked else "cpu" if recipe.get("device") == "cpu" else "cuda"
    own = fields(recipe, _RECIPE, "the recipe", more=True, example=_REMEDY)
    values = {name: own[name] for name in ("width", "height", "scaled_to", "max_sequence_length")}
    dtype = next((short for short, name in DTYPES.items() if name == recipe.get("dtype")), "auto")
    own_form: dict[str, Any] = {"dtype": dtype}
    own_form["method"] = None if own["method"] == AS_SCHEDULED else own["method"]
    if recipe.get("linear", AS_SCHEDULED) == AS_SCHEDULED:
        own_form["linear"] = None
    for entry in SETTINGS.values():
        if not entry.recipe or entry.name == "schedule":
            continue
        found = own_form.get(entry.name, recipe.get(entry.name))
        if found is None:
            if entry.model_default or (entry.default is None and entry.name not in own_form):
                raise FpsgenError(f"the recipe has no {entry.name}", _REMEDY, BAD_INPUT)
            values[entry.name] = _before(entry.name, device)
            continue
        try:
            values[entry.name] = entry.read(found)
        except ValueError:
            raise refusal(entry, found, f"{entry.name} of the recipe", BAD_INPUT) from None
    with _of_recipe():
        values["prompt"] = check_prompt(own["prompt"])
        resolve_frames(values["frames"], None, 1, values["frames"])
    values["schedule"] = _schedule(recipe)
    choice, differ = _model(**own["model"])
    what = values["prompt"], values["seed"]
    path, numbered = resolve_output(settings.output, *what, settings.overwrite, values["frames"], values["fps"])
    values |= {"path": path, "numbered": numbered, "overwrite": settings.overwrite, "metadata": True, "device": device}
    differ += _check_lora(recipe, values["lora"])
    return request_from_values(values, choice), differ + _other_versions(own["versions"])


def _check_lora(recipe: dict[str, Any], name: str) -> list[str]:
    """How the LoRA file may differ from the recipe's. Raises FpsgenError BAD_INPUT where it does, or is gone."""
    if not name:
        return []
    check_lora(name)
    if "lora_sha256" not in recipe:
        return [f"its LoRA file {show(Path(name))} may have changed since"]
    if recipe["lora_sha256"] != sha256(Path(name)):
        what = f"LoRA {show(Path(name))} is not the file that this video was made with"
        raise FpsgenError(what, "put that file back, or make the video anew with fpsgen generate", BAD_INPUT)
    return []


def _before(name: str, device: str) -> Any:
    """What held before there was this option, so that an older recipe gives its video again: fpsgen 0.1 had the
    rounding of diffusers, and on a CPU the reference.
    """
    was = {"exact": True, "method_impl": "reference" if device == "cpu" else "auto"}
    return was.get(name, SETTINGS[name].default)


@contextmanager
def _of_recipe() -> Iterator[None]:
    """What the command line refuses within the block is FpsgenError BAD_INPUT of the recipe."""
    try:
        yield
    except FpsgenError as error:
        raise FpsgenError(f"recipe: {error.message}", _REMEDY, BAD_INPUT) from None


def _schedule(recipe: dict[str, Any]) -> Schedule:
    try:
        return Schedule.from_toml(recipe["schedule"]["toml"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"the recipe's schedule cannot be read: {show(error)}"
        raise FpsgenError(what, "name another MP4", BAD_INPUT) from error


def _other_versions(recorded: dict[str, str]) -> list[str]:
    now = versions()
    return [
        f"{show(name)} was {was} and is {now.get(name, 'not installed')}"
        for name, was in recorded.items()
        if now.get(name) != was
    ]


def _model(name: str, source: str, revision: str) -> tuple[ModelChoice, list[str]]:
    """The recipe's model on this machine, and how it may differ."""
    known = next((spec for spec in models() if spec.name == name and spec.source == source), None)
    if known is None and not HUB_ID.fullmatch(source) and not os.path.isdir(source):
        what = f"the model of this video, {show(source)}, is not on this machine"
        raise FpsgenError(what, "put the folder back, or make the video anew with fpsgen generate", MODEL)
    choice = choose(name if known is not None else source)
    if revision == "local":
        return choice, ["its model is a local folder, which may have changed since"]
    now = choice.spec.revision if choice.spec.embedded or choice.folder is None else choice.folder.name
    pinned = revision if revision != "main" else now
    return choice, [] if now == pinned else [f"the model was at {show(revision[:12])} and is at {now[:12]}"]
