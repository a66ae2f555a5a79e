"""From settings to a request: everything that was left open is settled, before torch is imported."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.attention.presets import PRESETS
from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, NUMERIC, USAGE, FpsgenError
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.models.catalog.registry import ModelSpec, models, shipped
from fpsgen.models.patch.schedule_choice import read_schedule
from fpsgen.models.patch.step_cache import check_cache
from fpsgen.models.peft import check_peft
from fpsgen.pictures import picture_size
from fpsgen.pipeline.output import resolve_output
from fpsgen.pipeline.request import GenerateRequest, request_from_values
from fpsgen.pipeline.size import EVEN, nearest_trained, resolve_frames, resolve_size
from fpsgen.settings.gather import DEFAULT, Settings
from fpsgen.settings.groups.sampling import MAX_TEXT
from fpsgen.settings.setting import Setting
from fpsgen.settings.table import SETTINGS
from fpsgen.text import clean_text, nearest, plural, show

DRAWN = "drawn"  # the origin of a seed that nobody set


@dataclass(frozen=True)
class Plan:
    """A request, the layer that each of its values comes from, and what the user should know before work starts."""

    request: GenerateRequest
    origins: Mapping[str, str]
    notes: tuple[str, ...] = ()


def plan(prompt: str, settings: Settings, choice: ModelChoice | None = None) -> Plan:
    """Settle everything that was left open: model, size, length, seed, name.

    choice: the model if it is settled already. Raises FpsgenError: USAGE for values that do not go together, MODEL
    when the model is not there, BAD_INPUT for a schedule that cannot be read, DISK when the output cannot be written,
    NUMERIC where strict forbids what would be done.
    """
    text = check_prompt(prompt)
    schedule = check_schedule(settings.schedule)
    choice = choice or choose(settings.model, settings.res, settings.device)
    spec = choice.spec
    values = {e.name: settled(e, settings, spec) for e in SETTINGS.values() if e.recipe or e.key}
    values |= {"prompt": text, "max_sequence_length": spec.max_sequence_length, "schedule": schedule}
    check_lora(values["lora"])
    if values["seed"] is None:
        values["seed"] = secrets.randbelow(2**31)
    geometry = choice.geometry
    period = geometry.temporal * geometry.patch[0]
    values["frames"] = resolve_frames(settings.frames, settings.seconds, values["fps"], spec.frames, period)
    values |= _settle_size(settings, spec, geometry.side)
    impossible = geometry.refuses(values["width"], values["height"], values["frames"])
    if impossible:
        raise FpsgenError(impossible, "choose a smaller --res or fewer --frames", USAGE)
    size = values["frames"], values["fps"]
    path, numbered = resolve_output(settings.output, text, values["seed"], settings.overwrite, *size)
    values |= {"path": path, "numbered": numbered, "overwrite": settings.overwrite, "metadata": settings.metadata}
    values["device"] = settings.device
    check_cache(settings.cache, spec.mag_ratios)
    check_cached_order(settings.cache, schedule, settings.method)
    check_compile(values)
    request = request_from_values(values, choice)
    return Plan(request, origins_of(settings, spec), notes_of(request))


def settled(entry: Setting, settings: Settings, spec: ModelSpec) -> Any:
    """A setting's value, or the model's own where nobody set one."""
    value = getattr(settings, entry.name)
    return getattr(spec, entry.model_default) if value is None and entry.model_default else value


def check_prompt(prompt: str) -> str:
    """The prompt on one line. Raises FpsgenError USAGE for an empty, endless or unprintable one."""
    try:
        text = clean_text(prompt)
    except ValueError:
        message = f"the prompt holds control characters: {show(prompt, 60)!r}"
        raise FpsgenError(message, "type it again as plain text", USAGE) from None
    if not text:
        raise FpsgenError("the prompt is empty", 'for example fpsgen generate "a cat surfing"', USAGE)
    if len(text) > MAX_TEXT:
        message = f"the prompt has {len(text)} characters, more than {MAX_TEXT}"
        raise FpsgenError(message, "shorten it; the models read some 300 words", USAGE)
    return text


def check_lora(name: str) -> None:
    """Raise FpsgenError BAD_INPUT where there is no such file, ENVIRONMENT without peft."""
    if not name:
        return
    if not os.path.isfile(name):
        raise FpsgenError(f"there is no LoRA file {show(Path(name))}", "give --lora a .safetensors file", BAD_INPUT)
    check_peft()


def check_cached_order(cache: str, schedule: str | Schedule | None, method: str | None) -> None:
    """Raise FpsgenError USAGE for a step cache with a schedule that changes the order of tokens; presets do not."""
    if cache == "none" or not isinstance(schedule, Schedule):
        return
    tiles = (schedule.with_method(method) if method else schedule).tiles
    if len(tiles) > 1:
        what = f"--cache {cache} keeps tokens from step to step, and schedule {show(schedule.name)} changes their order"
        raise FpsgenError(what, "give all its profiles one tile, or leave --cache out", USAGE)


def check_compile(values: Mapping[str, Any]) -> None:
    """Raise FpsgenError USAGE for what was asked for by name and --compile off leaves out."""
    asked = {"method": values["method"] not in (None, "bf16")}
    asked |= {"linear": values["linear"] == "fp8", "method_impl": values["method_impl"] == "triton"}
    name = next((name for name, there in asked.items() if there), None)
    if values["compile"] == "off" and name is not None:
        option = f"{SETTINGS[name].option} {values[name]}"
        what = f"{option} does not go with --compile off, by which a GPU runs as diffusers does"
        raise FpsgenError(what, f"leave {SETTINGS[name].option} or --compile off out", USAGE)


def check_schedule(name: str | None) -> str | Schedule | None:
    """A preset's name as it is, a TOML file as the schedule in it. Raises FpsgenError USAGE, BAD_INPUT."""
    if name is None or name in PRESETS:
        return name
    path = Path(name)
    presets = ", ".join(PRESETS)
    if path.suffix == ".toml" and os.path.isfile(path):
        return read_schedule(path)
    if path.suffix == ".toml" or os.path.exists(path):
        what = "is not a TOML file" if os.path.exists(path) else "does not exist"
        remedy = f"name a TOML file that is there, or take a preset: {presets}"
        raise FpsgenError(f"schedule {show(path)} {what}", remedy, BAD_INPUT)
    near = nearest(name, PRESETS)
    guess = f"did you mean {near}? Or " if near else ""
    raise FpsgenError(f"no schedule is named {show(name)}", f"{guess}choose from {presets}, or name a file", USAGE)


