"""Which model is meant, where it lies, and why that one. It is found out once, and travels on as a ModelChoice."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog.cache import HUB_ID, cached, fetchable, missing, on_disk
from fpsgen.models.catalog.folder import SCHEDULE, PipelineFolder, check_folder
from fpsgen.models.catalog.geometry import Geometry, Size, geometry_of
from fpsgen.models.catalog.machine import Machine, lacks, this_machine
from fpsgen.models.catalog.registry import ModelSpec, find_spec, models, shipped
from fpsgen.models.catalog.user_rows import AUTO
from fpsgen.models.catalog.vocabulary import Vocabulary, read_vocabulary
from fpsgen.text import nearest, show


@dataclass(frozen=True)
class Passed:
    """A better model that was not taken. fetchable: it fits and makes the size, and only is not on this machine."""

    spec: ModelSpec
    why: str
    fetchable: bool = False


@dataclass(frozen=True)
class ModelChoice:
    """The model that was chosen. pipeline: its folder as it was judged, None for one that is not on this machine.
    passed: better ones that were not taken, best first.
    """

    spec: ModelSpec
    pipeline: PipelineFolder | None
    reason: str
    passed: tuple[Passed, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Where the model lies, None for one that is not on this machine."""
        return self.pipeline.folder if self.pipeline is not None else None

    @property
    def geometry(self) -> Geometry:
        """Sizes that it can make: by its own configurations where it is here."""
        return geometry_of(self.pipeline.configs) if self.pipeline is not None else self.spec.geometry

    @property
    def replaced_scheduler(self) -> str | None:
        """The class of its scheduler, if UniPC takes that one's place."""
        return self.pipeline.replaced_scheduler if self.pipeline is not None else None

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The words that it knows, None where there is no such limit."""
        return read_vocabulary(self.pipeline.folder) if self.pipeline is not None else None


def choose(
    name: str = AUTO,
    res: str | Size | None = None,
    device: str = "auto",
    machine: Machine | None = None,
    missing_ok: bool = False,
) -> ModelChoice:
    """The model of that name. Nothing is downloaded.

    name: "auto" (the best model on disk that fits `machine` and makes `res`, else the embedded one), a name of the
    registry, a folder, or a hub id. missing_ok: a model that could be fetched comes back without a folder.
    Raises FpsgenError MODEL where it is missing (with the command that fetches it), not intact, or not known.
    """
    if name == AUTO:
        return _best(res, device, machine)
    spec = find_spec(name)
    if spec is not None:
        folder = on_disk(spec)
        if folder is None and not (missing_ok and not spec.embedded):
            raise missing(spec.name, spec)
        return ModelChoice(spec, None if folder is None else check_folder(folder), "chosen by name")
    path = os.path.expanduser(name)
    if name and os.path.isdir(path):
        pipeline = check_folder(Path(path).resolve())
        return ModelChoice(_describe(pipeline), pipeline, "chosen by folder")
    if HUB_ID.fullmatch(name) and not os.path.lexists(path):
        folder = cached(name, "main")
        if folder is None and missing_ok:
            return ModelChoice(_unseen(name), None, "chosen by repository")
        if folder is None:
            raise missing(name, None)
        pipeline = check_folder(folder)
        spec = replace(_describe(pipeline), name=name, source=name, revision=folder.name)
        return ModelChoice(spec, pipeline, "chosen by repository")
    what = "is a file, not a model folder" if os.path.lexists(path) else "is not known, and no such folder exists"
    known = [AUTO, *(spec.name for spec in models())]
    near = nearest(name, known)
    guess = f"did you mean {near}? Or " if near else ""
    remedy = f"{guess}choose from {', '.join(known)}, a folder, or OWNER/REPOSITORY"
    raise FpsgenError(f"model {show(name)!r} {what}", remedy, MODEL)


def _best(res: str | Size | None, device: str, machine: Machine | None) -> ModelChoice:
    """The last model of the registry that is on disk, whole, fits, and makes the size; the embedded one makes any,
    as it is scaled.
    """
    passed: list[Passed] = []
    for spec in reversed(models()):
        if not spec.embedded:
            machine = machine or (this_machine() if spec.min_memory_gb else None)
            lack = lacks(spec, machine, device) if machine is not None else ""
            if lack or not spec.makes(res):
                size = res if isinstance(res, str) or res is None else f"{res[0]}x{res[1]}"
                passed.append(Passed(spec, lack or f"does not make {size}"))
                continue
        try:
            folder = on_disk(spec)
            pipeline = None if folder is None else check_folder(folder)
        except FpsgenError as error:
            passed.append(Passed(spec, f"is not usable ({error.message})"))
            continue
        if pipeline is None:
            passed.append(Passed(spec, "is not on disk", fetchable=fetchable(spec)))
            continue
        reason = "; ".join(["the best model that is on disk and fits", *(f"{p.spec.name} {p.why}" for p in passed)])
        return ModelChoice(spec, pipeline, reason, tuple(passed))
    whys = "; ".join(f"{entry.spec.name} {entry.why}" for entry in passed)
    remedy = f"install fpsgen again (nano comes with it), or fetch one: fpsgen models pull {shipped()[1].name}"
    raise FpsgenError(f"no model on this machine can be used: {whys}", remedy, MODEL)


def _describe(pipeline: PipelineFolder) -> ModelSpec:
    """A spec for a folder that the registry does not know: the defaults of the known model nearest to it in size."""
    config = pipeline.configs["transformer"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    like = shipped()[0 if width < 1024 else 1 if width < 4096 else 2]
    geometry = geometry_of(pipeline.configs)
    tokens = pipeline.configs["tokenizer"]["model_max_length"] or like.max_sequence_length
    width, height = (max(geometry.side, side // geometry.side * geometry.side) for side in (like.width, like.height))
    sizes = {name: size for name, size in like.resolutions.items() if not geometry.refuses(*size, like.frames)}
    return replace(
        like,
        name=pipeline.folder.resolve().name,
        source=str(pipeline.folder),
        embedded=False,
        revision="local",
        description=f"local folder, defaults of {like.name}",
        licence="unknown",
        download_gb=0.0,
        width=width,
        height=height,
        resolutions=sizes,
        notes={name: text for name, text in like.notes.items() if name in sizes},
        trained_sizes=(),
        geometry=geometry,
        transformer={},
        max_sequence_length=int(min(tokens, like.max_sequence_length)),
        trained_schedule=os.path.lexists(pipeline.folder / SCHEDULE),
    )


def _unseen(repository: str) -> ModelSpec:
    """A spec for a hub repository of which nothing is known yet: the values of the smallest Wan model."""
    like = shipped()[1]
    own = {"name": repository, "source": repository, "revision": "main", "download_gb": 0.0, "transformer": {}}
    return replace(like, **own, description=f"not seen yet, defaults of {like.name}", licence="unknown")
