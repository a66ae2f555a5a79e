"""fpsgen.apply: give a diffusers Wan pipeline FPSAttention, from outside, and take it away again.

Installed on a transformer: one diffusers hook on its forward (forward_state.py) and a stack of patches (stack.py), of
which attention is one (attention.py). Nothing is stored in classes or modules of ours: all state hangs on the Handle,
so pipelines in one process do not disturb each other. Source of the method: arXiv 2506.04648, section 3.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.utils.torch_utils import unwrap_module

from fpsgen.attention.implementations import IMPLEMENTATIONS
from fpsgen.attention.schedule import Schedule
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.models.patch.attention import AttentionPatch
from fpsgen.models.patch.block import FusedPatch
from fpsgen.models.patch.forward_state import ForwardHook, refuse_parallelism
from fpsgen.models.patch.linear import PARTS, LinearPatch, parts_of
from fpsgen.models.patch.noise_level import NoiseLevels
from fpsgen.models.patch.report import latest_step, report, summary
from fpsgen.models.patch.run_record import ATTENTION
from fpsgen.models.patch.schedule_choice import checkpoint_schedule, resolve_schedule
from fpsgen.models.patch.stack import Observer, Patch, Run, install, undo
from fpsgen.models.patch.step_cache import enable
from fpsgen.models.patch.timer import Timer
from fpsgen.settings.groups.speed import LINEARS

HOOK = "fpsgen"


def apply(
    pipe: Any,
    schedule: Schedule | str | Path | None = None,
    method: str | None = None,
    strict: bool = False,
    patches: Sequence[Patch] = (),
    linear: str | None = None,
    exact: bool = False,
    impl: str = "auto",
    cache: Any = None,
) -> Handle:
    """Patch a WanPipeline, or a bare WanTransformer3DModel, in place; returns the handle that undoes it.

    schedule: a Schedule, a preset ("safe", "balanced", "paper"), a TOML file, or None for the checkpoint's own
    (schedule.toml in the folder it was loaded from), else "safe". method: run it all as this method. strict: a
    deviation from what was asked for raises FpsgenError NUMERIC instead of being reported. patches: more of them, put
    on last. linear: "fp8" multiplies the blocks' linear layers in FP8, "bf16" leaves them as they are, None is as the
    schedule says (fp8_linear). exact: keep diffusers' rounding between them; otherwise element-wise passes are fused on
    a GPU, in fp32. impl: what computes attention, see AttentionPlan. cache: configuration of a step cache of diffusers,
    enabled until the handle is removed; what it skips counts as asked for.

    Goes together with classifier-free guidance, LoRA, fuse_qkv_projections, compile_repeated_blocks, offloading,
    layerwise casting, gradient checkpointing and two threads on one transformer, before or after. Raises FpsgenError
    for what it does not handle: other models, context or tensor parallelism, custom attention processors, a second
    apply. Warns (ScheduleWarning) where schedule and weights do not belong together.
    """
    if linear is not None and linear not in LINEARS:
        raise FpsgenError(f"linear is {linear!r}", f"give one of {', '.join(LINEARS)}", USAGE)
    if impl not in IMPLEMENTATIONS:
        raise FpsgenError(f"impl is {impl!r}", f"give one of {', '.join(IMPLEMENTATIONS)}", USAGE)
    transformers = _transformers(pipe)
    for transformer in transformers:
        _check(transformer)
    run = Run(resolve_schedule(schedule, method, checkpoint_schedule(pipe)), method, strict, impl, cache)
    fp8 = parts_of(run.schedule.fp8_linear) if linear is None else PARTS * (linear == "fp8")
    stack = [AttentionPatch(), *[LinearPatch(fp8)] * bool(fp8), *[FusedPatch()] * (not exact), *patches]
    layers = max(len(transformer.blocks) for transformer in transformers)
    beyond = [layer for layer in run.schedule.dense_layers if layer >= layers]
    if beyond:
        what = f"dense_layers {beyond} are beyond the model's {layers} layers"
        run.deviation(ATTENTION, "no_such_layer", beyond, what, in_loop=False)
    scheduler = _scheduler_of(pipe)
    handle = Handle(run)
    try:
        for number, transformer in enumerate(transformers):
            handle._stacks.append(_Stack(transformer, run, number, stack, scheduler))
    except BaseException:
        handle.remove()
        raise
    return handle


class Handle:
    """What `apply` did. A context manager: leaving it removes the patches. print(handle) tells what ran.

    schedule: the schedule that runs, method already applied. method: what was asked for, or None.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stacks: list[_Stack] = []

    @property
    def schedule(self) -> Schedule:
        return self._run.schedule

    @property
    def method(self) -> str | None:
        return self._run.method

    def remove(self) -> None:
        """Undo everything; the transformer is as before, to the bit. Calling it again does nothing.

        With gradient checkpointing, run the backward passes first: they call the blocks again.
        """
        while self._stacks:
            self._stacks.pop().remove()

    def report(self) -> dict[str, Any]:
        """What ran in the latest denoising loop (of this thread, if it ran one), in JSON's types.

        steps: one row per step and transformer (or, outside a loop, per profile, with index None): index, sigma,
        profile, method, kernel and density (mean over layers) of attention, calls, tile and window in force, counted
        ("run", or "planned" where compiled code ran and calls follow from the plan), and layers: groups with component,
        layers, parts (modules within a layer), kernel, density (densities, one a layer, where a method chooses its keys
        online), calls and the reason where they do not run as asked.
        Reasons of attention: dense_layer, dense_by_schedule, method_bf16, method_fp8, window_covers_grid.
        density: mean over steps. fallbacks: deviations from what was asked for. components {component: {kernel:
        calls}}; kernels: those of attention. grid (T, H, W) in tokens. layers_dense. attention_backend: the one chosen
        in diffusers, or None; dense 16-bit layers heed it.
        """
        return {
            "schedule": self.schedule.name,
            "asked_method": self.method,
            "layers_dense": list(self.schedule.dense_layers),
            **report(self._run.record),
        }

    def summary(self) -> str:
        """The report in a few lines, for people."""
        return summary(self.report())

    def latest_step(self) -> dict[str, Any] | None:
        """Index, sigma, profile, method and planned density (None for online methods) of the step that runs or ran
        last; None before the first. Never waits for the device, so it serves a progress bar.
        """
        return latest_step(self._run.record)

    def clear_report(self) -> None:
        """Forget what ran; a new denoising loop does so on its own."""
        self._run.record.clear()

    @contextmanager
    def fixed_sigma(self, sigma: float) -> Iterator[Handle]:
        """Meanwhile, forwards of this thread run by the profile of this noise level in [0, 1], whatever their timesteps
        (training).
        """
        self._run.schedule.profile_at(sigma)
        of_thread = self._run.of_thread
        before, of_thread.fixed_sigma = of_thread.fixed_sigma, float(sigma)
        try:
            yield self
        finally:
            of_thread.fixed_sigma = before

    @contextmanager
    def timer(self) -> Iterator[Timer]:
        """Meanwhile, the time of every call of a patched component is measured, in all threads."""
        before, timer = self._run.timer, Timer()
        self._run.timer = timer
        try:
            yield timer
        finally:
            self._run.timer = before

    @contextmanager
    def observing(self, observer: Observer | None) -> Iterator[None]:
        """Meanwhile, the observer gets the inputs of every self-attention call; compiled code is not seen."""
        before, self._run.observer = self._run.observer, observer
        try:
            yield
        finally:
            self._run.observer = before

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        count = len(self._stacks)
        state = f"{count} transformer{'s' if count > 1 else ''} patched" if count else "removed"
        return f"<fpsgen Handle: schedule {self.schedule.name!r}, {state}>"


