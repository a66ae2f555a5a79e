"""Where in a denoising loop a forward is: step, branch and noise level, without waiting for the device where possible.

Pipelines differ in what they tell. Text-to-video gives cache_context step, branch and sigma; image-to-video the branch
alone; video-to-video nothing. What is not given follows from the scheduler: a pipeline passes the model an expanded
entry of scheduler.timesteps, and its place in that tensor is the step. Else the timestep is read, which waits for the
device once per step, and steps are counted by its changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from fpsgen.models.patch.run_record import Position
from fpsgen.models.patch.stack import Run

TRAIN_TIMESTEPS = 1000  # where no scheduler says its own
ROUNDING = 2e-3  # between a scheduler's sigma and its timestep, which may be a whole number of 1000


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        pass


class _OfThread(threading.local):
    context: CacheContext | None = None


class ThreadContexts(StateManager):
    """What cache_context tells, for each thread apart: diffusers keeps it on the hook, which threads share."""

    def __init__(self) -> None:
        self._of_thread = _OfThread()
        super().__init__(_NoState)  # pyright: ignore[reportArgumentType]

    def __deepcopy__(self, memo: dict[int, Any]) -> ThreadContexts:
        return ThreadContexts()

    @property
    def _context(self) -> CacheContext | None:
        return self._of_thread.context

    @_context.setter
    def _context(self, context: CacheContext | None) -> None:
        self._of_thread.context = context


class _Loop(NamedTuple):
    """A scheduler's timesteps as numbers. version: changes when the tensor is written to, None where it has none."""

    timesteps: torch.Tensor
    version: int | None
    values: list[float]
    sigmas: list[float]


class _Read(NamedTuple):
    timestep: torch.Tensor
    version: int | None
    low: float
    high: float


class NoiseLevels:
    """Finds the Position of a transformer's forwards. scheduler: returns the pipeline's scheduler, or None."""

    def __init__(self, run: Run, scheduler: Callable[[], Any]) -> None:
        self.contexts = ThreadContexts()
        self._run = run
        self._scheduler = scheduler
        self._loop: _Loop | None = None
        self._latest: _Read | None = None

    def position(self, timestep: torch.Tensor, training: bool) -> Position:
        """The Position of a forward with `timestep` [B] or [B, L]. training: forwards are no steps of a loop.

        What a scheduler's rounding puts just above 1 is 1; more is left as it is, for the schedule to refuse.
        """
        found = self._position(timestep, training)
        rounded = 1 < found.sigma <= 1 + ROUNDING
        return found._replace(sigma=1.0, lowest=min(found.lowest, 1.0)) if rounded else found

    def _position(self, timestep: torch.Tensor, training: bool) -> Position:
        fixed = self._run.of_thread.fixed_sigma
        if fixed is not None:
            return Position(None, "", fixed, fixed)
        context = self.contexts._context
        branch = context.name if context is not None else ""
        if context is not None and context.sigma is not None and context.step_index is not None:
            return Position(context.step_index, branch, float(context.sigma), float(context.sigma))
        if training:
            low, high = self._read(timestep)
            return Position(None, branch, high, low)
        loop = self._scheduled(timestep.device)
        index = _place(timestep, loop.timesteps) if loop is not None else None
        if loop is not None and index is not None:
            return Position(index, branch, loop.sigmas[index], loop.sigmas[index], loop.timesteps)
        low, high = self._read(timestep)
        if loop is not None and high in loop.values:
            index = loop.values.index(high)
            sigma = loop.sigmas[index]
            return Position(index, branch, sigma, sigma if low == high else low, loop.timesteps)
        return Position(self._count(high), branch, high, low)

    @property
    def _train_timesteps(self) -> int:
        scheduler = self._scheduler()
        return TRAIN_TIMESTEPS if scheduler is None else int(scheduler.config.num_train_timesteps)

    def _scheduled(self, device: torch.device) -> _Loop | None:
        """The scheduler's loop as it is set now. Its tensors are read once per loop."""
        scheduler = self._scheduler()
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, torch.Tensor) or timesteps.dim() != 1:
            return None
        loop, version = self._loop, _version(timesteps)
        if loop is None or loop.timesteps is not timesteps or version is None or loop.version != version:
            values = (timesteps.double() / self._train_timesteps).tolist()
            sigmas = torch.as_tensor(getattr(scheduler, "sigmas", ())).double().flatten()[: len(values)].tolist()
            usable = len(sigmas) == len(values) and (max(sigmas) > 1 + ROUNDING or _close(sigmas, values))
            loop = self._loop = _Loop(timesteps, version, values, sigmas if usable else values)
        return loop

    def _read(self, timestep: torch.Tensor) -> tuple[float, float]:
        """Lowest and highest noise level of a timestep tensor. One on a GPU is read once, unless it is written to:
        guidance calls twice with the same tensor.
        """
        latest, version = self._latest, _version(timestep)
        if latest is not None and latest.timestep is timestep and version is not None and latest.version == version:
            return latest.low, latest.high
        low, high = (torch.stack(timestep.aminmax()).double() / self._train_timesteps).tolist()
        if timestep.device.type != "cpu":  # on a CPU, NumPy may write to it unseen, and reading costs nothing
            self._latest = _Read(timestep, version, low, high)
        return low, high

    def _count(self, level: float) -> int:
        """The step of a loop that nobody describes: the first, the one before, or the next, by the noise level."""
        counted = self._run.of_thread.counted
        if counted is None or level > counted[0]:
            counted = (level, 0)
        elif level < counted[0]:
            counted = (level, counted[1] + 1)
        self._run.of_thread.counted = counted
        return counted[1]


def _close(sigmas: list[float], levels: list[float]) -> bool:
    return all(abs(sigma - level) <= ROUNDING for sigma, level in zip(sigmas, levels, strict=True))


def _version(tensor: torch.Tensor) -> int | None:
    """Number of writes to the tensor; None for inference tensors, which do not count them."""
    return None if tensor.is_inference() else tensor._version


def _place(timestep: torch.Tensor, timesteps: torch.Tensor) -> int | None:
    """Index of the entry of `timesteps` that `timestep` is an expanded view of, or None. Reads no values."""
    same = (
        timestep.device == timesteps.device
        and timestep.dtype == timesteps.dtype
        and timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
    )
    one = timestep.numel() == 1 or all(stride == 0 for stride in timestep.stride())
    stride = timesteps.stride(0) if timesteps.numel() else 0
    if not same or not one or stride <= 0:
        return None
    index, rest = divmod(int(timestep.storage_offset() - timesteps.storage_offset()), int(stride))
    return index if rest == 0 and 0 <= index < len(timesteps) else None
