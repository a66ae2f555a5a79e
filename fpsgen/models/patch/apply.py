"""fpsgen.apply: give a diffusers Wan pipeline FPSAttention, from outside, and take it away again.

Installed on a transformer: one diffusers hook on its forward (hook.py), one torch hook on its rope module, one
processor on each block's self-attention. Nothing is stored in classes or modules of ours: all state hangs on the
Handle, so pipelines in one process do not disturb each other. Source of the method: arXiv 2506.04648, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.utils.torch_utils import unwrap_module

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import ENVIRONMENT, USAGE, FpsgenError
from fpsgen.models.patch.attention import FpsAttnProcessor
from fpsgen.models.patch.hook import ForwardHook, Run
from fpsgen.models.patch.run_record import Recorder
from fpsgen.models.patch.schedule_choice import checkpoint_schedule, resolve_schedule
from fpsgen.models.patch.timer import AttentionClock

HOOK = "fpsgen"
TRAIN_TIMESTEPS = 1000  # of a bare transformer; a pipeline's scheduler says its own


def apply(
    pipe: Any,
    schedule: Schedule | str | Path | None = None,
    method: str | None = None,
    strict: bool = False,
) -> Handle:
    """Patch a WanPipeline, or a bare WanTransformer3DModel, in place; returns the handle that undoes it.

    schedule: a Schedule, a preset ("safe", "balanced", "paper"), a TOML file, or None for the checkpoint's own
    (schedule.toml in the folder it was loaded from), else "safe". method: run it all as "bf16", "fp8", "sta" or "fps".
    strict: a deviation from the schedule raises FpsgenError NUMERIC instead of being reported.

    Goes together with classifier-free guidance, LoRA, fuse_qkv_projections, compile_repeated_blocks, offloading,
    layerwise casting and gradient checkpointing, before or after. Raises FpsgenError for what it does not handle:
    other models, context or tensor parallelism, custom attention processors, a second apply. Warns (ScheduleWarning)
    where schedule and weights do not belong together.
    """
    transformers = _transformers(pipe)
    for transformer in transformers:
        _check(transformer)
    chosen = resolve_schedule(schedule, method, checkpoint_schedule(pipe))
    layers = max(len(transformer.blocks) for transformer in transformers)
    recorder = Recorder(layers, frozenset(layer for layer in chosen.dense_layers if layer < layers))
    run = Run(chosen, method, strict, recorder)
    beyond = [layer for layer in chosen.dense_layers if layer >= layers]
    if beyond:
        run.deviation("no_such_layer", beyond, f"dense_layers {beyond} are beyond the model's {layers} layers")
    scheduler = getattr(pipe, "scheduler", None)
    train_timesteps = TRAIN_TIMESTEPS if scheduler is None else int(scheduler.config.num_train_timesteps)
    return Handle(run, [_Patch(transformer, run, train_timesteps) for transformer in transformers])


class Handle:
    """What `apply` did. A context manager: leaving it removes the patch.

    schedule: the schedule that runs, method already applied. method: what was asked for, or None.
    """

    def __init__(self, run: Run, patches: list[_Patch]) -> None:
        self._run = run
        self._patches = patches

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
        while self._patches:
            self._patches.pop().remove()

    def report(self) -> dict[str, Any]:
        """What ran in the latest denoising loop, in JSON's types.

        steps: one row per step (or, outside a loop, per profile, with index None): index, sigma, profile, method,
        kernel and density (mean over layers), calls, tile and window in force, counted ("run", or "planned" where
        compiled code ran and calls follow from the plan), and layers: groups with kernel, density, calls and the
        reason where they are dense: dense_layer, dense_by_schedule, method_bf16, method_fp8 or window_covers_grid.
        layers_dense, fallbacks (deviations from the schedule), kernels {name: calls}, grid (T, H, W) in tokens.
        """
        return {"schedule": self.schedule.name, "asked_method": self.method, **self._run.recorder.as_dict()}

    def clear_report(self) -> None:
        """Forget what ran; a new denoising loop does so on its own."""
        self._run.recorder.clear()

    @contextmanager
    def at(self, sigma: float) -> Iterator[Handle]:
        """Meanwhile, forwards run by the profile of this noise level in [0, 1], whatever their timesteps (training)."""
        self._run.schedule.profile_at(sigma)
        before, self._run.sigma = self._run.sigma, float(sigma)
        try:
            yield self
        finally:
            self._run.sigma = before

    @contextmanager
    def clock(self) -> Iterator[AttentionClock]:
        """Meanwhile, the time of every self-attention call is measured."""
        clock = AttentionClock()
        processors = [processor for patch in self._patches for processor in patch.hook.processors]
        for processor in processors:
            processor.clock = clock
        try:
            yield clock
        finally:
            for processor in processors:
                processor.clock = None

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class _Patch:
    """What is installed on one transformer, and how to undo it."""

    def __init__(self, transformer: Any, run: Run, train_timesteps: int) -> None:
        self.transformer = transformer
        self.before = [block.attn1.processor for block in transformer.blocks]
        self.had_forward = "forward" in transformer.__dict__
        self.had_registry = "_diffusers_hook" in transformer.__dict__
        processors = [
            FpsAttnProcessor(layer, layer in run.recorder.dense_layers, run.recorder.count, old._attention_backend)
            for layer, old in enumerate(self.before)
        ]
        self.hook = ForwardHook(run, transformer, processors, train_timesteps)
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.register_hook(self.hook, HOOK)
        self.forward = transformer.__dict__["forward"]
        self.rope = transformer.rope.register_forward_hook(self.hook.rope_hook)  # pyright: ignore
        for block, processor in zip(transformer.blocks, processors, strict=True):
            block.attn1.set_processor(processor)

    def remove(self) -> None:
        for block, ours, old in zip(self.transformer.blocks, self.hook.processors, self.before, strict=True):
            if block.attn1.processor is ours:
                old._attention_backend = ours._attention_backend  # set_attention_backend may have been called meanwhile
                block.attn1.set_processor(old)
        self.rope.remove()
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


def _check(transformer: Any) -> None:
    """Raise FpsgenError, by name, for what cannot be patched."""
    registry = transformer.__dict__.get("_diffusers_hook")
    if registry is not None and registry.get_hook(HOOK) is not None:
        raise FpsgenError(
            "this transformer has fpsgen's attention already", "call remove() on the first handle before", USAGE
        )
    if getattr(transformer, "_parallel_config", None) is not None:
        raise FpsgenError(
            "diffusers' context or tensor parallelism is on, which fpsgen's attention does not handle yet",
            "load the transformer without enable_parallelism",
            ENVIRONMENT,
        )
    for layer, block in enumerate(transformer.blocks):
        kind = type(block.attn1.processor)
        if kind is not WanAttnProcessor:
            raise FpsgenError(
                f"layer {layer} has the attention processor {kind.__name__}, which fpsgen would replace",
                "set diffusers' own first: transformer.set_attn_processor(WanAttnProcessor())",
                USAGE,
            )
