"""Cross-attention of a Wan block: query norm in one pass, keys and values of a text computed once and kept.

A prompt's embedding is one tensor through a whole denoising loop. Projected text hangs on weak references to it, so it
goes when the prompt goes. Inference tensors do not count their versions; for them nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch.compiler import is_compiling
from torch.utils.weak import WeakTensorKeyDictionary

from fpsgen.fused import rms_norm_rows


class Kept:
    """Results of a function of one tensor, while that tensor lives unchanged."""

    def __init__(self) -> None:
        self._results: Any = WeakTensorKeyDictionary()

    def get(self, text: torch.Tensor, compute: Callable[[], Any], *layers: torch.nn.Module) -> Any:
        """compute(), or what it gave for this tensor at the same version, also of the weights of `layers`. Layers with
        adapters are computed anew each time: merging writes to weights unseen.
        """
        if is_compiling() or torch.is_grad_enabled():
            return compute()
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        unseen = any(hasattr(layer, "base_layer") for layer in layers) or any(p.is_inference() for p in parameters)
        if unseen or text.is_inference():
            return compute()
        state = (text._version, *((p.data_ptr(), p._version) for p in parameters))
        found = self._results.get(text)
        if found is None or found[0] != state:
            found = self._results[text] = (state, compute())
        return found[1]


class TextAttnProcessor(WanAttnProcessor):
    """Replaces the processor of `block.attn2`; images beside the text (I2V) go diffusers' own way."""

    def __init__(self, backend: Any = None) -> None:
        super().__init__()
        self._attention_backend = backend
        self.kept = Kept()

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        """hidden_states: tensor or FP8Rows [B, L, dim], as attn.to_q takes it."""
        if attn.add_k_proj is not None or encoder_hidden_states is None or rotary_emb is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query = attn.to_q(hidden_states)
        if not query.is_cuda or torch.is_grad_enabled() or torch.is_autocast_enabled(query.device.type):
            query = attn.norm_q(query)
        else:
            query = rms_norm_rows(query, attn.norm_q.weight, attn.norm_q.eps)
        layers = (attn.to_kv,) if attn.fused_projections else (attn.to_k, attn.to_v)
        key, value = self.kept.get(encoder_hidden_states, lambda: _project(attn, encoder_hidden_states), *layers)
        out = dispatch_attention_fn(
            query.unflatten(2, (attn.heads, -1)), key, value, attn_mask=attention_mask, backend=self._attention_backend
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def _project(attn: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (normed) and values [B, text length, H, D]."""
    if attn.fused_projections:
        key, value = attn.to_kv(text).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(text), attn.to_v(text)
    return attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))


class KeptTextProjection(PixArtAlphaTextProjection):
    """The projection of a prompt's embedding to the transformer's width, once per prompt."""

    kept: Kept

    def forward(self, caption: torch.Tensor) -> torch.Tensor:
        return self.kept.get(caption, lambda: PixArtAlphaTextProjection.forward(self, caption), self)
