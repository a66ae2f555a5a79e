"""One video as it was asked for, with nothing left open but what only the loaded model can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.attention.schedule import Schedule
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.settings.table import SETTINGS


@dataclass(frozen=True)
class Prompt:
    """text, negative: on one line each. max_sequence_length: tokens that the text encoder is given."""

    text: str
    negative: str
    max_sequence_length: int


@dataclass(frozen=True)
class Video:
    """Pixels as the model makes them. scaled_to: (width, height) of the file where it differs. fps: of the file."""

    width: int
    height: int
    scaled_to: tuple[int, int] | None
    frames: int
    fps: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class Sampling:
    """How noise becomes latents. shift: flow shift of the scheduler. seed: of torch's CPU generator."""

    steps: int
    guidance: float
    shift: float
    seed: int


@dataclass(frozen=True)
class Attention:
    """method: None is as the schedule says. method_impl: what computes it, see AttentionPlan. schedule: a preset's
    name, or the thing; None is the checkpoint's own, or "safe". strict: any deviation is an error.
    """

    method: str | None
    method_impl: str
    schedule: str | Schedule | None
    strict: bool


DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # torch's names of what --dtype takes


@dataclass(frozen=True)
class Machine:
    """device: "auto", "cpu", "cuda", "cuda:N". dtype: "auto", "bf16", "fp16", "fp32"."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Output:
    """numbered: the path may get -2, -3 ... if it is taken meanwhile. metadata: recipe in the MP4, and a sidecar."""

    path: Path
    numbered: bool
    overwrite: bool
    metadata: bool


_PARTS = {
    "prompt": Prompt,
    "video": Video,
    "sampling": Sampling,
    "attention": Attention,
    "machine": Machine,
    "output": Output,
}
_FLAT_NAMES = {"text": "prompt"}  # where a field's name alone would say too little
BEFORE_SETTINGS = ("prompt",)  # decides the video and is an argument, not a setting


@dataclass(frozen=True)
class GenerateRequest:
    """One video. more: values of settings that none of the parts has a field for, by name."""

    prompt: Prompt
    model: ModelChoice
    video: Video
    sampling: Sampling
    attention: Attention
    machine: Machine
    output: Output
    more: tuple[tuple[str, Any], ...] = ()

    def values(self) -> dict[str, Any]:
        """All values by name, flat, as recipes and plans name them."""
        found: dict[str, Any] = {}
        for name, kind in _PARTS.items():
            part = getattr(self, name)
            found |= {_FLAT_NAMES.get(f.name, f.name): getattr(part, f.name) for f in dataclasses.fields(kind)}
        spec = self.model.spec
        found["model"] = {"name": spec.name, "source": spec.source, "revision": spec.revision}
        return found | dict(self.more)

    def deciding(self) -> dict[str, Any]:
        """JSON-ready: all that decides what the video looks like. Device, folder and file name are not among it."""
        values = self.values()
        return {name: json_ready(values[name]) for name in deciding_names("key")}

    def replace(self, **parts: Mapping[str, Any]) -> GenerateRequest:
        """The same with other values in some parts: request.replace(sampling={"seed": 3})."""
        changed = {name: dataclasses.replace(getattr(self, name), **values) for name, values in parts.items()}
        return dataclasses.replace(self, **changed)

    def with_settings(self, **values: Any) -> GenerateRequest:
        """The same with other values of settings that no part has a field for."""
        return dataclasses.replace(self, more=tuple((dict(self.more) | values).items()))


def request_from_values(values: Mapping[str, Any], model: ModelChoice) -> GenerateRequest:
    """A request from flat values, as `GenerateRequest.values` names them; settings without a field go into `more`."""
    parts: dict[str, Any] = {}
    taken: set[str] = set()
    for name, kind in _PARTS.items():
        names = {field.name: _FLAT_NAMES.get(field.name, field.name) for field in dataclasses.fields(kind)}
        parts[name] = kind(**{field: values[flat] for field, flat in names.items()})
        taken |= set(names.values())
    more = tuple((name, value) for name, value in values.items() if name not in taken)
    return GenerateRequest(model=model, more=more, **parts)


def deciding_names(part_of: str) -> list[str]:
    """Names of the values in a recipe ("recipe") or in a job's key ("key"), from the table of settings."""
    names: Iterable[str] = [
        name
        for entry in SETTINGS.values()
        for name in (*entry.becomes, *([entry.name] if getattr(entry, part_of) else ()))
    ]
    return list(dict.fromkeys((*BEFORE_SETTINGS, *names)))


def json_ready(value: Any) -> Any:
    """A value as JSON has it: schedules as TOML, tuples as lists, paths as text."""
    if isinstance(value, Schedule):
        return value.to_toml()
    if isinstance(value, tuple):
        return [json_ready(part) for part in value]
    return str(value) if isinstance(value, Path) else value
