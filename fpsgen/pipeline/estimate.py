"""What a video would take: bytes to fetch, memory by stage, time. From committed rows and file sizes, or unknown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fpsgen.assets import figures_dir
from fpsgen.attention.schedule import Schedule
from fpsgen.models.catalog.cache import bytes_to_fetch, free_disk
from fpsgen.models.catalog.machine import Machine, this_machine
from fpsgen.pipeline.memory import frames_gb, refusal
from fpsgen.pipeline.request import DTYPES, GenerateRequest

_DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Estimate:
    """refusal: why this machine cannot, "" where it can. fetch, free_disk: bytes. memory_gb: by stage, estimated,
    None for a stage of which nothing is known; empty on a CPU. short_gb: how much more memory, of the GPU where there
    is one, it would take; 0 where it fits. denoise_s: from rows of the same card, or None.
    """

    refusal: str
    fetch: int
    free_disk: int
    memory_gb: dict[str, float | None]
    short_gb: float
    denoise_s: float | None


class ProfileSteps(NamedTuple):
    """steps: how many run by the profile. density: share of token pairs that it keeps, None where it is chosen anew at
    each call.
    """

    name: str
    method: str
    steps: int
    density: float | None


def estimate(request: GenerateRequest, tokens: int, profiles: list[ProfileSteps], schedule: Schedule) -> Estimate:
    """profiles: of the schedule."""
    spec, device = request.model.spec, request.machine.device
    machine = this_machine()
    on_gpu = bool(machine.gpu_memory(device)) or bool(spec.min_memory_gb)
    seconds = _denoise_seconds(request, device_name(device), profiles, schedule) if machine.gpu_memory(device) else None
    fetch = bytes_to_fetch(spec) if request.model.folder is None else 0
    memory = _memory(request, tokens) if on_gpu else {}
    short = _short_gb(request, machine, memory)
    return Estimate(refusal(request), fetch, free_disk(), memory, short, seconds)


def _short_gb(request: GenerateRequest, machine: Machine, memory: dict[str, float | None]) -> float:
    has = machine.gpu_memory(request.machine.device)
    if has:
        needed = max((gb for gb in memory.values() if gb is not None), default=0.0)
        needed = max(needed, request.model.spec.min_memory_gb)
    else:
        has, needed = machine.ram, frames_gb(request)
    return round(max(0.0, needed - has), 1) if has else 0.0


def device_name(device: str) -> str:
    """What the driver calls the GPU that `device` means."""
    import torch

    from fpsgen.pipeline.loaded_model import choose_device

    return torch.cuda.get_device_name(choose_device(device))


@cache
def bench_rows() -> tuple[dict[str, Any], ...]:
    """The committed rows of whole videos; none where they were not installed."""
    path = figures_dir() / "bench.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else ()


def _memory(request: GenerateRequest, tokens: int) -> dict[str, float | None]:
    """GB by stage. Weights: the repository's fp32 files in the dtype asked for. Denoising: what rows of the model took
    beyond its denoiser's weights, which grows with the tokens.
    """
    spec = request.model.spec
    size = _DTYPE_BYTES.get(request.machine.dtype, 2)
    weights = spec.download_gb * size / 4
    taken = {r["tokens"]: r["peak_memory"]["cuda_bytes"] / 1e9 - spec.parameters * 2 for r in _model_rows(request)}
    per_token = max((extra / count for count, extra in taken.items()), default=None)
    if not weights:
        return {"load": None, "denoise": None, "vae": None}
    denoise = taken.get(tokens, None if per_token is None else per_token * tokens)
    return {
        "load": round(weights, 1),
        "denoise": None if denoise is None else round(weights + denoise, 1),
        "vae": round(weights + frames_gb(request), 1),
    }


def _model_rows(request: GenerateRequest) -> list[dict[str, Any]]:
    rows = (row for row in bench_rows() if row["model"] == request.model.spec.name)
    return [row for row in rows if row["peak_memory"]["cuda_bytes"]]


def _denoise_seconds(
    request: GenerateRequest, device: str, profiles: list[ProfileSteps], schedule: Schedule
) -> float | None:
    """Seconds of denoising by a row of the same card, model, size, dtype, schedule, densities, linear layers and
    fused passes; None where there is none, and where steps are skipped or lose their guidance.
    """
    video, guided, values = request.video, request.sampling.guidance > 1, request.values()
    dtype = DTYPES.get(request.machine.dtype, "bfloat16")
    linear = values["linear"] or ("fp8" if schedule.fp8_linear else "bf16")
    if values["cache"] != "none" or values["cfg_until"] < 1:
        return None
    for row in bench_rows():
        same = (row["width"], row["height"], row["frames"]) == (video.width, video.height, video.frames)
        same = same and (row["model"], row["device"], row["dtype"]) == (request.model.spec.name, device, dtype)
        same = same and (row.get("linear", "bf16"), row.get("fused", True)) == (linear, not values["exact"])
        measured = {entry["profile"]: entry for entry in row["profiles"]}
        if (
            not same
            or row["schedule"] != schedule.name
            or not all(_same_work(p, measured.get(p.name)) for p in profiles)
        ):
            continue
        passes = (2 if guided else 1) / (2 if row["guidance"] > 1 else 1)  # guidance runs the model twice a step
        return passes * sum(measured[p.name]["step_s"]["median"] * p.steps for p in profiles)
    return None


def _same_work(profile: ProfileSteps, measured: dict[str, Any] | None) -> bool:
    """Whether a profile's measured entry is of the same method and nearly the same density."""
    if measured is None or profile.density is None or measured["method"] != profile.method:
        return False
    return abs(measured["density"] - profile.density) <= 0.05 * profile.density
