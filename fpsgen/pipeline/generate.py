"""One video, from top to bottom: load, apply, encode the text, denoise, decode, check, write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen.attention.function import UnsupportedDeviceError
from fpsgen.errors import DISK, ENVIRONMENT, MODEL, FpsgenError
from fpsgen.models.load import load
from fpsgen.models.wan import apply
from fpsgen.pipeline.checks import check_latents, to_frames
from fpsgen.pipeline.output import free_name, sidecar
from fpsgen.pipeline.recipe import build_recipe
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.timing import Timing, peak_rss
from fpsgen.video import write_mp4, write_text

REPORT_SCHEMA = "fpsgen.report/1"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class GenerateResult:
    """path: the MP4. sidecar: its JSON file, or None (--no-metadata). recipe, report: what that file holds."""

    path: Path
    sidecar: Path | None
    recipe: dict[str, Any]
    report: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sidecar": str(self.sidecar) if self.sidecar else None,
            "seed": self.recipe["seed"],
            "recipe": self.recipe,
            "report": self.report,
        }


def run(request: GenerateRequest, timing: Timing) -> GenerateResult:
    """Make the video that `request` describes. Told to timing.events: stages, steps, warnings.

    Raises FpsgenError: MODEL, ENVIRONMENT (device, memory), NUMERIC (no real video), DISK. No file is left then.
    """
    try:
        return _run(request, timing)
    except UnsupportedDeviceError as error:
        what, _, remedy = str(error).partition("\n")
        raise FpsgenError(what, remedy or "run it with --method sta or --method bf16", ENVIRONMENT) from error
    except torch.OutOfMemoryError as error:
        stage = timing.running
        message = f"the GPU ran out of memory in stage {stage} at {request.width}x{request.height}x{request.frames}"
        raise FpsgenError(message, "try a smaller --res or fewer --frames", ENVIRONMENT) from error


def _run(request: GenerateRequest, timing: Timing) -> GenerateResult:
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    with timing.stage("load"):
        pipe = load(request.model_path, device=device, dtype=dtype)
        set_shift(pipe, request.shift)
        handle = apply(pipe, schedule=request.schedule, method=request.method, strict=request.strict)
    with timing.stage("text"):
        embeds = _encode(pipe, request, timing)
    with timing.stage("denoise"):
        latents = _denoise(pipe, handle, request, embeds, timing)
    with timing.stage("vae"):
        frames = to_frames(_decode(pipe, latents)).numpy()

    attention = handle.report()
    recipe = build_recipe(request, _facts(pipe, handle, device, dtype))
    with timing.stage("mux"):
        path = _write(frames, request, recipe)
    report = {
        "schema": REPORT_SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": str(request.model_path),
        **timing.as_json(),
        "peak_memory": {
            "rss_bytes": peak_rss(),
            "cuda_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        },
        "density": mean_density(attention),
        "attention": attention,
        "warnings": list(timing.warnings),
    }
    beside = None
    if request.metadata:
        beside = write_text(json.dumps({"recipe": recipe, "report": report}, indent=2) + "\n", sidecar(path))
    return GenerateResult(path, beside, recipe, report)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": CUDA where there is one. Raises FpsgenError ENVIRONMENT."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FpsgenError(f"--device {name}: torch finds no CUDA device", "run it with --device cpu", ENVIRONMENT)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0"
        raise FpsgenError(message, "run it with --device cuda:0", ENVIRONMENT)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The transformer's dtype; "auto": bf16 on CUDA, fp32 on the CPU. The VAE is fp32 always."""
    return _DTYPES[name] if name != "auto" else torch.bfloat16 if device.type == "cuda" else torch.float32


def set_shift(pipe: Any, shift: float) -> None:
    """Give the pipeline's scheduler this flow shift. Raises FpsgenError MODEL for a scheduler that has none."""
    config = pipe.scheduler.config
    key = next((key for key in ("flow_shift", "shift") if key in config), None)
    if key is None:
        name = type(pipe.scheduler).__name__
        raise FpsgenError(f"scheduler {name} of the model has no flow shift", "choose a Wan model with -m", MODEL)
    pipe.scheduler = type(pipe.scheduler).from_config(config, **{key: shift})


def mean_density(attention: dict[str, Any]) -> float | None:
    """Share of token pairs that self-attention kept, averaged over the steps of a handle's report."""
    kept = [step["density"] for step in attention["steps"]]
    return round(sum(kept) / len(kept), 4) if kept else None


@torch.no_grad()
def _encode(pipe: Any, request: GenerateRequest, timing: Timing) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt and negative prompt as [1, max_sequence_length, text dim]; the second is None without guidance."""
    limit = request.max_sequence_length
    for what, text in (("prompt", request.prompt), ("negative prompt", request.negative)):
        length = len(pipe.tokenizer(text, add_special_tokens=True).input_ids)
        if length > limit:
            timing.warn(f"the {what} has {length} tokens; the model reads the first {limit}")
    return pipe.encode_prompt(
        prompt=request.prompt,
        negative_prompt=request.negative,
        do_classifier_free_guidance=request.guidance > 1,
        max_sequence_length=limit,
    )


def _denoise(
    pipe: Any,
    handle: Any,
    request: GenerateRequest,
    embeds: tuple[torch.Tensor, torch.Tensor | None],
    timing: Timing,
) -> torch.Tensor:
    """Latents [1, C, T, H, W] in fp32. Noise comes from the CPU generator, so a seed means the same on every device."""

    def after_step(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        check_latents(tensors["latents"], f"step {index + 1} of {request.steps}")
        timing.step(index, request.steps, handle_note(handle))
        return tensors

    return pipe(
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        height=request.height,
        width=request.width,
        num_frames=request.frames,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="latent",
        callback_on_step_end=after_step,
        max_sequence_length=request.max_sequence_length,
    ).frames


@torch.no_grad()
def _decode(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents [1, C, T, H, W] to video [1, 3, T', H', W'] in [-1, 1], in the VAE's dtype."""
    vae = pipe.vae
    latents = latents.to(vae.device, vae.dtype)
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae.decode(latents * std + mean, return_dict=False)[0]


def handle_note(handle: Any) -> str:
    """Profile, method and density of the step that has just run, for a person."""
    steps = handle.report()["steps"]
    if not steps:
        return ""
    return f"{steps[-1]['profile']} ({steps[-1]['method']} {steps[-1]['density']:.0%})"


def _facts(pipe: Any, handle: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a recipe needs and only the loaded model tells."""
    return {
        "scheduler": type(pipe.scheduler).__name__,
        "method": handle.method or "as scheduled",
        "schedule": {"name": handle.schedule.name, "toml": handle.schedule.to_toml()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "vae_dtype": str(pipe.vae.dtype).removeprefix("torch."),
    }


def _write(frames: np.ndarray, request: GenerateRequest, recipe: dict[str, Any]) -> Path:
    """Write the MP4 and return its path, numbered if the name was taken meanwhile."""
    path = request.output
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FpsgenError(
            f"folder {path.parent} cannot be made: {error.strerror}", "choose another with -o", DISK
        ) from error
    while True:
        try:
            return write_mp4(frames, path, request.fps, recipe if request.metadata else None, request.overwrite)
        except FileExistsError:
            if not request.numbered:
                raise FpsgenError(f"{path} exists by now", "choose another name, or add --overwrite", DISK) from None
            path = free_name(path)
