"""A run from top to bottom: pairs, training, held-out error, export. What is done already is not done again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fpsgen.files import lock, make_folder, write_text
from fpsgen.models.catalog.choice import choose
from fpsgen.models.wan.load import load
from fpsgen.train.config import TrainConfig
from fpsgen.train.data import Pairs
from fpsgen.train.events import Events
from fpsgen.train.export import export_folder
from fpsgen.train.loop import Trainer
from fpsgen.train.lora import merge_lora
from fpsgen.train.teacher import make_pairs


@dataclass(frozen=True)
class TrainResult:
    """model: the exported folder. report: held-out errors before and after, steps, settings."""

    model: Path
    report: dict[str, Any]


def train(config: TrainConfig, folder: Path, device: torch.device, prepared: Events, stepped: Events) -> TrainResult:
    """Everything in `folder`: pairs/, step-*/, log.jsonl, report.json, model/. prepared, stepped: told of prompts and
    of steps that are done. A run that was stopped goes on where it was. Raises FpsgenError.
    """
    make_folder(folder)
    with lock(folder / ".lock", f"{folder} is used by another run", "wait for it, or name another folder with -o"):
        choice = choose(config.model)
        assert choice.folder is not None
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        pipe: Any = load(choice, device=device, dtype=dtype)
        shards = make_pairs(pipe, config, choice.spec.max_sequence_length, folder / "pairs", prepared)
        kept = len(shards) - config.held_out
        schedule = config.parsed_schedule()
        pairs = Pairs(shards[:kept], schedule)
        held_out = Pairs(shards[kept:] or shards, schedule)
        pipe.vae, pipe.text_encoder = None, None
        trainer = Trainer(pipe.transformer, config, folder)
        before = _before(trainer, held_out, folder)
        trainer.resume()
        trainer.run(pairs, stepped)
        trainer.use_average()
        errors = {"before": before, "after": trainer.error(held_out)}
        trainer.close()
        if config.lora_rank:
            merge_lora(pipe.transformer)
        report = {"name": config.name, "steps": config.steps, "pairs": len(pairs), "held_out_error": errors}
        model = folder / "model"
        if not model.exists():
            export_folder(choice.folder, pipe.transformer, config, model, errors)
        write_text(json.dumps(report, indent=1) + "\n", folder / "report.json", overwrite=True)
    return TrainResult(model, report)


def _before(trainer: Trainer, held_out: Pairs, folder: Path) -> dict[str, float]:
    """The error without training, measured once."""
    path = folder / "before.json"
    if not path.exists():
        write_text(json.dumps(trainer.error(held_out)) + "\n", path)
    return json.loads(path.read_text(encoding="utf-8"))
