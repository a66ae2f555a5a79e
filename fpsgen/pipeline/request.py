"""What will be made, decided in full before torch is imported."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, TypeVar

from fpsgen.attention.schedule import PRESETS, Schedule
from fpsgen.config import Settings
from fpsgen.errors import BAD_INPUT, NUMERIC, USAGE, FpsgenError
from fpsgen.models.catalog.registry import ModelSpec, models, resolve, shipped
from fpsgen.pipeline.output import resolve_output
from fpsgen.pipeline.size import nearest_trained, resolve_frames, resolve_size
from fpsgen.text import clean_text, show

T = TypeVar("T")

MAX_PROMPT = 10_000  # characters; the text encoders read 512 tokens


class Events(Protocol):
    """What `generate.run` tells while it works. Times are in seconds."""

    def stage_start(self, name: str, note: str = "") -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...

    def step(self, index: int, total: int, seconds: float, note: str) -> None: ...

    def warn(self, text: str) -> None: ...


@dataclass(frozen=True)
class GenerateRequest:
    """One video, with nothing left open but what only the loaded model can tell."""

    prompt: str
    negative: str
    model: ModelSpec
    model_path: Path
    width: int  # pixels, as the model makes them
    height: int
    scaled_to: tuple[int, int] | None  # (width, height) of the file where it differs
    frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    seed: int
    max_sequence_length: int
    method: str | None  # None: as the schedule says
    schedule: str | Schedule | None  # a preset's name, a TOML file or the thing; None: the checkpoint's own, or "safe"
    strict: bool
    device: str  # "auto", "cpu", "cuda", "cuda:N"
    dtype: str  # "auto", "bf16", "fp16", "fp32"
    output: Path
    numbered: bool  # the output's name may get -2, -3 ... if it is taken meanwhile
    overwrite: bool
    metadata: bool


@dataclass(frozen=True)
class Plan:
    """A request, why its model was chosen, and the layer that each value comes from."""

    request: GenerateRequest
    reason: str
    origins: dict[str, str]
    notes: tuple[str, ...] = ()  # what the user should know before the work starts


def _scaling_note(request: GenerateRequest) -> tuple[str, ...]:
    if request.scaled_to is None:
        return ()
    spec, (width, height) = request.model, request.scaled_to
    text = f"{spec.name} makes {request.width}x{request.height}; the video is scaled to {width}x{height}"
    real = next((other for other in shipped() if request.scaled_to in other.resolutions.values()), None)
    return (f"{text} (for the real size: fpsgen models pull {real.name}, on a GPU)" if real else text,)


def plan(
    prompt: str, settings: Settings, overwrite: bool = False, chosen: tuple[ModelSpec, Path, str] | None = None
) -> Plan:
    """Settle everything that was left open: model, size, length, seed, name.

    chosen: the model if it is settled already, as models.registry.resolve gives it.
    Raises FpsgenError: USAGE for values that do not go together, MODEL when the model is not there, BAD_INPUT for a
    schedule that cannot be read, DISK when the output cannot be written.
    """
    prompt = check_prompt(prompt)
    schedule = _check_schedule(settings.schedule)
    spec, path, reason = chosen or resolve(settings.model)
    named = {name: size for known in models() for name, size in known.resolutions.items()} if spec.trained_sizes else {}
    wanted = resolve_size(settings.res, settings.aspect, (spec.width, spec.height), named | spec.resolutions, spec.name)
    width, height = nearest_trained(wanted, spec.trained_sizes)
    scaled_to = wanted if wanted != (width, height) else None
    if scaled_to and settings.strict:
        message = f"strict: {spec.name} makes {width}x{height}, not {wanted[0]}x{wanted[1]}"
        raise FpsgenError(message, f"give --res {width}x{height}, or run without --strict to scale the video", NUMERIC)
    fps = _first(settings.fps, spec.fps)
    seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
    output, numbered = resolve_output(settings.output, prompt, seed, overwrite)
    request = GenerateRequest(
        prompt=prompt,
        negative=_first(settings.negative, spec.negative_prompt),
        model=spec,
        model_path=Path(path),
        width=width,
        height=height,
        scaled_to=scaled_to,
        frames=resolve_frames(settings.frames, settings.seconds, fps, spec.frames),
        fps=fps,
        steps=_first(settings.steps, spec.steps),
        guidance=_first(settings.guidance, spec.guidance),
        shift=_first(settings.shift, spec.shift),
        seed=seed,
        max_sequence_length=spec.max_sequence_length,
        method=settings.method,
        schedule=schedule,
        strict=settings.strict,
        device=settings.device,
        dtype=settings.dtype,
        output=output,
        numbered=numbered,
        overwrite=overwrite,
        metadata=settings.metadata,
    )
    return Plan(request, reason, _origins(settings, spec), _scaling_note(request))


def check_prompt(prompt: str) -> str:
    """The prompt on one line. Raises FpsgenError USAGE for an empty, endless or unprintable one."""
    try:
        text = clean_text(prompt)
    except ValueError:
        message = f"the prompt holds control characters: {show(prompt, 60)!r}"
        raise FpsgenError(message, "type it again as plain text", USAGE) from None
    if not text:
        raise FpsgenError("the prompt is empty", 'for example fpsgen generate "a cat surfing"', USAGE)
    if len(text) > MAX_PROMPT:
        message = f"the prompt has {len(text)} characters, more than {MAX_PROMPT}"
        raise FpsgenError(message, "shorten it; the models read some 300 words", USAGE)
    return text


def _check_schedule(name: str | None) -> str | None:
    if name is None or name in PRESETS:
        return name
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        try:
            Schedule.from_file(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            message = f"schedule {show(name)} cannot be used: {show(error, 200)}"
            raise FpsgenError(message, f"mend it, or take a preset: {', '.join(PRESETS)}", BAD_INPUT) from error
        return name
    if path.suffix == ".toml" or path.exists():
        what = "is not a TOML file" if path.exists() else "does not exist"
        raise FpsgenError(f"schedule {show(name)} {what}", f"or take a preset: {', '.join(PRESETS)}", BAD_INPUT)
    raise FpsgenError(f"no schedule is named {show(name)}", f"choose from {', '.join(PRESETS)}, or name a file", USAGE)


def _origins(settings: Settings, spec: ModelSpec) -> dict[str, str]:
    own = f"default of {spec.name}"
    partners = {
        "width": ("res", "aspect"),
        "height": ("res", "aspect"),
        "scaled_to": ("res", "aspect"),
        "frames": ("frames", "seconds"),
        "model_path": ("model",),
        "numbered": ("output",),
    }
    plain = {"prompt": "argument", "overwrite": "flag", "max_sequence_length": own}
    built_in = {"model", "model_path", "method", "strict", "device", "dtype", "output", "numbered", "metadata"}
    origins = {}
    for field in fields(GenerateRequest):
        origin = settings.origin(*partners.get(field.name, (field.name,)))
        if origin == "default" and field.name == "seed":
            origin = "drawn"
        elif origin == "default" and field.name not in built_in:
            origin = own
        origins[field.name] = plain.get(field.name, origin)
    return origins


def _first(value: T | None, default: T) -> T:
    return default if value is None else value
