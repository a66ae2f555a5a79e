"""A model that is loaded: on its device, in its dtype, ready for any number of videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fpsgen.attention.op import UnsupportedDeviceError
from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.models.catalog.cache import missing
from fpsgen.models.catalog.machine import this_machine
from fpsgen.models.catalog.manifest import sha256
from fpsgen.models.wan.load import default_dtype, load
from fpsgen.models.wan.lora_file import add_lora_file
from fpsgen.models.wan.random_weights import random_pipeline
from fpsgen.pipeline.compiler import NO_COMPILER
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.memory import check_device
from fpsgen.pipeline.request import DTYPES, GenerateRequest


@dataclass(frozen=True)
class LoadedModel:
    """pipe: a diffusers WanPipeline. dtype: the transformer's; the VAE is fp32. random: its weights mean nothing, and
    only denoising can be run. lora_sha256: of the LoRA file that was merged, if one was.
    """

    pipe: Any
    device: torch.device
    dtype: torch.dtype
    random: bool = False
    lora_sha256: str | None = None


def load_model(request: GenerateRequest, timing: Timing, random: bool = False) -> LoadedModel:
    """Load the model of `request` (stage "load"), or make one of its shape. Raises FpsgenError MODEL, ENVIRONMENT."""
    device = choose_device(request.machine.device)
    dtype = choose_dtype(request.machine.dtype, device)
    with readable_errors(request, timing), timing.stage("load"):
        if random:
            return LoadedModel(random_pipeline(request.model.spec, device, dtype), device, dtype, True)
        choice = request.model
        if choice.folder is None:
            raise missing(choice.spec.name, choice.spec)
        pipe = load(choice, device=device, dtype=dtype)
        if not request.values()["lora"]:
            return LoadedModel(pipe, device, dtype)
        lora = Path(request.values()["lora"])
        add_lora_file(pipe, lora)
        return LoadedModel(pipe, device, dtype, lora_sha256=sha256(lora))


@contextmanager
def readable_errors(request: GenerateRequest, timing: Timing) -> Iterator[None]:
    """Turns what devices refuse within the block into FpsgenError ENVIRONMENT with a way out."""
    try:
        yield
    except UnsupportedDeviceError as error:
        what, _, remedy = str(error).partition("\n")
        raise FpsgenError(what, remedy or "run it with --method sta or --method bf16", ENVIRONMENT) from error
    except torch.OutOfMemoryError as error:
        stage = timing.running
        video = request.video
        message = f"the GPU ran out of memory in stage {stage} at {video.width}x{video.height}x{video.frames}"
        raise FpsgenError(message, "try a smaller --res or fewer --frames", ENVIRONMENT) from error
    except (MemoryError, RuntimeError) as error:
        if "C compiler" in str(error):
            raise NO_COMPILER from error
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        message = f"memory ran out in stage {timing.running}"
        raise FpsgenError(message, "try a smaller --res or fewer --frames", ENVIRONMENT) from error


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": CUDA where there is one; of several GPUs the one with the most memory, unless a
    number says which. Raises FpsgenError ENVIRONMENT.
    """
    machine = this_machine()
    check_device(name, machine)
    if name == "cpu" or not machine.gpus:
        return torch.device("cpu")
    return torch.device(name) if ":" in name else torch.device("cuda", machine.largest_gpu())


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The transformer's dtype; the VAE is fp32 always."""
    return default_dtype(device) if name == "auto" else getattr(torch, DTYPES[name])


def dtype_name(dtype: torch.dtype) -> str:
    """As recipes and rows say it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
