"""Whether GPU kernels can be compiled here, and what a request becomes where they cannot or shall not be."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch

from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.request import GenerateRequest

NO_COMPILER = FpsgenError(
    "no C compiler was found, and Triton needs one to build what starts its kernels",
    "install gcc (apt install gcc), or name one in CC",
    ENVIRONMENT,
)
NO_TRITON = FpsgenError(
    "Triton is not installed, and the GPU kernels need it",
    "pip install 'fpsgen[gpu]' (Triton comes with CUDA builds of torch)",
    ENVIRONMENT,
)


def c_compiler() -> str | None:
    """What Triton builds with: CC, clang or gcc. None where that is no program."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else shutil.which("clang") or shutil.which("gcc")


def what_lacks() -> FpsgenError | None:
    """Why Triton's kernels cannot be compiled on this machine."""
    if find_spec("triton") is None:
        return NO_TRITON
    return None if c_compiler() else NO_COMPILER


def as_compiled(request: GenerateRequest, device: torch.device, timing: Timing) -> GenerateRequest:
    """The request as this device runs it. With compile "off", or where a GPU's kernels cannot be compiled, that is
    diffusers as it comes: dense bf16 attention, bf16 linear layers, nothing fused. A CPU compiles nothing anyway.

    Warns where that was not asked for. Raises FpsgenError ENVIRONMENT instead, if the request is strict.
    """
    if device.type != "cuda":
        return request
    if request.values()["compile"] != "off":
        lack = what_lacks()
        if lack is None:
            return request
        if request.attention.strict:
            raise lack
        timing.warn(f"{lack.message}: this runs as --compile off does, at diffusers' speed; {lack.remedy}")
    return request.replace(attention={"method": "bf16"}).with_settings(linear="bf16", exact=True)