class _Stack:
    """The hook and the patches on one transformer, and how to undo them."""

    def __init__(
        self, transformer: Any, run: Run, number: int, patches: Sequence[Patch], scheduler: Callable[[], Any]
    ) -> None:
        self.transformer = transformer
        self.had_forward = "forward" in transformer.__dict__
        self.had_registry = "_diffusers_hook" in transformer.__dict__
        if run.cache is not None:
            enable(transformer, run.cache)
        self.cached = run.cache is not None
        try:
            self.installed = install(transformer, run, patches)
        except BaseException:
            if self.cached:
                transformer.disable_cache()
            raise
        self.hook = ForwardHook(run, transformer, number, self.installed, NoiseLevels(run, scheduler))
        HookRegistry.check_if_exists_or_initialize(transformer).register_hook(self.hook, HOOK)
        self.forward = transformer.__dict__["forward"]

    def remove(self) -> None:
        if self.cached:
            self.transformer.disable_cache()
        undo(self.installed)
        own = self.transformer.__dict__
        registry: HookRegistry = own["_diffusers_hook"]
        outermost = own.get("forward")
        inner = self.hook.fn_ref.forward
        registry.remove_hook(HOOK, recurse=False)
        if own.get("_old_forward") is self.forward:  # accelerate's offloading was put over ours: keep it
            self.transformer._old_forward = inner
            self.transformer.forward = outermost
        if not registry.hooks:
            if not self.had_forward and own.get("forward") is inner:
                del self.transformer.forward
            if not self.had_registry:
                del self.transformer._diffusers_hook


def _transformers(pipe: Any) -> list[Any]:
    """The Wan transformers of a pipeline (Wan2.2 has two), or the one that was given."""
    found = [pipe] if isinstance(unwrap_module(pipe), torch.nn.Module) else []
    if not found:
        found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    found = [unwrap_module(module) for module in found if module is not None]
    wrong = [module for module in found if not isinstance(module, WanTransformer3DModel)]
    if not found or wrong:
        what = type(wrong[0] if wrong else pipe).__name__
        raise FpsgenError(
            f"fpsgen.apply was given a {what}", "give it a diffusers WanPipeline or WanTransformer3DModel", USAGE
        )
    return found


def _scheduler_of(pipe: Any) -> Callable[[], Any]:
    """Returns the pipeline's scheduler as it is at the time of the call; None for a bare transformer. The pipeline is
    not kept alive.
    """
    if isinstance(pipe, torch.nn.Module):
        return lambda: None
    reference = weakref.ref(pipe)
    return lambda: getattr(reference(), "scheduler", None)


def _check(transformer: Any) -> None:
    """Raise FpsgenError, by name, for what cannot be patched."""
    registry = transformer.__dict__.get("_diffusers_hook")
    if registry is not None and registry.get_hook(HOOK) is not None:
        raise FpsgenError(
            "this transformer has fpsgen's attention already", "call remove() on the first handle before", USAGE
        )
    refuse_parallelism(transformer)
