"""A Wan pipeline of the true shapes with random weights: for timing without a checkpoint. Its videos mean nothing."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.models.catalog.cache import on_disk
from fpsgen.models.catalog.folder import check_folder
from fpsgen.models.catalog.registry import ModelSpec


def random_pipeline(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> WanPipeline:
    """The model's transformer, made on `device` in `dtype`, with Wan's scheduler; without text encoder and tokenizer.

    The (small) VAE is there for its geometry and is never run. Raises FpsgenError USAGE for a model of unknown shape.
    """
    config: dict[str, Any] = dict(spec.transformer)
    folder = None if config else on_disk(spec)
    if folder is not None:
        known = inspect.signature(WanTransformer3DModel.__init__).parameters
        stored = check_folder(folder).configs["transformer"]
        config = {key: value for key, value in stored.items() if key in known}
    if not config:
        raise FpsgenError(f"the shape of {spec.name} is not known", "fetch it first, or choose another", USAGE)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            transformer = WanTransformer3DModel(**config)
    finally:
        torch.set_default_dtype(before)
    with torch.device(device):
        vae = AutoencoderKLWan(base_dim=8)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=spec.shift)
    parts: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": vae, "scheduler": scheduler}
    pipe = WanPipeline(transformer=transformer.eval().requires_grad_(False), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPT_TOKENS = 120  # of the prompt that random_embeds stands in for: a long paragraph


def random_embeds(pipe: WanPipeline, length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Stand-in for an encoded prompt, [1, length, text dim]: random rows, then zeros, as WanPipeline pads."""
    width = pipe.transformer.config["text_dim"]
    embeds = torch.randn(1, length, width, generator=torch.Generator().manual_seed(1))
    embeds[:, PROMPT_TOKENS:] = 0
    return embeds.to(device, dtype)
