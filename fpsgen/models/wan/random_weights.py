"""A Wan pipeline of the true shapes with random weights: for timing without a checkpoint. Its videos mean nothing."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.models.catalog.folder import read_json
from fpsgen.models.catalog.registry import ModelSpec, on_disk

# sizes of the published checkpoints' transformer/config.json
SHAPES = {
    "wan2.1-1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan2.1-14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}


def random_pipeline(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> WanPipeline:
    """The model's transformer, made on `device` in `dtype`, with Wan's scheduler; without text encoder and tokenizer.

    The (small) VAE is there for its geometry and is never run. Raises FpsgenError USAGE for a model of unknown shape.
    """
    folder = on_disk(spec)
    config: dict[str, Any] = dict(SHAPES.get(spec.name, {}))
    if not config and folder is not None:
        known = inspect.signature(WanTransformer3DModel.__init__).parameters
        stored = read_json(folder / "transformer" / "config.json")
        config = {key: value for key, value in stored.items() if key in known}
    if not config:
        raise FpsgenError(f"the shape of {spec.name} is not known", f"choose from {', '.join(SHAPES)} or nano", USAGE)
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


def random_embeds(pipe: WanPipeline, length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Stand-in for an encoded prompt, [1, length, text dim]."""
    width = pipe.transformer.config["text_dim"]
    return torch.randn(1, length, width, generator=torch.Generator().manual_seed(1)).to(device, dtype)
