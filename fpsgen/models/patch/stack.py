"""The stack of patches on a transformer: what a patch is, what all of them share, and how they come off again.

A patch changes one component of a transformer from outside (self-attention, linear layers, norms) and knows how to
undo itself. Patches of one `apply` share a Run: the schedule, one record of what ran, one timer.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import NUMERIC, USAGE, FpsgenError
from fpsgen.models.patch.run_record import LayerRun, RunRecord
from fpsgen.models.patch.timer import Timer
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.models.patch.forward_state import ForwardState


class Installed(Protocol):
    """A patch on one transformer."""

    def undo(self) -> None:
        """Put the transformer back as it was, to the bit. Called once, in reverse order of installation."""
        ...

    def layer_runs(self, forward: ForwardState) -> tuple[LayerRun, ...]:
        """How its layers run in this forward. Called at the start of each: return a stored tuple where possible.
        Raises FpsgenError for a change made since, by which the patch would go wrong.
        """
        ...


class Patch(Protocol):
    """A change of one component. component: its name in reports, such as "attention" or "linear"."""

    component: str

    def install(self, transformer: Any, run: Run) -> Installed:
        """Change a WanTransformer3DModel in place. Raises FpsgenError, by name, for what it cannot change, and leaves
        nothing then.
        """
        ...


class Observer(Protocol):
    """Gets the inputs of eager self-attention."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, forward: ForwardState) -> None:
        """q, k, v: [B, L, H, D] in the order of the forward's tokens, q and k normed and with rotary embedding."""
        ...


class _OfThread(threading.local):
    forward: ForwardState | None = None
    fixed_sigma: float | None = None
    counted: tuple[float, int] | None = None  # timestep and index of the latest step, where nobody tells the index

    def __deepcopy__(self, memo: dict[int, Any]) -> _OfThread:
        return self


class Run:
    """What all patches and transformers of one handle share.

    Two threads may run one transformer at once: whatever belongs to one forward lies in `of_thread`, or goes with the
    arguments of the calls.
    """

    def __init__(
        self, schedule: Schedule, method: str | None, strict: bool, impl: str = "auto", cache: Any = None
    ) -> None:
        self.schedule = schedule
        self.method = method
        self.strict = strict
        self.impl = impl
        self.cache = cache  # configuration of the step cache that was asked for, or None
        self.record = RunRecord()
        self.timer: Timer | None = None
        self.observer: Observer | None = None
        self.of_thread = _OfThread()

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self  # a copy of a patched transformer keeps its run, by which its first forward refuses

    def __reduce__(self) -> tuple:
        raise FpsgenError(
            "a transformer that fpsgen.apply has patched cannot be pickled",
            "call handle.remove() before torch.save, or save its weights alone: save_pretrained, state_dict",
            USAGE,
        )

    @property
    def forward(self) -> ForwardState | None:
        """The forward that this thread is in. For eager code: compiled code must not read it."""
        return self.of_thread.forward

    def count(self, component: str, layer: int, part: str = "") -> None:
        """A layer ran eagerly. Nothing is counted outside a forward, as in a checkpoint's recomputation."""
        if self.forward is not None:
            self.forward.calls[component, layer, part] += 1

    def count_density(self, layer: int, density: torch.Tensor) -> None:
        """The density that an attention call had, as a 0-dim tensor on its device. It is read by a report only."""
        if self.forward is not None:
            self.forward.kept.append((layer, density.detach()))

    def time(self, component: str, device: torch.device) -> AbstractContextManager[None]:
        """A context that measures the call within it, where a timer runs."""
        return self.timer.measure(component, device) if self.timer is not None else nullcontext()

    def deviation(self, component: str, reason: str, layers: Sequence[int], detail: str, in_loop: bool = True) -> None:
        """Note that something else than what was asked for ran. Raises FpsgenError NUMERIC if strict."""
        if self.strict:
            raise FpsgenError(f"strict: {detail} ({reason})", "mend that, or run without strict", NUMERIC)
        self.record.fallback(component, reason, layers, detail, in_loop)


def install(transformer: Any, run: Run, patches: Sequence[Patch]) -> dict[str, Installed]:
    """Put patches on a transformer, all or none; returns them by component."""
    installed: dict[str, Installed] = {}
    try:
        for patch in patches:
            if not hasattr(patch, "component") or not hasattr(patch, "install"):
                raise FpsgenError(f"{show(patch)} is no patch", "give objects with component and install()", USAGE)
            if patch.component in installed:
                raise FpsgenError(
                    f"two patches change the component {patch.component!r}", "give one of each component", USAGE
                )
            installed[patch.component] = patch.install(transformer, run)
    except BaseException:
        undo(installed)
        raise
    return installed


def undo(installed: dict[str, Installed]) -> None:
    """Take patches off again, the latest first."""
    while installed:
        installed.popitem()[1].undo()
