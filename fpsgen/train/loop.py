"""The training loop: sparse forward, straight-through backward, AdamW, averaged weights, checkpoints, one line a step.

Exact resume: a step's data and noise follow from (seed, step), and a checkpoint holds weights, averages and both
moments of the optimizer in fp32, so a run that was killed gives the numbers of one that was not (same machine).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fpsgen.attention.windows import Size3
from fpsgen.errors import BAD_INPUT, NUMERIC, USAGE, FpsgenError
from fpsgen.models.patch.apply import Handle, apply
from fpsgen.models.patch.linear import FP8Linear
from fpsgen.models.patch.schedule_choice import no_schedule_warning
from fpsgen.signals import check_stop
from fpsgen.train import checkpoint
from fpsgen.train.config import TrainConfig
from fpsgen.train.events import Events
from fpsgen.train.log import Log
from fpsgen.train.lora import add_lora
from fpsgen.train.objective import Objective, Source, rows, velocity_error
from fpsgen.train.parallel import Processes
from fpsgen.train.ramp import ramp_stage, ramped
from fpsgen.train.weights import Weights, learning_rate

LOST = 10.0  # an error of so many mean squares of the velocity: what was learnt before is gone (predicting 0 has 1)


def samples_each(config: TrainConfig, processes: int) -> int:
    """Samples of a batch that one process computes. Raises FpsgenError USAGE where the batch cannot be shared."""
    each = config.batch // processes
    if config.batch % processes or (config.micro_batch and each % config.micro_batch):
        what = f"batch {config.batch} cannot be shared by {processes} processes"
        raise FpsgenError(what, "change batch or micro_batch, or the number of processes", USAGE)
    return each


class Trainer:
    """One run in a folder. transformer: a WanTransformer3DModel, unpatched, on its device; it is patched with the run's
    schedule until close(). Its weights are trained, or, with LoRA, those of an adapter that it gets.
    """

    def __init__(self, transformer: Any, config: TrainConfig, folder: Path, grid: Size3, processes: Processes) -> None:
        """grid: tokens (T, H, W) of the run's videos. Raises FpsgenError USAGE where the batch cannot be shared."""
        self._count = samples_each(config, processes.count)
        self.config, self.folder, self.transformer = config, folder, transformer
        self.grid, self.processes, self.log = grid, processes, Log(folder, config.density_ramp)
        self.device, self.dtype = transformer.device, transformer.dtype
        if config.lora_rank:
            add_lora(transformer, config.lora_rank, config.seed)
        else:
            transformer.requires_grad_(True)
        processes.shard(transformer)
        if config.checkpointing:
            transformer.enable_gradient_checkpointing()
        self.weights = Weights(transformer, config)
        self.step = 0
        self._handle: Handle | None = None
        self._stage = -1

    def resume(self) -> int:
        """Go on from the newest whole checkpoint of the folder, if there is one; the step to be done next.

        Raises FpsgenError BAD_INPUT for a checkpoint of a run with other settings.
        """
        found = checkpoint.latest(self.folder)
        if found is not None:
            step, tensors, state = found
            if state.get("config") != self.config.digest():
                raise FpsgenError(
                    f"{self.folder} holds a run with other settings", "name another folder with -o", BAD_INPUT
                )
            self.weights.load(tensors, step)
            self.step = step
        self.processes.wait()
        if self.processes.first:
            self.log.begin(self.step)
        return self.step

    def run(self, objectives: Sequence[Objective], events: Events, sample: Callable[[int], None] | None = None) -> None:
        """Train up to config.steps. sample: called every config.sample_every steps, with the averaged weights in the
        unpatched transformer. Raises FpsgenError NUMERIC where a loss or gradient is not finite, an error is above
        LOST, or losses rise; checkpoints from before stay.
        """
        config = self.config
        self.transformer.train()
        while self.step < config.steps:
            check_stop()
            began = time.monotonic()
            row = self._one(objectives)
            row["seconds"] = round(time.monotonic() - began, 4)
            ended = self.step == config.steps
            to_save = self.step % config.save_every == 0 or ended
            if to_save:
                row["held_out"] = self.error(objectives[0].held_out)
            if self.processes.first:
                self.log.add(row)
            events.step(self.step - 1, config.steps, f"loss {row['loss']:.4g}, {row['profile']}")
            if to_save:
                self._check(row["held_out"])
                self.save()
            if sample and config.sample_every and self.step % config.sample_every == 0 and not ended:
                self._show(sample)
        self.transformer.eval()

    def _check(self, held_out: dict[str, float]) -> None:
        """Before a checkpoint. Raises FpsgenError NUMERIC where it would keep weights that are lost."""
        self.log.check(self.step)
        for profile, error in held_out.items():
            if not error <= LOST:
                what = f"step {self.step}: the held-out error of profile {profile} is {error:.3g} mean squares"
                raise FpsgenError(what, "lower lr and use another folder; the last checkpoint is kept", NUMERIC)

    def save(self) -> None:
        """Raises FpsgenError DISK. Every process must call it."""
        tensors = self.weights.tensors()
        if self.processes.first:
            checkpoint.save(self.folder, self.step, tensors, {"config": self.config.digest()}, self.config.keep)
            self.log.show(self.config.name)
        self.processes.wait()

    def error(self, source: Source, limit: int = 8) -> dict[str, float]:
        """Mean squared error of the velocity by profile, over the mean square of what it should be, on up to `limit`
        samples of each; by the averaged weights.
        """
        was = self.transformer.training
        self.transformer.eval()
        self._patch(self.config.steps)
        found = {}
        with torch.no_grad(), self.weights.averaged():
            for profile in source.profiles:
                wrong = power = 0.0
                for batch in source.every(profile, 1, limit):
                    check_stop()
                    wrong += float(velocity_error(self.transformer, self._handle, batch, self.dtype))
                    power += float(batch.velocity.square().mean())
                if power:
                    found[profile] = wrong / power
        self.transformer.train(was)
        return found

    def close(self) -> None:
        self._unpatch()
        self.log.close()
        if self.config.checkpointing:
            self.transformer.disable_gradient_checkpointing()
        self.transformer.requires_grad_(False)

    def _one(self, objectives: Sequence[Objective]) -> dict[str, Any]:
        config, step = self.config, self.step
        self._patch(step)
        parts, lost = {}, False
        for objective in objectives:
            batch = objective.train.draw(step, config.seed, config.batch, config.null_share)
            batch = rows(batch, self.processes.rank * self._count, self._count)
            with_dense = bool(config.dense_every) and step % config.dense_every == 0
            dense = {"dense_loss": self._dense_loss(batch)} if with_dense else {}
            self._patch(step)
            loss = self._backward(batch, objective.weight)
            power = float(self.processes.mean(batch.velocity.float().square().mean().to(self.device)))
            lost |= loss > LOST * power
            seen = self._handle.latest_step() if self._handle else None
            parts[objective.name] = {
                "loss": loss,
                **dense,
                "profile": batch.profile,
                "sigma": round(float(batch.sigmas[0]), 6),
                "density": None if seen is None or seen["density"] is None else round(seen["density"], 4),
            }
        total = sum(objective.weight * parts[objective.name]["loss"] for objective in objectives)
        norm = self.weights.clip()
        if lost or not (math.isfinite(total) and math.isfinite(norm)):
            self.weights.forget_gradients()
            what = f"step {step}: the loss is {total}, the gradient's norm {norm}"
            raise FpsgenError(what, "lower lr; the last checkpoint is kept", NUMERIC)
        self.weights.step(step)
        self.step += 1
        first = parts[objectives[0].name]
        common = {"step": self.step, "loss": total, "profile": first["profile"], "density": first["density"]}
        return common | {
            "grad_norm": norm,
            "lr": learning_rate(config, step),
            "samples": config.batch * len(objectives),
            "objectives": parts,
        }

    def _backward(self, batch: Any, weight: float) -> float:
        """Gradients of the loss, in parts of config.micro_batch samples; the loss over all processes."""
        count = len(batch.latents)
        size = self.config.micro_batch or count
        total = torch.zeros((), device=self.device)
        for first in range(0, count, size):
            loss = velocity_error(self.transformer, self._handle, rows(batch, first, size), self.dtype)
            (weight * loss * (size / count)).backward()
            self.weights.collect()
            total += loss.detach() * (size / count)
        return float(self.processes.mean(total))

    @torch.no_grad()
    def _dense_loss(self, batch: Any) -> float:
        """Of the same weights with dense bf16 attention and linear layers as they are."""
        self._unpatch()
        return float(self.processes.mean(velocity_error(self.transformer, None, batch, self.dtype)))

    def _show(self, sample: Callable[[int], None]) -> None:
        self._unpatch()
        self.transformer.eval()
        with self.weights.averaged(), _no_checkpointing(self.transformer, self.config.checkpointing):
            sample(self.step)
        self.transformer.train().requires_grad_(False)
        for p in self.weights.used.values():
            p.requires_grad_(True)

    def _patch(self, step: int) -> None:
        """Make the transformer run by the schedule of this step."""
        stage = ramp_stage(step, self.config.density_ramp)
        if self._handle is not None and stage == self._stage:
            self._handle.clear_report()
            if self.processes.count > 1:  # sharded weights change without counting it
                for module in self.transformer.modules():
                    if isinstance(module, FP8Linear):
                        module.forget()
            return
        self._unpatch()
        schedule = ramped(self.config.parsed_schedule(), stage, self.grid)
        with no_schedule_warning():  # these weights are about to be trained for this schedule
            self._handle = apply(self.transformer, schedule=schedule, exact=True)
        self._stage = stage

    def _unpatch(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


@contextmanager
def _no_checkpointing(transformer: Any, on: bool) -> Iterator[None]:
    if on:
        transformer.disable_gradient_checkpointing()
    try:
        yield
    finally:
        if on:
            transformer.enable_gradient_checkpointing()
