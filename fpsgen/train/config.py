"""What a training run is made of, from a preset or a TOML file. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fpsgen.attention.presets import PRESETS as SCHEDULES
from fpsgen.attention.schedule import AS_SCHEDULED, LINEAR_PARTS, Schedule
from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.fields import Field, Spec, choice, fields, many, raw, real, switch, text, whole
from fpsgen.files import read_json, read_text, read_toml
from fpsgen.settings.groups.speed import LINEARS
from fpsgen.text import show, split_lines

_LIMIT = 1 << 20
EXAMPLE = (
    'a run has model = "nano", schedule = "run-schedule.toml", prompts = ["a cat surfing"] and held_out = 0 or more'
)
STORED, LIVE = "stored", "live"


@dataclass(frozen=True)
class TrainConfig:
    """One run. Steps are optimizer steps.

    model: a name of the registry, or a folder. schedule: as TOML text. width, height, frames, shift: of the videos.
    distill, flow: weights of the two losses. prompts: the teacher makes a trajectory of each, by teacher_steps and
    guidance; the last held_out of them are for validation alone. data: a folder of `fpsgen train prep` for flow;
    without one, flow leads to the ends of the teacher's trajectories. teacher: "stored" makes all pairs before the
    first step, "live" while the run goes, with a frozen copy of the model beside it. batch: samples a step;
    micro_batch: samples a forward, 0 for all of the batch. null_share: share of steps (distill) or samples (flow)
    without a prompt. linear: "fp8" or "bf16" for all linear layers of the blocks, else as the schedule says.
    density_ramp: steps from dense attention to the schedule's. lora_rank: 0 trains all weights. ema: decay of the
    averaged weights. save_every, keep: steps between checkpoints, and how many are kept. dense_every: steps between
    measurements of the loss with dense attention, 0 for none. sample_every: steps between validation videos, 0 for
    none.
    """

    name: str
    model: str
    schedule: str
    width: int
    height: int
    frames: int
    steps: int
    prompts: tuple[str, ...] = ()
    held_out: int = 0
    data: str = ""
    distill: float = 1.0
    flow: float = 0.0
    teacher: str = STORED
    teacher_steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    batch: int = 1
    micro_batch: int = 0
    lr: float = 1e-5
    weight_decay: float = 0.01
    adam_eps: float = 1e-8
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.99
    null_share: float = 0.1
    linear: str = AS_SCHEDULED
    density_ramp: int = 0
    lora_rank: int = 0
    checkpointing: bool = True
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    dense_every: int = 50
    sample_every: int = 0

    def __post_init__(self) -> None:
        if not (self.distill or self.flow):
            raise FpsgenError(
                "distill and flow are both 0", "give one of them a weight, such as distill = 1", BAD_INPUT
            )
        if self.uses_teacher and self.held_out >= len(self.prompts):
            raise FpsgenError(
                f"held_out is {self.held_out}, and there are {len(self.prompts)} prompts",
                "leave at least one prompt to train on",
                BAD_INPUT,
            )
        if self.density_ramp > self.steps:
            what = f"density_ramp is {self.density_ramp}, more than the {self.steps} steps"
            raise FpsgenError(what, "shorten the ramp: a run has to end with its schedule", BAD_INPUT)
        if self.micro_batch and self.batch % self.micro_batch:
            raise FpsgenError(
                f"batch is {self.batch}, not a multiple of micro_batch {self.micro_batch}", "change one", BAD_INPUT
            )
        self.parsed_schedule()

    @property
    def uses_teacher(self) -> bool:
        """Whether pairs of a teacher are needed."""
        return bool(self.distill) or not self.data

    def parsed_schedule(self) -> Schedule:
        """What is trained for; `linear` is part of it."""
        try:
            schedule = Schedule.from_toml(self.schedule)
        except ValueError as error:
            what, _, remedy = str(error).partition("\n")
            raise FpsgenError(f"schedule: {what}", remedy or EXAMPLE, BAD_INPUT) from error
        if self.linear == AS_SCHEDULED:
            return schedule
        return replace(schedule, fp8_linear=LINEAR_PARTS if self.linear == "fp8" else ())

    def digest(self, names: tuple[str, ...] | None = None) -> str:
        """Of what decides the weights, or of the settings named: equal digests, equal runs."""
        values = {
            key: value
            for key, value in asdict(self).items()
            if (key not in _OBSERVING if names is None else key in names)
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """As from_json reads it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> TrainConfig:
        """Raises FpsgenError BAD_INPUT."""
        what = f"run {show(path)}"
        spec = {**_FIELDS, "schedule": raw(_LIMIT), "prompts": many(text(10_000), 0, 100_000)}
        return cls(
            **fields(read_json(path, _LIMIT, what), spec, what, example=f"{show(path)} is no run of this version")
        )


