"""Many prompts through several variants of attention, and how far each video is from the dense one of the same seed.

The reference denoises each prompt densely, in diffusers' own rounding, and its trajectory is kept: so a row has the
error of single velocities beside that of the finished video. Rows are appended as they come; what stands in the file
is not made again, and a video of other settings is not written over.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpsgen.attention.schedule import AS_SCHEDULED, Schedule
from fpsgen.bench.plan import BASELINE, EVERY_STEP
from fpsgen.bench.progress import Progress
from fpsgen.bench.provenance import provenance
from fpsgen.bench.rows import linear_of, setting_of
from fpsgen.bench.trajectory import Forward, mean_errors, recorded, step_errors
from fpsgen.errors import DISK, FpsgenError
from fpsgen.evaluate.nano.prompts import agreement
from fpsgen.evaluate.quality import QUALITY, quality
from fpsgen.logs import append_line, read_objects
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import LoadedModel, dtype_name, load_model
from fpsgen.pipeline.output import slug, write_output
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.run import mean_density, patched, render
from fpsgen.text import show
from fpsgen.video import read_recipe

SCHEMA = "fpsgen.evaluate/1"
REFERENCE = "dense"  # the name of the videos that all others are measured against
ROWS = "rows.jsonl"
KEY = "evaluate_key"  # in a video's recipe: the key of its row
_LIMIT = 1 << 28  # bytes of a file of rows


@dataclass(frozen=True)
class Variant:
    """One way to denoise. schedule, method, impl, linear: as `apply` takes them. exact: diffusers' own rounding
    everywhere else. of_teacher: by the teacher's weights, as the reference is; else by the student's.
    """

    name: str
    schedule: Schedule | str | None = None
    method: str | None = None
    linear: str | None = "bf16"
    exact: bool = False
    impl: str = "auto"
    of_teacher: bool = False

    def of(self, request: GenerateRequest) -> GenerateRequest:
        """The request run this way, strict."""
        attention = {"schedule": self.schedule, "method": self.method, "method_impl": self.impl, "strict": True}
        plain = EVERY_STEP if self.method == BASELINE else {}
        return request.replace(attention=attention).with_settings(linear=self.linear, exact=self.exact, **plain)


DENSE = Variant(REFERENCE, method=BASELINE, exact=True)


class Models(NamedTuple):
    """student: what is evaluated. teacher: what makes the reference; may be the same model. Both are requests, of
    which model, LoRA, device and dtype count.
    """

    student: GenerateRequest
    teacher: GenerateRequest

    @property
    def one(self) -> bool:
        """Whether both are the same weights."""
        return _weights(self.student) == _weights(self.teacher)

    def by_teacher(self, request: GenerateRequest) -> GenerateRequest:
        """A request for the student, made by the teacher."""
        changed = request.with_settings(lora=self.teacher.values()["lora"])
        return dataclasses.replace(changed, model=self.teacher.model)


def _weights(request: GenerateRequest) -> tuple[str, str]:
    return str(request.model.folder), str(request.values()["lora"])


class _Made(NamedTuple):
    frames: np.ndarray
    path: Path
    forwards: list[Forward]
    row: dict[str, Any]


_Place = tuple[Path, int, str, Progress]  # of a video: folder, number of its request, key, progress


def run(
    models: Models,
    requests: Sequence[GenerateRequest],
    variants: Sequence[Variant],
    folder: Path,
    timing: Timing,
    command: str = "",
    every: int = 1,
    dense: Variant = DENSE,
    videos: bool = True,
) -> Iterator[dict[str, Any]]:
    """A row for the reference and for each variant of each request, in order; also written to rows.jsonl in `folder`.

    dense: how the reference is made. every: velocities are compared at each `every`-th step. videos: else only that is
    done, in a fraction of the time, and rows of variants have no video. Raises FpsgenError as pipeline.run.run does,
    and DISK before any work where a video of other settings has the name of one that is to be made.
    """
    rows = read_rows(folder)
    known = _known(rows)
    dense = dataclasses.replace(dense, of_teacher=True)
    filmed = [dense, *(variants if videos else ())]  # those that get a video
    keys = [[_key(models, request, each, each in filmed) for each in (dense, *variants)] for request in requests]
    _refuse_others(
        rows,
        {
            _video(folder, each, number, request): key
            for number, request in enumerate(requests)
            for each, key in zip(filmed, keys[number], strict=False)
        },
    )
    missing = [number for number, each in enumerate(keys) if not all(key in known for key in each)]
    steps = sum(requests[n].sampling.steps * (1 + sum(key not in known for key in keys[n][1:])) for n in missing)
    progress = Progress(timing, steps)
    student, teacher = _load(models, timing) if missing else (None, None)
    with timing.stage("evaluate"):
        for number, (request, each) in enumerate(zip(requests, keys, strict=True)):
            if number not in missing or student is None or teacher is None:
                yield from (known[key] for key in each)
                continue
            common = {"schema": SCHEMA, **provenance(student.device), "command": command, "every": every}
            common |= {"dtype": dtype_name(student.dtype), "teacher": models.teacher.model.spec.name}
            reference = _make(teacher, models.by_teacher(request), dense, (folder, number, each[0], progress), True)
            for key, variant in zip(each, (dense, *variants), strict=True):
                if key not in known:
                    model, wanted = (teacher, models.by_teacher(request)) if variant.of_teacher else (student, request)
                    row = {**common, "key": key, **setting_of(request), "model": wanted.model.spec.name}
                    values = variant.of(wanted).values()
                    row |= {"cache": values["cache"], "cfg_until": values["cfg_until"], "fused": not values["exact"]}
                    place = (folder, number, key, progress) if variant in filmed else None
                    row |= _measure(model, wanted, variant, reference, place, every)
                    append_line(folder / ROWS, json.dumps(row))
                    known[key] = row
                yield known[key]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that stand in a folder; a last line that was cut off does not count."""
    return [row for row in read_objects(folder / ROWS, _LIMIT) if row.get("schema") == SCHEMA]


