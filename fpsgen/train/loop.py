"""The training loop: sparse forward, straight-through backward, AdamW, averaged weights, checkpoints, one line a step.

Exact resume: a step's data and noise follow from (seed, step), and a checkpoint holds weights, averages and both
moments of the optimizer in fp32, so a run that was killed gives the numbers of one that was not (same machine).
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from fpsgen.errors import BAD_INPUT, NUMERIC, FpsgenError
from fpsgen.files import append_line, write_text
from fpsgen.models.patch.apply import Handle, apply
from fpsgen.models.patch.schedule_choice import ScheduleWarning
from fpsgen.signals import check_stop
from fpsgen.train import checkpoint
from fpsgen.train.config import TrainConfig
from fpsgen.train.data import Pairs
from fpsgen.train.events import Events
from fpsgen.train.lora import add_lora
from fpsgen.train.objective import distill, flow

LOG = "log.jsonl"


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    done = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
    return config.lr * warm * (0.55 + 0.45 * math.cos(math.pi * done))


class Trainer:
    """One run in a folder. transformer: a WanTransformer3DModel, unpatched, on its device; it is patched with the run's
    schedule until close(), and its weights become fp32 (with LoRA, only the adapter's are trained).
    """

    def __init__(self, transformer: Any, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder, self.transformer = config, folder, transformer
        self.device = transformer.device
        if config.lora_rank:
            add_lora(transformer, config.lora_rank, config.seed)
        else:
            transformer.float().requires_grad_(True)
        if config.checkpointing:
            transformer.enable_gradient_checkpointing()
        with warnings.catch_warnings():  # these weights are about to be trained for this schedule
            warnings.simplefilter("ignore", ScheduleWarning)
            self.handle: Handle = apply(transformer, schedule=config.parsed_schedule())
        self.weights = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}
        decayed = [p for p in self.weights.values() if p.dim() > 1]
        others = [p for p in self.weights.values() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99))
        self.step = 0

    def resume(self) -> int:
        """Go on from the newest whole checkpoint of the folder, if there is one; the step to be done next.

        Raises FpsgenError BAD_INPUT for a checkpoint of a run with other settings.
        """
        found = checkpoint.latest(self.folder)
        if found is not None:
            step, tensors, state = found
            if state["config"] != self.config.digest():
                raise FpsgenError(
                    f"{self.folder} holds a run with other settings", "name another folder with -o", BAD_INPUT
                )
            with torch.no_grad():
                for name, p in self.weights.items():
                    p.copy_(tensors["weights"][name])
                    self.average[name].copy_(tensors["average"][name])
                    moments = {key: tensors[key][name].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[p] = moments | {"step": torch.tensor(float(step))}
            self.step = step
        self._cut_log()
        return self.step

    def run(self, pairs: Pairs, events: Events) -> None:
        """Train up to config.steps. Raises FpsgenError NUMERIC where loss or gradient are not finite; checkpoints
        from before stay.
        """
        self.transformer.train()
        while self.step < self.config.steps:
            check_stop()
            row = self._one(pairs)
            append_line(self.folder / LOG, json.dumps(row))
            events.step(self.step - 1, self.config.steps, f"loss {row['loss']:.4g}")
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self.save()
        self.transformer.eval()

    def _one(self, pairs: Pairs) -> dict[str, Any]:
        config, step = self.config, self.step
        batch = pairs.draw(step, config.seed, config.batch, config.null_share)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = distill(self.transformer, self.handle, batch)
            if config.flow:
                noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
                loss = loss + config.flow * flow(self.transformer, self.handle, batch, noise)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), config.clip or math.inf)
        value, length = float(loss.detach()), float(norm)
        if not (math.isfinite(value) and math.isfinite(length)):
            self.optimizer.zero_grad(set_to_none=True)
            raise FpsgenError(
                f"step {step}: the loss is {value}, the gradient's norm {length}",
                "lower lr; the last checkpoint is kept",
                NUMERIC,
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self.weights.items():
                self.average[name].lerp_(p.detach(), 1 - config.ema)
        self.step += 1
        sigma = float(batch.sigmas[0])
        return {"step": step, "loss": value, "profile": batch.profile, "sigma": sigma, "grad_norm": length}

    def save(self) -> Path:
        moments = {
            key: {name: self.optimizer.state[p][key] for name, p in self.weights.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }
        tensors = {"weights": dict(self.weights), "average": self.average} | moments
        return checkpoint.save(self.folder, self.step, tensors, {"config": self.config.digest()}, self.config.keep)

    def use_average(self) -> None:
        """Put the averaged weights into the transformer, to measure and to export them."""
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(self.average[name])

    def error(self, pairs: Pairs, limit: int = 8) -> dict[str, float]:
        """Mean squared error of the velocity by profile, over the teacher's mean square, on up to `limit` pairs of
        each.
        """
        found = {}
        was = self.transformer.training
        self.transformer.eval()
        with torch.no_grad():
            for profile in pairs.profiles:
                wrong = power = 0.0
                for batch in pairs.every(profile, 1, limit):
                    check_stop()
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                        wrong += float(distill(self.transformer, self.handle, batch))
                    power += float(batch.velocity.square().mean())
                found[profile] = wrong / power
        self.transformer.train(was)
        return found

    def close(self) -> None:
        self.handle.remove()
        if self.config.checkpointing:
            self.transformer.disable_gradient_checkpointing()
        self.transformer.requires_grad_(False)

    def _cut_log(self) -> None:
        """Lines of steps that a checkpoint does not cover are done again."""
        path = self.folder / LOG
        if path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
            write_text("".join(line + "\n" for line in lines[: self.step]), path, overwrite=True)
