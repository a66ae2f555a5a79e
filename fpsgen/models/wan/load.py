"""Load a Wan pipeline from disk, with what people get wrong set right: fp32 VAE, flow scheduler, safetensors only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from safetensors import SafetensorError, safe_open

from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.models.catalog.folder import WEIGHTED, broken, check_folder, weight_files
from fpsgen.models.catalog.registry import resolve

TIED = {"encoder.embed_tokens.weight", "shared.weight"}  # one tensor under two names; files hold either


def load(source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> WanPipeline:
    """A WanPipeline on `device`, in eval mode; transformer and text encoder in `dtype`, the VAE in fp32.

    source: a pipeline folder, a name of the registry, or a hub id that is in the cache. Nothing is downloaded. Weights
    come from safetensors only and are checked to be whole: a tensor that the files lack is an error, not a random
    number. Raises FpsgenError: MODEL, or ENVIRONMENT where memory does not suffice.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_folder(folder)
    else:
        _, folder, _ = resolve(str(source))
    with _quiet():
        try:
            pipe = WanPipeline.from_pretrained(
                folder, dtype={"default": dtype, "vae": torch.float32}, use_safetensors=True, local_files_only=True
            )
        except torch.OutOfMemoryError:
            raise
        except MemoryError as error:
            raise FpsgenError(
                f"memory does not suffice to load {folder}", "choose a smaller model with --model", ENVIRONMENT
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise broken(folder, str(error).strip().split("\n")[0] or type(error).__name__) from error
    _check_whole(pipe, folder)
    pipe.scheduler = flow_scheduler(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    for part in WEIGHTED:
        getattr(pipe, part).eval().requires_grad_(False)
    return pipe.to(device)


def flow_scheduler(scheduler: Any, shift: float | None = None) -> Any:
    """The scheduler, made to predict flow. Wan's is UniPC, whose from_config silently drops the flow settings when it
    is given another scheduler's: they are set explicitly here. shift: flow shift, None keeps the scheduler's own.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return scheduler if shift is None else type(scheduler).from_config(scheduler.config, shift=shift)
    config = scheduler.config
    kind = type(scheduler) if "flow_shift" in config else UniPCMultistepScheduler
    shift = config.get("flow_shift", config.get("shift", 3.0)) if shift is None else shift
    return kind.from_config(config, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def _check_whole(pipe: WanPipeline, folder: Path) -> None:
    """Every tensor of the model must be in the files: from_pretrained only logs what is missing."""
    for part in WEIGHTED:
        found: set[str] = set()
        for path in weight_files(folder / part):
            try:
                with safe_open(path, framework="pt") as file:
                    found |= set(file.keys())
            except (OSError, SafetensorError) as error:
                raise broken(folder, f"{path.name}: {error}") from error
        wanted = set(getattr(pipe, part).state_dict())
        missing = sorted(wanted - found - (TIED if found & TIED else set()))
        if missing:
            raise broken(folder, f"{part} lacks {len(missing)} tensors, first {missing[0]}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of diffusers and transformers meanwhile; both are set back as they were."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging)
    were = [log.is_progress_bar_enabled() for log in logs]
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, was in zip(logs, were, strict=True):
            if was:
                log.enable_progress_bar()
