"""What a training run is made of, from a preset or a TOML file. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fpsgen.attention.presets import PRESETS as SCHEDULES
from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.fields import Spec, fields, many, real, switch, text, whole
from fpsgen.files import read_text, read_toml
from fpsgen.text import show

_LIMIT = 1 << 20
EXAMPLE = (
    'a run has model = "nano", schedule = "run-schedule.toml", prompts = ["a cat surfing"] and held_out = 0 or more'
)

NANO_DEMO_SCHEDULE = """
name = "nano-demo"
trained = false
dense_layers = []
windows = [
  { low = 0.0, high = 0.4655, profile = "late" },
  { low = 0.4655, high = 0.934, profile = "middle" },
  { low = 0.934, high = 1.0, profile = "early" },
]

[[profiles]]
name = "early"
method = "fps"
tile = [3, 10, 2]
window = [1, 0, 3]
granularity = 8

[[profiles]]
name = "middle"
method = "fps"
tile = [3, 10, 2]
window = [0, 0, 3]
granularity = 1

[[profiles]]
name = "late"
method = "fps"
tile = [3, 10, 2]
window = [1, 0, 5]
granularity = 2
"""


@dataclass(frozen=True)
class TrainConfig:
    """One run. Steps are optimizer steps.

    model: a name of the registry, or a folder. schedule: as TOML text. prompts: the teacher makes a trajectory of each;
    the last held_out of them are for validation alone. width, height, frames, teacher_steps, guidance, shift: of the
    teacher's videos. batch: pairs a step. null_share: share of steps that train the branch without a prompt. flow:
    weight of the flow-matching loss beside the distillation loss. lora_rank: 0 trains all weights. ema: decay of the
    averaged weights. save_every, keep: steps between checkpoints, and how many are kept.
    """

    name: str
    model: str
    schedule: str
    prompts: tuple[str, ...]
    held_out: int
    width: int
    height: int
    frames: int
    teacher_steps: int
    guidance: float
    shift: float
    steps: int
    batch: int = 1
    lr: float = 1e-5
    weight_decay: float = 0.01
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.99
    null_share: float = 0.2
    flow: float = 0.0
    lora_rank: int = 0
    checkpointing: bool = True
    seed: int = 0
    save_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        if self.held_out >= len(self.prompts):
            raise FpsgenError(
                f"held_out is {self.held_out}, and there are {len(self.prompts)} prompts",
                "leave at least one prompt to train on",
                BAD_INPUT,
            )
        self.parsed_schedule()

    def parsed_schedule(self) -> Schedule:
        try:
            return Schedule.from_toml(self.schedule)
        except ValueError as error:
            what, _, remedy = str(error).partition("\n")
            raise FpsgenError(f"schedule: {what}", remedy or EXAMPLE, BAD_INPUT) from error

    def digest(self, names: tuple[str, ...] | None = None) -> str:
        """Of all settings, or of those named: equal digests, equal runs."""
        values = {key: value for key, value in asdict(self).items() if names is None or key in names}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


PRESETS = {
    "nano-demo": TrainConfig(
        name="nano-demo",
        model="nano",
        schedule=NANO_DEMO_SCHEDULE,
        prompts=(
            "a red ball bouncing over grass",
            "a blue star circling in a night sky",
            "a green fish swimming to the right in the sea",
            "a yellow fish swimming to the left in the sea",
            "a purple ball bouncing in a desert",
            "a cat surfing",
            "a white star rising in a night sky",
            "an orange ball bouncing over grass",
        ),
        held_out=2,
        width=256,
        height=160,
        frames=33,
        teacher_steps=20,
        guidance=4.0,
        shift=3.0,
        steps=200,
        batch=2,
        lr=2e-4,
        warmup=10,
        ema=0.97,
        checkpointing=False,
        save_every=50,
    )
}


def preset(name: str) -> TrainConfig:
    """Raises FpsgenError USAGE for a name that does not exist."""
    if name not in PRESETS:
        raise FpsgenError(f"no preset is named {show(name)}", f"choose from {', '.join(PRESETS)}", USAGE)
    return PRESETS[name]


def read_config(path: Path) -> TrainConfig:
    """A run from a TOML file. Raises FpsgenError BAD_INPUT naming the key."""
    what = f"run {path}"
    values = fields(read_toml(path, _LIMIT, what), _FIELDS, what, example="")
    wanted = values["schedule"]
    if wanted in SCHEDULES:
        values["schedule"] = SCHEDULES[wanted].to_toml()
    else:
        file = path.parent / wanted
        values["schedule"] = read_text(file, _LIMIT, f"schedule {file}")
    return TrainConfig(**values)


def shortened(config: TrainConfig, steps: int | None) -> TrainConfig:
    return config if steps is None else replace(config, steps=steps)


_BASE: dict[str, Any] = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}
_FIELDS: Spec = {
    "name": text(60),
    "model": text(1000),
    "schedule": text(1000),
    "prompts": many(text(10_000), 1, 100_000),
    "held_out": whole(0, 10_000, 0),
    "width": whole(16, 8192),
    "height": whole(16, 8192),
    "frames": whole(1, 1025),
    "teacher_steps": whole(1, 1000, 50),
    "guidance": real(0, 100, 5.0),
    "shift": real(0.01, 100, 5.0),
    "steps": whole(1, 10_000_000),
    "batch": whole(1, 10_000, _BASE["batch"]),
    "lr": real(0, 1, _BASE["lr"]),
    "weight_decay": real(0, 10, _BASE["weight_decay"]),
    "warmup": whole(0, 10_000_000, _BASE["warmup"]),
    "clip": real(0, 1e9, _BASE["clip"]),
    "ema": real(0, 1, _BASE["ema"]),
    "null_share": real(0, 1, _BASE["null_share"]),
    "flow": real(0, 1e6, _BASE["flow"]),
    "lora_rank": whole(0, 4096, _BASE["lora_rank"]),
    "checkpointing": switch(_BASE["checkpointing"]),
    "seed": whole(0, 2**31 - 1, _BASE["seed"]),
    "save_every": whole(1, 10_000_000, _BASE["save_every"]),
    "keep": whole(1, 1000, _BASE["keep"]),
}
