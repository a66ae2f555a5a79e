"""LoRA adapters by peft on the linear layers of attention and feed-forward."""

from __future__ import annotations

from typing import Any

import torch

from fpsgen.models.peft import check_peft

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def add_lora(transformer: Any, rank: int, seed: int) -> None:
    """Add an adapter of this rank, scale 1, in the model's dtype; all other weights are frozen. Raises FpsgenError
    ENVIRONMENT without peft.
    """
    check_peft()
    from peft import LoraConfig

    transformer.requires_grad_(False)
    dtype = transformer.dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def merge_lora(transformer: Any) -> None:
    """Add the adapter to the weights that it changes, and take it away."""
    transformer.fuse_lora()
    transformer.unload_lora()


def adapter_size(model: dict[str, Any], rank: int) -> int:
    """Weights of an adapter of this rank for a Wan transformer, by its config."""
    width = model["num_attention_heads"] * model["attention_head_dim"]
    return model["num_layers"] * rank * (8 * 2 * width + 2 * (width + model["ffn_dim"]))
