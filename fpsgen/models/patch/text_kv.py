"""Cross-attention of a Wan block: query norm in one pass, keys and values of a text computed once and kept.

A prompt's embedding is one tensor through a whole denoising loop. Projected text hangs on weak references to it, so it
goes when the prompt goes. Inference tensors do not count their versions; for them nothing is kept.

A prompt is padded to 512 rows with zeros. Its projection works row by row, so all rows of padding stay equal, and so do
their keys and values: attention takes one of them, counted as often as it stands there.
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

from fpsgen.attention.quantize import output_scale
from fpsgen.fused import FP8Channels, cross_attention, rms_norm_rows
from fpsgen.models.patch.attention import chosen_backend
from fpsgen.models.patch.fusable import not_fusable
from fpsgen.models.patch.swap_class import has_hooks, swap_class


class Kept:
    """Results of a function of one tensor, while that tensor lives unchanged."""

    def __init__(self) -> None:
        self._results: Any = WeakTensorKeyDictionary()

    def forget(self) -> None:
        """Compute anew at the next call: weights may have been written to unseen."""
        self._results.clear()

    def get(self, text: torch.Tensor, compute: Callable[[], Any], *layers: torch.nn.Module) -> Any:
        """compute(), or what it gave for this tensor at the same version, also of the weights of `layers`. Layers with
        adapters are computed anew each time: merging writes to weights unseen.
        """
        if not kept(text):
            return compute()
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        if any(hasattr(layer, "base_layer") for layer in layers) or any(p.is_inference() for p in parameters):
            return compute()
        state = (text._version, *((p.data_ptr(), p._version) for p in parameters))
        found = self._results.get(text)
        if found is None or found[0] != state:
            found = self._results[text] = (state, compute())
        return found[1]


def kept(text: torch.Tensor) -> bool:
    """Whether results of this tensor may be kept."""
    return not (is_compiling() or torch.is_grad_enabled() or text.is_inference())


class TextAttnProcessor(WanAttnProcessor):
    """Replaces the processor of `block.attn2`; images beside the text (I2V) go diffusers' own way."""

    def __init__(self, backend: Any = None) -> None:
        super().__init__()
        self._attention_backend = backend
        self.kept, self.kept_short = Kept(), Kept()  # of all rows of a text; of its own and one of padding

    def forget(self) -> None:
        """Compute keys and values anew."""
        self.kept.forget()
        self.kept_short.forget()

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
        fp8_out: bool = False,
    ) -> torch.Tensor:
        """hidden_states: tensor or FP8Rows [B, L, dim], as attn.to_q takes it. fp8_out: whether attn.to_out takes
        FP8Channels.
        """
        if attn.add_k_proj is not None or encoder_hidden_states is None or rotary_emb is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query, text = attn.to_q(hidden_states), encoder_hidden_states
        norm_q = attn.norm_q
        fusable = not_fusable(query.device) is None and not has_hooks(norm_q)
        plain = attention_mask is None and (self._attention_backend or chosen_backend()) is None
        padding = getattr(text, _PADDING, 0) if fusable and plain and kept(text) else 0
        layers = (attn.norm_k, *((attn.to_kv,) if attn.fused_projections else (attn.to_k, attn.to_v)))
        if padding:
            own = text[:, : text.shape[1] - padding + 1]
            key, value, scale = self.kept_short.get(text, lambda: _project_short(attn, own), *layers, norm_q)
            query = query.unflatten(2, (attn.heads, -1))
            out = cross_attention(query, key, value, padding, norm_q.eps, scale if fp8_out else None)
            if fp8_out:
                return attn.to_out[1](attn.to_out[0](FP8Channels(out.flatten(2), scale.flatten())))
        else:
            key, value = self.kept.get(text, lambda: _project(attn, text), *layers)
            fused = fusable and query.is_cuda
            query = rms_norm_rows(query, norm_q.weight, norm_q.eps) if fused else norm_q(query)
            query = query.unflatten(2, (attn.heads, -1))
            out = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def _project(attn: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (normed) and values [B, text length, H, D]."""
    if attn.fused_projections:
        key, value = attn.to_kv(text).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(text), attn.to_v(text)
    return attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))


def _project_short(attn: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, keys multiplied with the weight of the queries' norm as well, and output_scale of the values."""
    key, value = _project(attn, text)
    gain = attn.norm_q.weight.float().view(key.shape[2:])
    return (key.float() * gain).to(key.dtype), value, output_scale(value)


def install_projection(text: torch.nn.Module) -> Callable[[], None] | None:
    """Keep what the projection of a Wan transformer's text makes of a prompt. Returns what undoes it, None where it
    cannot be kept.
    """
    known = type(text) is PixArtAlphaTextProjection
    return swap_class(text, KeptTextProjection, kept=Kept(), padding=Kept()) if known else None


class KeptTextProjection(PixArtAlphaTextProjection):
    """The projection of a prompt's embedding to the transformer's width, once per prompt. Its result carries the number
    of its rows that are padding.
    """

    kept: Kept
    padding: Kept

    def apply(self, fn: Callable[[torch.nn.Module], Any]) -> KeptTextProjection:
        """See FP8Linear.apply."""
        self.kept.forget()
        return super().apply(fn)

    def forward(self, caption: torch.Tensor) -> torch.Tensor:
        text = self.kept.get(caption, lambda: PixArtAlphaTextProjection.forward(self, caption), self)
        if kept(caption):
            setattr(text, _PADDING, self.padding.get(caption, lambda: padded_rows(caption)))
        return text


_PADDING = "fpsgen_padding"


def padded_rows(caption: torch.Tensor) -> int:
    """Rows at the end of a prompt's embedding [B, text length, dim] that are zero in the whole batch; 0 if they are
    fewer than half, where leaving them out gains nothing. Waits for the device.
    """
    real = caption.ne(0).any(-1).any(0)
    length = int((real * torch.arange(1, len(real) + 1, device=real.device)).max())
    return len(real) - length if 2 * length < len(real) else 0
