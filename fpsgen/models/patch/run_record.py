"""What ran: per denoising step, component and layer the kernel, the density, and why it is not what was asked for.

A record keeps the steps of one denoising loop for each thread. Forwards outside a loop (training) are added up per
profile, so a record never grows with the length of a run. Counts and densities that lie on a device are summed there
and read when a report is made: recording never waits for the device.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.schedule import Profile

if TYPE_CHECKING:
    from fpsgen.models.patch.forward_state import ForwardState

Key = tuple[str, int, str]  # component, layer, part
ATTENTION = "attention"
DENSE_LAYER = "dense_layer"  # the reason of layers that a schedule keeps dense at every step


@dataclass(frozen=True)
class LayerRun:
    """How one layer, or one part of it, runs in a forward.

    layer: number of the block. kernel: name of what computes it. reason: why that is not what was asked for, or None.
    density: share of token pairs that attention keeps; None for what is not attention, and where only the device knows.
    part: module within the block, such as "attn1.to_q"; "" for the whole.
    """

    layer: int
    kernel: str
    reason: str | None = None
    density: float | None = None
    part: str = ""


class Position(NamedTuple):
    """Where in a denoising loop a forward is.

    index: number of the step, None outside a loop. branch: "cond", "uncond", or "" where nobody says. sigma: noise
    level in [0, 1]. lowest: the least of a batch whose samples have noise levels of their own, else equal to sigma.
    loop: an object that stands for the loop by its identity, or None.
    """

    index: int | None
    branch: str
    sigma: float
    lowest: float
    loop: Any = None


@dataclass
class Step:
    """One denoising step of one transformer, or all its forwards by one profile outside a loop (index None)."""

    index: int | None
    sigma: float
    profile: Profile
    plan: AttentionPlan
    runs: dict[str, tuple[LayerRun, ...]]  # by component
    calls: Counter[Key] = field(default_factory=Counter)
    backend: str | None = None  # the attention backend that was chosen in diffusers
    branches: set[str] = field(default_factory=set)
    skipped: int = 0  # calls of layers that a step cache left out
    planned: bool = False  # some calls ran in compiled code, where they are not counted but follow from the plan
    kept: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer: [sum of densities, calls], on the device


@dataclass
class Loop:
    """The steps of one denoising loop."""

    steps: dict[tuple[Any, ...], Step] = field(default_factory=dict)
    fallbacks: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    identity: Any = None

    def is_over(self, position: Position) -> bool:
        """Whether a forward at `position` belongs to another loop: its index goes back, its branch comes again in the
        same step, or the identity of the loop differs.
        """
        last = next(reversed(self.steps.values()), None)
        if position.index is None or last is None:
            return False
        if last.index is None or position.index < last.index:
            return True
        if self.identity is not None and position.loop is not None and self.identity is not position.loop:
            return True
        return position.index == last.index and bool(position.branch) and position.branch in last.branches


class _OfThread(threading.local):
    loop: Loop | None = None


class RunRecord:
    """What ran, on all transformers of one handle. Each thread has a loop of its own."""

    def __init__(self) -> None:
        self.fallbacks: dict[tuple[str, str], dict[str, Any]] = {}  # those of no loop, found by apply
        self._lock = threading.Lock()
        self._of_thread = _OfThread()
        self._latest = Loop()

    def clear(self) -> None:
        """Forget the loops of this thread, and the latest of any."""
        with self._lock:
            self._of_thread.loop = self._latest = Loop()

    def begin(
        self, position: Position, transformer: int, forward: ForwardState, runs: dict[str, tuple[LayerRun, ...]]
    ) -> Step:
        """The step that a forward belongs to. transformer: its number in the pipeline. runs: LayerRuns by component."""
        with self._lock:
            loop = self._of_thread.loop
            if loop is None or loop.is_over(position):
                loop = self._of_thread.loop = Loop()
            self._latest = loop
            if position.loop is not None:
                loop.identity = position.loop
            key = (position.index, forward.profile.name, forward.grid, transformer)
            step = loop.steps.get(key)
            if step is None or step.runs != runs:
                step = loop.steps[key] = Step(position.index, position.sigma, forward.profile, forward.plan, runs)
            step.sigma = position.sigma
            step.backend = forward.backend
            step.branches.add(position.branch)
            return step

    def end(
        self,
        step: Step,
        calls: Counter[Key],
        kept: Sequence[tuple[int, torch.Tensor]],
        compiled: Sequence[bool],
        cached: bool,
    ) -> dict[str, list[int]]:
        """A forward is over. calls: those that were seen. kept: (layer, density) of online methods, on the device.
        compiled: per layer; calls there cannot be seen and are taken from the plan. cached: a step cache is on, which
        may skip layers. Returns the layers that did not run, by component.
        """
        with self._lock:
            whole = not (calls or cached)  # nothing was seen: the transformer is compiled as a whole
            missing: dict[str, list[int]] = {}
            for component, runs in step.runs.items():
                for run in runs:
                    key = (component, run.layer, run.part)
                    planned = not calls[key] and (compiled[run.layer] or whole)
                    step.planned |= planned
                    step.calls[key] += 1 if planned else calls[key]
                    if not calls[key] and not planned and run.layer not in missing.setdefault(component, []):
                        missing[component].append(run.layer)
            step.skipped += len(missing.get(ATTENTION, ())) if cached else 0
            for layer, density in kept:
                entry = torch.stack((density.double(), torch.ones_like(density, dtype=torch.float64)))
                step.kept[layer] = step.kept[layer] + entry if layer in step.kept else entry
            return {component: layers for component, layers in missing.items() if layers}

    def fallback(self, component: str, reason: str, layers: Sequence[int], detail: str, in_loop: bool = True) -> None:
        """Note a deviation from the schedule once per component and reason, with the number of times it was met."""
        with self._lock:
            loop = self._of_thread.loop
            rows = loop.fallbacks if in_loop and loop is not None else self.fallbacks
            new = {"component": component, "reason": reason, "detail": detail, "layers": [], "count": 0}
            row = rows.setdefault((component, reason), new)
            row["layers"] = sorted({*row["layers"], *layers})
            row["count"] += 1

    def shown(self) -> tuple[Loop, list[dict[str, Any]]]:
        """The loop to report: this thread's, if it ran one, else the latest of any. And all fallbacks."""
        with self._lock:
            loop = self._of_thread.loop or self._latest
            return loop, [dict(row) for row in (*self.fallbacks.values(), *loop.fallbacks.values())]
