"""A run from top to bottom: pairs, training, held-out error, export. What is done already is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import fields, real
from fpsgen.files import make_folder, read_json, used_alone, write_text
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.models.peft import check_peft
from fpsgen.models.wan.load import load
from fpsgen.report.training import BEFORE
from fpsgen.text import show
from fpsgen.train.clips import TrajectoryEnds, open_folder
from fpsgen.train.config import LIVE, TrainConfig
from fpsgen.train.data import Pairs
from fpsgen.train.estimate import MeasuredCost, cost, estimate
from fpsgen.train.events import Events, Silent
from fpsgen.train.export import RUN, export_folder
from fpsgen.train.inputs import check_inputs, choose_model
from fpsgen.train.loop import Trainer, samples_each
from fpsgen.train.objective import DISTILL, FLOW, Objective, Source
from fpsgen.train.parallel import Processes, processes
from fpsgen.train.teacher import dense_copy, live_pairs, make_pairs

Sample = Callable[[Any, ModelChoice, Path, bool], None]


@dataclass(frozen=True)
class TrainResult:
    """model: the exported folder. report: held-out errors before and after, steps, settings."""

    model: Path
    report: dict[str, Any]


def train(
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    prepared: Events,
    stepped: Events,
    note: Callable[[str, str], None] = lambda name, text: None,
    sample: Sample | None = None,
) -> TrainResult:
    """Everything in `folder`: run.json, pairs/, step-*/, log.jsonl, page.html, report.json, model/. A run that was
    stopped goes on where it was. torchrun's processes share one run.

    prepared, stepped: get prompts and steps that are done. note: gets figures in one line, by name. sample: makes
    a validation video: (pipe, model, path, whether this process writes it). Raises FpsgenError.
    """
    choice = choose_model(config)
    if config.lora_rank:
        check_peft()
    with processes(device) as shared, _own_folder(config, folder, shared):
        for name, text in estimate(config, choice, shared):
            note(name, text)
        _remember(config, choice, folder, shared)
        pipe: Any = load(choice, device=shared.device)
        objectives = _objectives(pipe, config, choice, folder, shared, prepared)
        if config.sample_every:
            _move(pipe, torch.device("cpu"))
        else:
            pipe.vae, pipe.text_encoder = None, None
        grid = choice.geometry.token_grid(config.width, config.height, config.frames)
        trainer = Trainer(pipe.transformer, config, folder, grid, shared)
        main = objectives[0]
        before = _before(trainer, main, folder)
        trainer.resume()

        def show(step: int) -> None:
            assert sample is not None
            _move(pipe, shared.device)
            sample(pipe, choice, folder / f"step-{step:07d}.mp4", shared.first)
            _move(pipe, torch.device("cpu"))

        steps = MeasuredCost(stepped, note, shared) if shared.first else Silent()
        trainer.run(objectives, steps, show if sample else None)
        errors = {"before": before, "after": trainer.error(main.held_out)}
        note("cost", f"{cost(trainer.log.seconds, shared)} of training")
        report = {
            "name": config.name,
            "objective": main.name,
            "steps": config.steps,
            "samples": len(main.train),
            "held_out_error": errors,
            "hours": round(trainer.log.seconds * shared.count / 3600, 4),
            "processes": shared.count,
        }
        average = trainer.weights.tensors()["average"]
        trainer.close()
        model = folder / "model"
        if shared.first:
            if not model.exists():
                export_folder(choice, config, average, model, errors)
            write_text(json.dumps(report, indent=1) + "\n", folder / "report.json", overwrite=True)
        shared.wait()
    return TrainResult(model, report)


@contextmanager
def _own_folder(config: TrainConfig, folder: Path, shared: Processes) -> Iterator[None]:
    """The run's folder, made and held by the first process; not where these processes cannot share the batch."""
    samples_each(config, shared.count)
    make_folder(folder)
    with used_alone(folder) if shared.first else nullcontext():
        yield


def _move(pipe: Any, device: torch.device) -> None:
    """What only videos need goes to this device."""
    pipe.vae.to(device)
    pipe.text_encoder.to(device)


def _remember(config: TrainConfig, choice: ModelChoice, folder: Path, shared: Processes) -> None:
    """Raises FpsgenError BAD_INPUT where the folder is of a run with other settings, model or data."""
    path = folder / RUN
    if path.exists() and TrainConfig.from_json(path).digest() != config.digest():
        raise FpsgenError(f"{folder} holds a run with other settings", "name another folder with -o", BAD_INPUT)
    check_inputs(folder, choice, config.data, write=False)
    shared.wait()
    if shared.first:
        write_text(config.to_json(), path, overwrite=True)
        check_inputs(folder, choice, config.data)


def _objectives(
    pipe: Any, config: TrainConfig, choice: ModelChoice, folder: Path, shared: Processes, events: Events
) -> list[Objective]:
    """What is trained on, the one with the larger weight first."""
    schedule = config.parsed_schedule()
    found = []
    if config.uses_teacher:
        pairs, held_out = _pairs(pipe, config, choice.spec.max_sequence_length, folder / "pairs", shared, events)
        if config.distill:
            found.append(Objective(DISTILL, config.distill, pairs, held_out))
        if config.flow and not config.data:
            found.append(Objective(FLOW, config.flow, TrajectoryEnds(pairs), TrajectoryEnds(held_out)))
    if config.flow and config.data:
        size = (config.width, config.height, config.frames)
        opened = open_folder(Path(config.data), size, pipe.transformer.config, schedule, config.shift)
        found.append(Objective(FLOW, config.flow, *opened))
    return sorted(found, key=lambda objective: -objective.weight)


def _pairs(
    pipe: Any, config: TrainConfig, tokens: int, folder: Path, shared: Processes, events: Events
) -> tuple[Source, Source]:
    """Pairs of the teacher to train on, and those of the held-out prompts (the same ones where none is held out)."""
    schedule = config.parsed_schedule()
    live = config.teacher == LIVE
    stored = config
    if live:  # only what is measured is stored
        stored = replace(config, prompts=config.prompts[len(config.prompts) - config.held_out :], held_out=0)
    shards = []
    if shared.first and stored.prompts:
        shards = make_pairs(pipe, stored, tokens, folder, events)
    shared.wait()
    shards = shards or sorted(folder.glob("*.safetensors"))
    if live:
        pairs = live_pairs(dense_copy(pipe), config, tokens)
        return pairs, Pairs(shards, schedule) if shards else pairs
    kept = len(shards) - config.held_out
    return Pairs(shards[:kept], schedule), Pairs(shards[kept:] or shards, schedule)


def _before(trainer: Trainer, main: Objective, folder: Path) -> dict[str, float]:
    """The error without training, measured once."""
    path = folder / BEFORE
    if not path.exists():
        measured = trainer.error(main.held_out)
        if trainer.processes.first:
            write_text(json.dumps(measured) + "\n", path)
        trainer.processes.wait()
    what = show(path)
    spec = dict.fromkeys(main.held_out.profiles, real(0, 1e30))
    return fields(read_json(path, 1 << 20, what), spec, what, example="remove it, and run again")
