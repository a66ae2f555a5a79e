"""One video, from top to bottom: load, apply, encode the text, denoise, decode, check, write.

`run` does it all; who makes several videos loads the model once (loaded_model.py) and passes it to `run` each time.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen.attention.schedule import AS_SCHEDULED
from fpsgen.ffmpeg import check_ffmpeg
from fpsgen.models.patch.apply import Handle, apply
from fpsgen.models.patch.backend import dense_backend
from fpsgen.models.patch.guidance import MOST_TOKENS, guidance_in_one_batch
from fpsgen.models.patch.schedule_choice import no_schedule_warning
from fpsgen.models.patch.step_cache import cache_config
from fpsgen.models.wan.random_weights import random_embeds
from fpsgen.models.wan.scheduler import coefficients_on_host, noise_from, with_shift
from fpsgen.models.wan.vae import decode_dtype
from fpsgen.pipeline.capture import Capture
from fpsgen.pipeline.compiler import as_compiled
from fpsgen.pipeline.decode import Frames, decode, frame_shape, needs_tiles
from fpsgen.pipeline.events import Timing, peak_rss
from fpsgen.pipeline.loaded_model import LoadedModel, dtype_name, load_model, readable_errors
from fpsgen.pipeline.output import VIDEO, write_output, write_sidecar
from fpsgen.pipeline.plan import words_note
from fpsgen.pipeline.recipe import build_recipe
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.pipeline.step_ends import StepEnds

REPORT_SCHEMA = "fpsgen.report/1"


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


@dataclass(frozen=True)
class Rendered:
    """frames: uint8 [T, H, W, 3], None with random weights. attention: what ran, Handle.report(). attention_s: the
    time of self-attention within stage "denoise", None where compiled code hides it. recipe: see recipe.py.
    """

    frames: np.ndarray | None
    attention: dict[str, Any]
    attention_s: float | None
    recipe: dict[str, Any]


@dataclass(frozen=True)
class _Denoised:
    """latents: [1, C, T, h, w]. shape: (frames, height, width) that they become, None with random weights. tiles:
    whether memory is too short for whole frames. The others as in Rendered.
    """

    latents: torch.Tensor
    shape: tuple[int, int, int] | None
    tiles: bool
    attention: dict[str, Any]
    attention_s: float | None
    recipe: dict[str, Any]


def run(
    request: GenerateRequest, timing: Timing, model: LoadedModel | None = None, capture: Capture | None = None
) -> GenerateResult:
    """Make the video that `request` describes. Reported to timing.events: stages, steps, warnings.

    model: the request's, if it is loaded already; it is as before afterwards. capture: inputs of attention to save
    meanwhile. Raises FpsgenError: MODEL, ENVIRONMENT (device, memory), NUMERIC (no real video), DISK. No video is left
    then.
    """
    unknown = words_note(request)
    if unknown:
        timing.warn(unknown)
    if model is None:
        check_ffmpeg()  # before there is work to lose
        model = load_model(request, timing)
    request = as_compiled(request, model.device, timing)
    made = _denoised(model, request, timing, capture)
    if made.shape is None:
        raise ValueError("random weights make no video")
    path = _write(model, request, timing, made)
    report = build_report(request, model, made, timing)
    beside = None
    if request.output.metadata:
        beside = write_sidecar(path, made.recipe, report, request.output.overwrite)
    return GenerateResult(path, beside, made.recipe, report)


def render(model: LoadedModel, request: GenerateRequest, timing: Timing, capture: Capture | None = None) -> Rendered:
    """The video as frames, nothing written. The pipeline is unpatched again afterwards. Raises as `run`."""
    request = as_compiled(request, model.device, timing)
    made = _denoised(model, request, timing, capture)
    frames = None
    if made.shape is not None:
        with readable_errors(request, timing), timing.stage("vae"):
            frames = np.concatenate(list(decode(model.pipe, made.latents, request.values()["exact"], made.tiles)))
    return Rendered(frames, made.attention, made.attention_s, made.recipe)


def _write(model: LoadedModel, request: GenerateRequest, timing: Timing, made: _Denoised) -> Path:
    """Decode into the file. Stage "vae" lasts until the last frame is decoded, and encoding goes on beside it; "mux" is
    the rest.
    """
    assert made.shape is not None
    with readable_errors(request, timing), ExitStack() as stages:

        def decoded() -> None:
            stages.close()
            stages.enter_context(timing.stage("mux"))

        stages.enter_context(timing.stage("vae"))
        parts = decode(model.pipe, made.latents, request.values()["exact"], made.tiles)
        frames = Frames(parts, made.shape, decoded)
        if request.output.path.suffix.lower() != VIDEO:  # what may take the first alone: all are checked before
            deque(frames, 0)
        return write_output(frames, request, made.recipe)


def _denoised(model: LoadedModel, request: GenerateRequest, timing: Timing, capture: Capture | None) -> _Denoised:
    """Everything up to the latents."""
    pipe, values = model.pipe, request.values()
    with readable_errors(request, timing):
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        pipe.scheduler = with_shift(pipe.scheduler, request.sampling.shift)
        head_dim = pipe.transformer.config.attention_head_dim
        chosen = dense_backend(values["bf16_backend"], model.device, model.dtype, head_dim)
        with chosen as backend, _patched_for_video(model, request) as handle:
            _say_deviations(handle, timing)
            with timing.stage("text"):
                embeds = _random_embeds(model, request) if model.random else encode(pipe, request, timing)
            observer = None
            if capture is not None:
                observer = capture.start(
                    len(pipe.transformer.blocks), request.sampling.steps, _capture_metadata(request)
                )
            with timing.stage("denoise"), handle.timer() as timer, handle.observing(observer):
                latents = denoise(pipe, handle, request, embeds, timing)
                attention_s = timer.seconds()
            _say_deviations(handle, timing)
            if observer is not None:
                observer.check_complete()
            shape = None if model.random else frame_shape(pipe, latents)
            held: dict[str, Any] = dict(zip(("frames", "height", "width"), shape, strict=True)) if shape else {}
            tiles = shape is not None and needs_tiles(pipe, latents, values["exact"])
            if tiles:
                timing.warn("GPU memory is short: the VAE decodes in blended tiles")
                held |= {"vae_tiles": True, "vae_dtype": dtype_name(pipe.vae.dtype)}
            recipe = build_recipe(request, _from_loaded_model(model, handle, request) | held)
            report = handle.report() | {"bf16_backend": backend}
            return _Denoised(latents, shape, tiles, report, attention_s, recipe)


def patched(pipe: Any, request: GenerateRequest, cache: Any = None) -> Handle:
    """fpsgen.apply as the request says, but for its step cache. cache: configuration of one."""
    attention, values = request.attention, request.values()
    more = {"linear": values["linear"], "exact": values["exact"], "impl": attention.method_impl, "cache": cache}
    return apply(pipe, attention.schedule, attention.method, attention.strict, **more)


def _patched_for_video(model: LoadedModel, request: GenerateRequest) -> Handle:
    with no_schedule_warning(model.random):  # random weights were trained for none
        return patched(model.pipe, request, step_cache(request))


def _say_deviations(handle: Handle, timing: Timing) -> None:
    """Warn of what does not run as asked for, see Handle.report."""
    for row in handle.report()["fallbacks"]:
        timing.warn(row["detail"])


def step_cache(request: GenerateRequest) -> Any:
    """Configuration of the step cache that was asked for, or None."""
    name = request.values()["cache"]
    return None if name == "none" else cache_config(name, request.sampling.steps, request.model.spec.mag_ratios)


def build_report(request: GenerateRequest, model: LoadedModel, made: _Denoised, timing: Timing) -> dict[str, Any]:
    """Where time and memory went and what ran where, JSON-ready."""
    on_gpu = model.device.type == "cuda"
    return {
        "schema": REPORT_SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": str(request.model.folder),
        **timing.as_json(),
        "peak_memory": {
            "rss_bytes": peak_rss(),
            "cuda_bytes": torch.cuda.max_memory_allocated(model.device) if on_gpu else None,
        },
        "density": mean_density(made.attention),
        "attention_s": None if made.attention_s is None else round(made.attention_s, 3),
        "attention": made.attention,
        "warnings": list(timing.warnings),
    }


def guided_steps(request: GenerateRequest) -> int:
    """Steps that run with guidance: the first `cfg_until` of them, one at least."""
    return max(1, round(request.values()["cfg_until"] * request.sampling.steps))


def one_batch(request: GenerateRequest, device: torch.device) -> bool:
    """Whether both branches of guidance run in one forward: where the host's launches take the time, by tokens.

    Not where diffusers' rounding is asked for, and not with a step cache, which would judge both branches together.
    """
    video = request.video
    tokens = math.prod(request.model.geometry.token_grid(video.width, video.height, video.frames))
    values, guided = request.values(), request.sampling.guidance > 1
    return guided and tokens <= MOST_TOKENS[device.type] and not values["exact"] and values["cache"] == "none"


def mean_density(attention: dict[str, Any]) -> float | None:
    """Share of token pairs that self-attention kept, averaged over the steps of a handle's report."""
    return None if attention["density"] is None else round(attention["density"], 4)