_OBSERVING = ("save_every", "keep", "dense_every", "sample_every")  # change nothing but what is seen of a run
PRESETS = ("nano-demo", "wan-1.3b", "wan-1.3b-lora", "wan-14b-lora", "wan-1.3b-flow")  # files in presets/


def preset(name: str) -> TrainConfig:
    """A run that comes with fpsgen; its data lies in the working folder. Raises FpsgenError USAGE for a name that does
    not exist.
    """
    if name not in PRESETS:
        raise FpsgenError(f"no preset is named {show(name)}", f"choose from {', '.join(PRESETS)}", USAGE)
    return read_config(Path(__file__).with_name("presets") / f"{name}.toml", Path.cwd())


def read_config(path: Path, data_from: Path | None = None) -> TrainConfig:
    """A run from a TOML file. Files that it names are relative to it; its data is to the folder `data_from`, if given.
    Raises FpsgenError BAD_INPUT naming the key.
    """
    what = f"run {path}"
    values = fields(read_toml(path, _LIMIT, what), _FIELDS, what, example="")
    wanted = values["schedule"]
    if wanted in SCHEDULES:
        values["schedule"] = SCHEDULES[wanted].to_toml()
    else:
        file = path.parent / wanted
        values["schedule"] = read_text(file, _LIMIT, f"schedule {file}")
    if isinstance(values["prompts"], str):
        file = path.parent / values["prompts"]
        lines = (line.strip() for line in split_lines(read_text(file, _LIMIT, f"prompts {file}")))
        values["prompts"] = tuple(line for line in lines if line and not line.startswith("#"))
    if values["data"]:
        values["data"] = str(((data_from or path.parent) / values["data"]).resolve())
    return TrainConfig(**values)


def _prompts(value: object) -> Any:
    return (text(1000) if isinstance(value, str) else many(text(10_000), 0, 100_000)).check(value)


def _with_defaults(spec: dict[str, Field]) -> Spec:
    """The same, with TrainConfig's default for a key that is left out."""
    default = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}
    return {n: field if default[n] is MISSING else replace(field, default=default[n]) for n, field in spec.items()}


_FIELDS: Spec = _with_defaults(
    {
        "name": text(60),
        "model": text(1000),
        "schedule": text(1000),
        "width": whole(16, 8192),
        "height": whole(16, 8192),
        "frames": whole(1, 1025),
        "steps": whole(1, 10_000_000),
        "prompts": Field(_prompts, "a list of texts, or the name of a file with one a line"),
        "held_out": whole(0, 10_000),
        "data": text(1000, empty=True),
        "distill": real(0, 1e6),
        "flow": real(0, 1e6),
        "teacher": choice((STORED, LIVE)),
        "teacher_steps": whole(1, 1000),
        "guidance": real(0, 100),
        "shift": real(0.01, 100),
        "batch": whole(1, 10_000),
        "micro_batch": whole(0, 10_000),
        "lr": real(0, 1),
        "weight_decay": real(0, 10),
        "adam_eps": real(0, 1),
        "warmup": whole(0, 10_000_000),
        "clip": real(0, 1e9),
        "ema": real(0, 1),
        "null_share": real(0, 1),
        "linear": choice((AS_SCHEDULED, *LINEARS)),
        "density_ramp": whole(0, 10_000_000),
        "lora_rank": whole(0, 4096),
        "checkpointing": switch(),
        "seed": whole(0, 2**31 - 1),
        "save_every": whole(1, 10_000_000),
        "keep": whole(1, 1000),
        "dense_every": whole(0, 10_000_000),
        "sample_every": whole(0, 10_000_000),
    }
)