def origins_of(settings: Settings, spec: ModelSpec) -> dict[str, str]:
    """Where each value of a request comes from, by its name there: a layer, the model, or "default"."""
    own = f"default of {spec.name}"
    origins = {"prompt": "argument", "max_sequence_length": own}
    setters: dict[str, list[Setting]] = {}
    for entry in SETTINGS.values():
        for name in (entry.name, *entry.becomes):
            setters.setdefault(name, []).append(entry)
    for name, entries in setters.items():
        origin = settings.origin(*(entry.name for entry in entries))
        if origin == DEFAULT and name not in settings.values:
            of_model = any(entry.model_default for entry in entries) or name in ("width", "height", "scaled_to")
            origin = own if of_model else DRAWN if name == "seed" else DEFAULT
        origins.setdefault(name, origin)
    return origins


def notes_of(request: GenerateRequest) -> tuple[str, ...]:
    """What the user should know before the work starts, each in one line."""
    choice, video = request.model, request.video
    spec = choice.spec
    note = spec.note((video.width, video.height))
    better = instead_of_embedded(choice)
    pull = f"{better.name} would fit this machine: --pull fetches it" if better is not None else ""
    size = f"{video.width}x{video.height}"
    at_size = note and f"{spec.name} at {size}: {note}"
    return tuple(filter(None, (scaling_note(request), length_note(request), at_size, words_note(request), pull)))


def length_note(request: GenerateRequest) -> str:
    """That the model makes this length less well; "" where it was trained on it, or on any."""
    spec, frames = request.model.spec, request.video.frames
    if not spec.trained_sizes or frames == spec.frames:
        return ""
    return f"{spec.name} was trained on {spec.frames} frames; {plural(frames, 'frame')} may come out worse"


def words_note(request: GenerateRequest) -> str:
    """Which words of the prompt the model does not know, and what it draws; "" where it knows them all."""
    vocabulary = request.model.vocabulary
    return "" if vocabulary is None else vocabulary.warning(request.model.spec.name, request.prompt.text)


def instead_of_embedded(choice: ModelChoice) -> ModelSpec | None:
    """The model to fetch where "auto" has only the embedded one: the best that would fit this machine, if any does."""
    if not choice.spec.embedded:
        return None
    return next((passed.spec for passed in choice.passed if passed.fetchable), None)


def _settle_size(settings: Settings, spec: ModelSpec, side: int) -> dict[str, Any]:
    """width and height that the model makes, and scaled_to where the file's size differs."""
    named = {name: size for known in models() for name, size in known.resolutions.items()} if spec.trained_sizes else {}
    multiple = EVEN if spec.trained_sizes else side  # what is scaled can have any size that a file can have
    wanted = resolve_size(
        settings.res, settings.aspect, (spec.width, spec.height), named | spec.resolutions, spec.name, multiple
    )
    width, height = nearest_trained(wanted, spec.trained_sizes)
    scaled_to = wanted if wanted != (width, height) else None
    if scaled_to and settings.strict:
        message = f"strict: {spec.name} makes {width}x{height}, not {wanted[0]}x{wanted[1]}"
        raise FpsgenError(message, f"give --res {width}x{height}, or run without --strict to scale the video", NUMERIC)
    return {"width": width, "height": height, "scaled_to": scaled_to}


def scaling_note(request: GenerateRequest) -> str:
    """That the file's size is not the model's, and how to get the real thing; "" where it is."""
    video, spec = request.video, request.model.spec
    if video.scaled_to is None:
        return ""
    width, height = video.scaled_to
    own = video.width, video.height
    bars = "" if picture_size(own, video.scaled_to) == video.scaled_to else ", between black bars"
    text = f"{spec.name} makes {own[0]}x{own[1]}; the video is scaled to {width}x{height}{bars}"
    real = next((other for other in shipped() if video.scaled_to in other.resolutions.values()), None)
    return f"{text} (for the real size: fpsgen models pull {real.name}, on a GPU)" if real else text
