"""Pairs of a dense teacher: latents of its own denoising trajectories and the velocities that it predicts there.

One safetensors shard a prompt, written whole or not at all; a run that was stopped goes on with the next prompt.
Needs prompts, no videos. Tensors of a shard (S steps): latents, velocity, velocity_null [S, C, T, H, W] fp16,
sigmas, timesteps fp32 [S], clean fp16 [C, T, H, W] (where the trajectory ends), text, text_null [L, D].
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fpsgen.errors import BAD_INPUT, NUMERIC, FpsgenError
from fpsgen.files import atomic, make_folder, read_json, sweep, used_alone, write_text, writing_tensors
from fpsgen.models.wan.load import load
from fpsgen.models.wan.scheduler import with_shift
from fpsgen.signals import check_stop
from fpsgen.text import plural, show
from fpsgen.train.config import TrainConfig
from fpsgen.train.disk import check_space
from fpsgen.train.events import Events
from fpsgen.train.inputs import check_inputs, choose_model
from fpsgen.train.live import LivePairs, trajectory_seed

IDENTITY = "teacher.json"
_OF_TEACHER = ("model", "width", "height", "frames", "teacher_steps", "guidance", "shift", "seed", "prompts")


def make_pairs(
    pipe: Any, config: TrainConfig, tokens: int, folder: Path, events: Events, together: int = 1
) -> list[Path]:
    """The shards of all prompts, made where they are not there yet. pipe: unpatched, so attention is dense. tokens:
    text tokens that the model reads. events: get each prompt that is made. together: prompts in one forward; the last
    bits of the pairs depend on it. Raises FpsgenError BAD_INPUT where `folder` holds pairs of another teacher, DISK
    where they do not fit.
    """
    make_folder(folder)
    identity = {"schema": "fpsgen.pairs/1", "digest": config.digest(_OF_TEACHER)}
    own = folder / IDENTITY
    if not own.exists():
        write_text(json.dumps(identity) + "\n", own)
    elif read_json(own, 1 << 16, str(own)) != identity:
        raise FpsgenError(
            f"{show(folder)} holds pairs that were made with other settings", "name another folder with -o", BAD_INPUT
        )
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(config.prompts))]
    sweep(folder)
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    size = shard_bytes(latent_shape(pipe, config), config.teacher_steps)
    check_space(folder, size * len(missing), f"the teacher's pairs of {plural(len(missing), 'prompt')}")
    for first in range(0, len(missing), together):
        some = missing[first : first + together]
        seeds = [trajectory_seed(config.seed, number) for number in some]
        made = trajectories(pipe, config, [config.prompts[number] for number in some], tokens, seeds)
        for done, (number, tensors) in enumerate(zip(some, made, strict=True), first):
            with atomic(paths[number]) as part, writing_tensors():
                save_file(tensors, part)
            events.step(done, len(missing), config.prompts[number])
    return paths


def prepare_pairs(
    config: TrainConfig, folder: Path, device: torch.device, events: Events, together: int = 1
) -> list[Path]:
    """The pairs of a run in its folder, as the run itself would make them where `together` is 1. Raises FpsgenError as
    `make_pairs`, and MODEL, ENVIRONMENT, LOCKED.
    """
    choice = choose_model(config)
    make_folder(folder)
    with used_alone(folder):
        check_inputs(folder, choice, config.data)
        pipe = load(choice, device=device)
        return make_pairs(pipe, config, choice.spec.max_sequence_length, folder / "pairs", events, together)


def shard_bytes(latents: tuple[int, ...], steps: int) -> int:
    """About what the pairs of one prompt take: three times the latents at each step in fp16; text is little beside."""
    return 2 * (3 * steps + 1) * math.prod(latents)


@torch.no_grad()
def trajectories(
    pipe: Any, config: TrainConfig, prompts: Sequence[str], tokens: int, seeds: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """The tensors of a shard for each prompt, which share the model's forwards. Raises FpsgenError NUMERIC where the
    teacher's latents are not finite.
    """
    transformer, device = pipe.transformer, pipe.transformer.device
    text = torch.cat([embed(pipe, words, tokens) for words in prompts])
    null = embed(pipe, "", tokens).expand_as(text)
    scheduler = make_steps(pipe, config)
    shape = latent_shape(pipe, config)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) for seed in seeds]
    latents = torch.cat(noise).to(device)
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("latents", "velocity", "velocity_null")}
    for timestep in scheduler.timesteps:
        check_stop()
        steps = timestep.expand(len(prompts))
        inputs = latents.to(transformer.dtype)
        with_text, without = (
            transformer(hidden_states=inputs, timestep=steps, encoder_hidden_states=words, return_dict=False)[0].float()
            for words in (text, null)
        )
        for name, value in (("latents", latents), ("velocity", with_text), ("velocity_null", without)):
            rows[name].append(value.half().cpu())
        guided = without + config.guidance * (with_text - without)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    finite = latents.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        what = f"the teacher's video of {show(prompts[finite.index(False)], 60)!r} is not finite"
        raise FpsgenError(what, "try another dtype", NUMERIC)
    count = len(scheduler.timesteps)
    common = {
        "sigmas": scheduler.sigmas[:count].float().cpu().contiguous(),
        "timesteps": scheduler.timesteps.float().cpu().contiguous(),
        "text_null": null[0].cpu().contiguous(),
    }
    return [
        {
            **{name: torch.stack([value[number] for value in values]) for name, values in rows.items()},
            **common,
            "clean": latents[number].half().cpu(),
            "text": text[number].cpu().contiguous(),
        }
        for number in range(len(prompts))
    ]


def make_steps(pipe: Any, config: TrainConfig) -> Any:
    """The scheduler of a trajectory, with its timesteps and sigmas."""
    scheduler = with_shift(pipe.scheduler, config.shift)
    scheduler.set_timesteps(config.teacher_steps, device=pipe.transformer.device)
    return scheduler


def dense_copy(pipe: Any) -> Any:
    """The same pipeline with a copy of its transformer, for a teacher while `pipe`'s own is trained."""
    parts = pipe.components | {"transformer": copy.deepcopy(pipe.transformer)}
    return type(pipe)(**parts, expand_timesteps=pipe.config.expand_timesteps)


def live_pairs(pipe: Any, config: TrainConfig, tokens: int) -> LivePairs:
    """Pairs of the run's prompts, the held-out ones apart, made while it runs. pipe: with a dense transformer that
    nobody trains, and with its text encoder.
    """
    prompts = config.prompts[: len(config.prompts) - config.held_out]

    def make(prompt: str, seed: int) -> dict[str, torch.Tensor]:
        return trajectories(pipe, config, [prompt], tokens, [seed])[0]

    sigmas = make_steps(pipe, config).sigmas[: config.teacher_steps]
    return LivePairs(make, prompts, config.parsed_schedule(), sigmas)


def latent_shape(pipe: Any, config: TrainConfig) -> tuple[int, int, int, int, int]:
    frames = (config.frames - 1) // pipe.vae_scale_factor_temporal + 1
    sides = config.height // pipe.vae_scale_factor_spatial, config.width // pipe.vae_scale_factor_spatial
    return (1, pipe.transformer.config.in_channels, frames, *sides)


def embed(pipe: Any, words: str, tokens: int) -> torch.Tensor:
    """The text encoder's output [1, L, D] in its dtype, zeros behind the last token."""
    embeds, _ = pipe.encode_prompt(prompt=words, do_classifier_free_guidance=False, max_sequence_length=tokens)
    return embeds
