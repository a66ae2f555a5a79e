"""LoRA adapters by peft on the linear layers of attention and feed-forward."""

from __future__ import annotations

from typing import Any

import torch

from fpsgen.errors import ENVIRONMENT, FpsgenError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def add_lora(transformer: Any, rank: int, seed: int) -> None:
    """Add an adapter of this rank, scale 1, in fp32; all other weights are frozen and keep their dtype. Raises
    FpsgenError ENVIRONMENT without peft.
    """
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise FpsgenError("LoRA needs peft, which is not installed", "pip install peft", ENVIRONMENT) from error
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_lora(transformer: Any) -> None:
    """Add the adapter to the weights that it changes, and take it away."""
    transformer.fuse_lora()
    transformer.unload_lora()
