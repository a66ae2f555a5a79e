"""Whether this machine can make a video, judged before anything is loaded, and what it would take."""

from __future__ import annotations

from fpsgen.attention.methods.bf16 import GPU_BACKENDS
from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.models.catalog.machine import Machine, lacks, this_machine
from fpsgen.models.catalog.registry import ModelSpec
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.text import plural

_DECODED = 24  # bytes for each pixel and frame: the decoded video and its copy in [0, 1], three channels of fp32 each
_SMALL_GB = 1.0  # what is smaller than this fits any machine

_GPU_ONLY = {"method_impl": ("triton",), "bf16_backend": GPU_BACKENDS}


def check_machine(request: GenerateRequest, machine: Machine | None = None) -> None:
    """Raise FpsgenError ENVIRONMENT where this machine cannot run the model, or cannot hold the video."""
    check_device(request.machine.device, machine)
    check_model(request.model.spec, request.machine.device, machine)
    wrong = _option_refusal(request, machine)
    if wrong:
        raise FpsgenError(wrong, "leave the option out, or use a machine with an NVIDIA GPU", ENVIRONMENT)
    refusal = _video_refusal(request, machine)
    if refusal:
        raise FpsgenError(refusal, "try a smaller --res or fewer --frames", ENVIRONMENT)


def check_device(name: str, machine: Machine | None = None) -> None:
    """Raise FpsgenError ENVIRONMENT for a --device that this machine does not have."""
    if not name.startswith("cuda"):
        return
    count = len((machine or this_machine()).gpus)
    if not count:
        raise FpsgenError(f"--device {name}: there is no CUDA device", "run it with --device cpu", ENVIRONMENT)
    if int(name.partition(":")[2] or 0) >= count:
        what = f"--device {name}: there are {count} CUDA devices, counted from 0"
        raise FpsgenError(what, "run it with --device cuda:0", ENVIRONMENT)


def check_model(spec: ModelSpec, device: str, machine: Machine | None = None) -> None:
    """Raise FpsgenError ENVIRONMENT where this machine lacks what a model needs."""
    lack = model_lack(spec, device, machine)
    if lack:
        raise FpsgenError(f"{spec.name} {lack}", "use another machine, or -m nano, which runs on a CPU", ENVIRONMENT)


def model_lack(spec: ModelSpec, device: str, machine: Machine | None = None) -> str:
    """What this machine lacks for a model ("needs a CUDA GPU"), "" where it fits."""
    return lacks(spec, machine or this_machine(), device) if spec.min_memory_gb else ""


def refusal(request: GenerateRequest) -> str:
    """Why this machine cannot make the video, "" where it can as far as can be known."""
    try:
        check_machine(request)
    except FpsgenError as error:
        return error.message
    return ""


def frames_gb(request: GenerateRequest) -> float:
    """GB that the decoded frames take at least, on the device that decodes them."""
    video = request.video
    return _DECODED * video.width * video.height * video.frames / 1e9


def _option_refusal(request: GenerateRequest, machine: Machine | None) -> str:
    """Options that only a GPU can do."""
    values = request.values()
    asked = [f"--{name.replace('_', '-')} {values[name]}" for name, some in _GPU_ONLY.items() if values[name] in some]
    if not asked or (machine or this_machine()).gpu_memory(request.machine.device):
        return ""
    return f"{asked[0]} needs a CUDA GPU"


def _video_refusal(request: GenerateRequest, machine: Machine | None) -> str:
    needed = frames_gb(request)
    if needed < _SMALL_GB:
        return ""
    machine = machine or this_machine()
    on_gpu = machine.gpu_memory(request.machine.device)
    has, where = (on_gpu, "GPU memory") if on_gpu else (machine.ram, "memory")
    if not has or needed <= has:
        return ""
    video = request.video
    size = f"{plural(video.frames, 'frame')} of {video.width}x{video.height}"
    return f"{size} take {needed:.0f} GB once they are decoded, and this machine has {has:.0f} GB of {where}"