@torch.no_grad()
def encode(pipe: Any, request: GenerateRequest, timing: Timing) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt and negative prompt as [1, max_sequence_length, text dim]; the second is None without guidance."""
    limit = request.prompt.max_sequence_length
    for what, text in (("prompt", request.prompt.text), ("negative prompt", request.prompt.negative)):
        length = len(pipe.tokenizer(text, add_special_tokens=True).input_ids)
        if length > limit:
            timing.warn(f"the {what} has {length} tokens; the model reads the first {limit}")
    return pipe.encode_prompt(
        prompt=request.prompt.text,
        negative_prompt=request.prompt.negative,
        do_classifier_free_guidance=request.sampling.guidance > 1,
        max_sequence_length=limit,
    )


def _random_embeds(model: LoadedModel, request: GenerateRequest) -> tuple[torch.Tensor, torch.Tensor | None]:
    embeds = random_embeds(model.pipe, request.prompt.max_sequence_length, model.device, model.dtype)
    return embeds, embeds.flip(2) if request.sampling.guidance > 1 else None


def denoise(
    pipe: Any,
    handle: Any,
    request: GenerateRequest,
    embeds: tuple[torch.Tensor, torch.Tensor | None],
    timing: Timing,
) -> torch.Tensor:
    """Latents [1, C, T, H, W] in fp32. Noise comes from the CPU generator, so a seed means the same on every device."""

    video, sampling = request.video, request.sampling
    generator = torch.Generator("cpu").manual_seed(sampling.seed)
    guided = guided_steps(request)
    ends = StepEnds(embeds[0].device, sampling.steps, timing)

    def after_step(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.queued(index, tensors["latents"], handle_note(handle))
        if index + 1 >= guided:  # the pipeline reads it at every step: no second forward from here on
            pipe._guidance_scale = 1.0
        return tensors

    with ExitStack() as meanwhile:
        meanwhile.enter_context(noise_from(pipe.scheduler, generator))
        if not request.values()["exact"]:
            meanwhile.enter_context(coefficients_on_host(pipe.scheduler))
        if embeds[1] is not None and one_batch(request, embeds[0].device):
            text, negative = (one.to(pipe.transformer.dtype) for one in (embeds[0], embeds[1]))
            guidance = guidance_in_one_batch(pipe.transformer, text, negative, lambda: pipe.do_classifier_free_guidance)
            meanwhile.enter_context(guidance)
        latents = pipe(
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            height=video.height,
            width=video.width,
            num_frames=video.frames,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=generator,
            output_type="latent",
            callback_on_step_end=after_step,
            max_sequence_length=request.prompt.max_sequence_length,
        ).frames
        ends.finish()
        return latents


def handle_note(handle: Any) -> str:
    """Profile, method and density of the step that has just run, for a person."""
    step = handle.latest_step()
    if step is None:
        return ""
    density = "" if step["density"] is None else f" {step['density']:.0%}"
    return f"{step['profile']} ({step['method']}{density})"


def _capture_metadata(request: GenerateRequest) -> dict[str, Any]:
    return {"model": request.model.spec.name, "prompt": request.prompt.text, "seed": request.sampling.seed}


def _from_loaded_model(model: LoadedModel, handle: Any, request: GenerateRequest) -> dict[str, Any]:
    """What a recipe needs and only the loaded model tells."""
    on_gpu, values = model.device.type == "cuda", request.values()
    adapter = {"lora_sha256": model.lora_sha256} if model.lora_sha256 else {}
    return adapter | {
        "scheduler": type(model.pipe.scheduler).__name__,
        "method": handle.method or AS_SCHEDULED,
        "linear": values["linear"] or AS_SCHEDULED,
        "schedule": {"name": handle.schedule.name, "toml": handle.schedule.to_toml()},
        "device": torch.cuda.get_device_name(model.device) if on_gpu else "cpu",
        "dtype": dtype_name(model.dtype),
        "vae_dtype": dtype_name(decode_dtype(model.pipe.vae, values["exact"])),
        "cfg_in_one_batch": one_batch(request, model.device),
    }