def _refuse_others(rows: list[dict[str, Any]], keys: dict[Path, str]) -> None:
    """Raise FpsgenError DISK where a file is not the video of its key, by the folder's rows or by its own recipe (that
    of a run which was stopped has no row). keys: by path.
    """
    owners = {row["video"]: row["key"] for row in rows}
    for path, key in keys.items():
        if os.path.lexists(path) and owners.get(str(path)) != key and _key_in(path) != key:
            what = f"{show(path)} exists already, and was made with other settings"
            raise FpsgenError(what, "name another folder with -o, or remove this one", DISK)


def _key_in(path: Path) -> str | None:
    try:
        return (read_recipe(path) or {}).get(KEY)
    except FpsgenError:
        return None


def _known(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows that need not be made again, by key: their video is there, and no other row's was written over it."""
    latest = {row["video"]: row["key"] for row in rows}
    return {
        row["key"]: row
        for row in rows
        if not row["video"] or (latest[row["video"]] == row["key"] and Path(row["video"]).is_file())
    }


def _measure(
    model: LoadedModel,
    request: GenerateRequest,
    variant: Variant,
    dense: _Made,
    place: _Place | None,
    every: int,
) -> dict[str, Any]:
    """All figures of one video. The reference has no error, but is read as the others are. place: of the video, None
    where none is wanted.
    """
    if variant.name == REFERENCE:
        figures = quality(dense.frames, None)
        return {**dense.row, **figures, "velocity": {}, "shows": agreement(request.prompt.text, dense.frames)}
    if place is None:
        velocity, report = _velocity(model, request, variant, dense.forwards, every)
        row = _of_variant(variant, report) | {"denoise_s": None, "video": ""} | dict.fromkeys(QUALITY)
        return {**row, "velocity": velocity, "shows": None}
    made = _make(model, request, variant, place, False)
    figures = quality(made.frames, dense.frames, made.path, dense.path)
    velocity, _ = _velocity(model, request, variant, dense.forwards, every)
    return {**made.row, **figures, "velocity": velocity, "shows": agreement(request.prompt.text, made.frames)}


def _make(
    model: LoadedModel,
    request: GenerateRequest,
    variant: Variant,
    place: _Place,
    keep: bool,
) -> _Made:
    folder, number, key, progress = place
    path = _video(folder, variant, number, request)
    own = Timing(progress.named(variant.name))
    wanted = variant.of(request).replace(output={"path": path, "numbered": False, "overwrite": True})
    with recorded(model.pipe.transformer) as forwards:
        made = render(model, wanted, own)
        if not keep:
            forwards.clear()
    assert made.frames is not None
    row = _of_variant(variant, made.attention) | {"denoise_s": round(own.stages["denoise"], 4)}
    row["video"] = str(write_output(made.frames, wanted, made.recipe | {KEY: key}))
    return _Made(made.frames, path, forwards, row)


def _video(folder: Path, variant: Variant, number: int, request: GenerateRequest) -> Path:
    """The name of a video."""
    return folder / variant.name / f"{number:03d}-{slug(request.prompt.text)}-{request.sampling.seed}.mp4"


def _of_variant(variant: Variant, attention: dict[str, Any]) -> dict[str, Any]:
    """What a row says of a variant. attention: the handle's report."""
    return {
        "variant": variant.name,
        "method": variant.method or AS_SCHEDULED,
        "schedule": attention["schedule"],
        "linear": linear_of(attention),
        "density": mean_density(attention),
        "kernels": attention["kernels"],
    }


def _velocity(
    model: LoadedModel, request: GenerateRequest, variant: Variant, forwards: list[Forward], every: int
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """By profile: steps that were compared, and means of cosine, mse and snr_db of the velocity. And what ran."""
    found: dict[str, list[dict[str, float]]] = {}
    with patched(model.pipe, variant.of(request)) as handle:
        for step in step_errors(model.pipe.transformer, handle, forwards, request.sampling.steps, every):
            found.setdefault(step.ran["profile"], []).append(step.error)
        report = handle.report()
    return {profile: {"steps": len(errors), **mean_errors(errors)} for profile, errors in found.items()}, report


def _load(models: Models, timing: Timing) -> tuple[LoadedModel, LoadedModel]:
    student = load_model(models.student, timing)
    return student, student if models.one else load_model(models.teacher, timing)


def _key(models: Models, request: GenerateRequest, variant: Variant, videos: bool) -> str:
    """16 hex digits of what decides a row: request, variant, and the weights of both models."""
    if variant.of_teacher:  # the same for every student
        models, request = Models(models.teacher, models.teacher), models.by_teacher(request)
    what = [variant.of(request).deciding(), variant.name, videos, *map(_weights, models)]
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
