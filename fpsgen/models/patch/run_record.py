"""What ran: per denoising step and layer the kernel, the density that was achieved, and why it was dense where it was.

A record is kept per step of the latest denoising loop; forwards outside a loop (training) are added up per profile, so
a report never grows with the length of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fpsgen.attention.methods import METHODS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.schedule import Profile


@dataclass(frozen=True)
class Layers:
    """What one kind of layer runs in a step. reason: why it is dense, or None where it is not."""

    plan: AttentionPlan
    kernel: str
    reason: str | None


@dataclass
class Step:
    """One denoising step, or all forwards of one profile outside a loop (index None)."""

    index: int | None
    sigma: float
    profile: Profile
    sparse: Layers
    dense: Layers
    calls: list[int]  # per layer
    branches: set[str] = field(default_factory=set)
    planned: bool = False  # some calls ran in compiled code, where they are not counted but follow from the plan


class Recorder:
    """Counts per step. dense_layers: those that run Step.dense."""

    def __init__(self, layers: int, dense_layers: frozenset[int]) -> None:
        self.layers = layers
        self.dense_layers = dense_layers
        self.steps: dict[tuple[int | None, str], Step] = {}
        self.fallbacks: dict[str, dict[str, Any]] = {}
        self.grid: tuple[int, int, int] | None = None
        self._now: Step | None = None
        self._seen = [0] * layers

    def clear(self) -> None:
        """Forget what ran so far."""
        self.steps, self.fallbacks, self._now = {}, {}, None

    def begin(
        self, index: int | None, branch: str, sigma: float, profile: Profile, sparse: Layers, dense: Layers
    ) -> None:
        """A forward starts. A step index that goes back, or comes again with the same branch, is a new loop."""
        last = next(reversed(self.steps.values()), None)
        if index is not None and last is not None:
            back = last.index is None or index < last.index or (index == last.index and branch in last.branches)
            if back:
                self.clear()
        key = (index, profile.name)
        step = self.steps.get(key)
        if step is None or (step.sparse.plan, step.sparse.kernel) != (sparse.plan, sparse.kernel):
            step = self.steps[key] = Step(index, sigma, profile, sparse, dense, [0] * self.layers)
        step.sigma = sigma
        step.branches.add(branch)
        self._now, self.grid = step, sparse.plan.grid
        self._seen = [0] * self.layers

    def count(self, layer: int) -> None:
        """Attention of `layer` was called (eager); nothing outside a forward, as in a checkpoint's recomputation."""
        if self._now is not None:
            self._seen[layer] += 1

    def end(self, compiled: list[bool], cached: bool) -> list[int]:
        """The forward is over. compiled: per layer; cached: a cache is on. Returns the layers that were skipped by it.

        Calls in compiled code cannot be counted; without a cache every layer runs once, so they are taken as planned.
        """
        step, self._now = self._now, None
        if step is None:
            return []
        whole = not cached and not any(self._seen)  # the transformer is compiled as a whole
        skipped = []
        for layer, seen in enumerate(self._seen):
            planned = seen == 0 and (whole or compiled[layer])
            step.planned |= planned
            step.calls[layer] += 1 if planned else seen
            if not seen and not planned:
                skipped.append(layer)
        return skipped

    def fallback(self, reason: str, layers: list[int], detail: str) -> None:
        """Note a deviation from the schedule once per reason, with the number of times it was met."""
        row = self.fallbacks.setdefault(reason, {"reason": reason, "detail": detail, "layers": layers, "count": 0})
        row["layers"] = sorted({*row["layers"], *layers})
        row["count"] += 1

    def as_dict(self) -> dict[str, Any]:
        """steps, layers_dense, fallbacks, kernels and grid, in JSON's types."""
        kernels: dict[str, int] = {}
        steps = []
        for step in self.steps.values():
            groups = []
            for kind, dense in ((step.sparse, False), (step.dense, True)):
                layers = [layer for layer in range(self.layers) if (layer in self.dense_layers) == dense]
                calls = sum(step.calls[layer] for layer in layers)
                if layers:
                    groups.append((kind, layers, calls))
                    kernels[kind.kernel] = kernels.get(kind.kernel, 0) + calls
            steps.append(_row(step, groups))
        return {
            "steps": steps,
            "layers_dense": sorted(self.dense_layers),
            "fallbacks": list(self.fallbacks.values()),
            "kernels": {name: calls for name, calls in kernels.items() if calls},
            "grid": list(self.grid) if self.grid else None,
        }


def _row(step: Step, groups: list[tuple[Layers, list[int], int]]) -> dict[str, Any]:
    total = sum(len(layers) for _, layers, _ in groups)
    return {
        "index": step.index,
        "sigma": round(step.sigma, 6),
        "profile": step.profile.name,
        "method": step.profile.method,
        "kernel": groups[0][0].kernel,
        "density": sum(kind.plan.density * len(layers) for kind, layers, _ in groups) / total,
        "calls": sum(calls for _, _, calls in groups),
        "counted": "planned" if step.planned else "run",
        "tile": list(step.sparse.plan.tile),
        "window": list(step.sparse.plan.window),
        "layers": [
            {
                "layers": layers,
                "kernel": kind.kernel,
                "density": kind.plan.density,
                "reason": kind.reason,
                "calls": calls,
            }
            for kind, layers, calls in groups
        ],
    }


def dense_reason(profile: Profile, plan: AttentionPlan, method: str | None) -> str | None:
    """Why a layer that follows the profile is dense, or None. method: what the user asked to run everything as."""
    if not plan.dense:
        return None
    if method is not None and METHODS[method].dense:
        return f"method_{method}"
    return "dense_by_schedule" if profile.sees_all else "window_covers_grid"
