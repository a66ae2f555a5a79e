"""The weights that are trained: fp32 masters with AdamW's moments and average, and what the model computes with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fpsgen.train.config import TrainConfig
from fpsgen.train.parallel import gather_anew, local, whole, write

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    done = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
    return config.lr * warm * (0.55 + 0.45 * math.cos(math.pi * done))


class Weights:
    """Parameters of a transformer that need a gradient. Those in 16 bit have a master in fp32 each: the optimizer and
    the average go by that, and the model gets it rounded.
    """

    def __init__(self, transformer: Any, config: TrainConfig) -> None:
        self._config, self._transformer = config, transformer
        self.used = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
        self.masters = {
            name: p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float())
            for name, p in self.used.items()
        }
        self.average = {name: p.detach().clone() for name, p in self.masters.items()}
        self._fused = all(p.is_cuda for p in self.masters.values())  # else there are temporaries as large as weights
        decayed = [p for p in self.masters.values() if p.dim() > 1]
        others = [p for p in self.masters.values() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=(0.9, 0.99), eps=config.adam_eps, fused=self._fused
        )

    def collect(self) -> None:
        """Add the gradients of a backward pass to those of the masters, in fp32."""
        found = [(self.masters[name], p) for name, p in self.used.items() if p.grad is not None]
        found = [(master, p) for master, p in found if master is not p]
        fresh = [(master, p) for master, p in found if master.grad is None]
        summed = [(master, p) for master, p in found if master.grad is not None]
        for master, _ in fresh:
            master.grad = torch.empty_like(master)
        for pairs, into in ((fresh, torch._foreach_copy_), (summed, torch._foreach_add_)):
            if pairs:
                grads: Any = [(master.grad, p.grad) for master, p in pairs]
                into([local(ours) for ours, _ in grads], [local(theirs) for _, theirs in grads])
        for _, p in found:
            p.grad = None

    def clip(self) -> float:
        """Scale the gradients down to the norm config.clip at most (0: as they are); their norm before that."""
        norm = torch.nn.utils.clip_grad_norm_(list(self.masters.values()), self._config.clip or math.inf)
        return float(whole(norm))

    def forget_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, number: int) -> None:
        """One step of the optimizer, of this number from 0."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config, number)
        self._optimizer.step()
        self.forget_gradients()
        averages = [local(self.average[name]) for name in self.masters]
        torch._foreach_lerp_(averages, [local(p.detach()) for p in self.masters.values()], 1 - self._config.ema)
        self._use(self.masters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile, the model computes with the averaged weights."""
        kept = {name: p.detach().clone() for name, p in self.masters.items() if self.used[name] is p}
        self._use(self.average)
        try:
            yield
        finally:
            self._use(self.masters | kept)

    @torch.no_grad()
    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """All that a checkpoint holds, by kind and name. Every process must call it."""
        state = self._optimizer.state
        found = {"weights": self.masters, "average": self.average}
        found |= {key: {name: state[p][key] for name, p in self.masters.items()} for key in MOMENTS}
        return {kind: {name: whole(x.detach()) for name, x in values.items()} for kind, values in found.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, dict[str, torch.Tensor]], step: int) -> None:
        """The opposite of tensors(); step: how many were done."""
        for name, p in self.masters.items():
            write(p.detach(), tensors["weights"][name])
            write(self.average[name], tensors["average"][name])
            moments = {key: torch.zeros_like(p.detach()) for key in MOMENTS}
            for key, moment in moments.items():
                write(moment, tensors[key][name])
            place = local(p).device if self._fused else "cpu"
            self._optimizer.state[p] = moments | {"step": torch.tensor(float(step), device=place)}
        self._use(self.masters)

    @torch.no_grad()
    def _use(self, values: Mapping[str, torch.Tensor]) -> None:
        changed = [name for name, p in self.used.items() if values[name] is not p]
        if changed:
            used = [local(self.used[name].detach()) for name in changed]
            torch._foreach_copy_(used, [local(values[name].detach()) for name in changed])
        gather_anew(self._transformer)
