"""A Wan block whose element-wise work is done in few passes: each reads the tokens once and writes what is next.

diffusers' block goes over its tokens some thirty times a layer. Here they are read by LayerNorm with modulation, by
each gated residual together with the norm that follows it, by GELU, and by what quantizes the attention's output:
arithmetic in fp32, the stream of residuals rounded where diffusers rounds it. Rows for FP8 layers are written in FP8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.activations import GELU
from diffusers.models.normalization import FP32LayerNorm
from torch.compiler import is_compiling

from fpsgen.fused import FP8Rows, gelu_rows, norm_rows, quantize_rows, residual_norm_rows, residual_rows
from fpsgen.models.patch.forward_swap import has_hooks, swap_forward
from fpsgen.models.patch.linear import takes_fp8
from fpsgen.models.patch.text_kv import TextAttnProcessor


class FusedForward:
    """Replaces the forward of one WanTransformerBlock.

    following: the block after it, whose first norm goes together with this block's last residual; its rows travel on
    the tensor that passes between the two.
    """

    def __init__(self, block: Any, following: Any = None) -> None:
        self.block = block
        self.following = following

    def __call__(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor, rotary_emb: Any
    ) -> torch.Tensor:
        block = self.block
        if not fusable(hidden_states, temb):
            return type(block).forward(block, hidden_states, encoder_hidden_states, temb, rotary_emb)
        x = hidden_states
        shift, scale, gate, c_shift, c_scale, c_gate = modulation(block, temb)
        rows = _take(x, block)
        if rows is None:
            rows = norm_rows(x, scale, shift, block.norm1.eps, True, takes_rows(block.attn1))
        y = block.attn1(rows, None, None, rotary_emb)
        fp8 = takes_fp8(block.attn2.to_q)
        if isinstance(block.norm2, FP32LayerNorm):
            norm2 = block.norm2
            weight, bias = norm2.weight.unsqueeze(0), norm2.bias.unsqueeze(0)
            x, rows = residual_norm_rows(x, y, gate, weight, bias, norm2.eps, False, fp8)
        else:
            x = residual_rows(x, y, gate)
            rows = quantize_rows(x) if fp8 else x
        y = block.attn2(rows, encoder_hidden_states, None, None)
        up, down = block.ffn.net[0].proj, block.ffn.net[2]
        x, rows = residual_norm_rows(x, y, None, c_scale, c_shift, block.norm3.eps, True, takes_fp8(up))
        y = down(gelu_rows(up(rows), takes_fp8(down)))
        after = self.following
        if after is None or is_compiling() or after.scale_shift_table.device != x.device:
            return residual_rows(x, y, c_gate)
        shift, scale = modulation(after, temb)[:2]
        x, rows = residual_norm_rows(x, y, c_gate, scale, shift, after.norm1.eps, True, takes_rows(after.attn1))
        x._fpsgen_normed = (after, x._version, rows)
        return x


def _take(x: torch.Tensor, block: Any) -> FP8Rows | torch.Tensor | None:
    """The rows that the block before has normed already, if they are this block's and x is as it was then."""
    if is_compiling():
        return None
    held = x.__dict__.pop("_fpsgen_normed", None)
    return held[2] if held is not None and held[0] is block and held[1] == x._version else None


def fusable(x: torch.Tensor, temb: torch.Tensor) -> bool:
    """Whether this call may be fused: no gradient, no autocast, one noise level a video (Wan2.2 5B: one a token)."""
    return not torch.is_grad_enabled() and temb.dim() == 3 and not torch.is_autocast_enabled(x.device.type)


def modulation(block: Any, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The block's shift, scale and gate of self-attention, then of the feed-forward, fp32 [B, dim] each."""
    return (block.scale_shift_table + temb.float()).unbind(1)


def takes_rows(attn: Any) -> bool:
    """Whether a self-attention's projections take FP8Rows."""
    layers = (attn.to_qkv,) if attn.fused_projections else (attn.to_q, attn.to_k, attn.to_v)
    return all(map(takes_fp8, layers))


def unfit(block: Any) -> str | None:
    """Why the block cannot be fused, or None."""
    norms = (block.norm1, block.norm3, *(() if isinstance(block.norm2, torch.nn.Identity) else (block.norm2,)))
    gelu, middle, *_ = block.ffn.net
    if any(type(norm) is not FP32LayerNorm or has_hooks(norm) for norm in norms):
        return "its norms are replaced or hooked"
    if type(gelu) is not GELU or gelu.approximate != "tanh" or has_hooks(gelu) or has_hooks(block.ffn):
        return "its feed-forward is replaced or hooked"
    if len(block.ffn.net) != 3 or middle.p:
        return "its feed-forward drops out"
    return None


def install_block(block: Any, following: Any = None) -> Callable[[], None]:
    """Fuse one block, its cross-attention included. Returns what undoes it."""
    before = block.attn2.processor
    undo_forward = swap_forward(block, FusedForward(block, following))
    ours = TextAttnProcessor(before._attention_backend) if type(before).__name__ == "WanAttnProcessor" else before
    block.attn2.set_processor(ours)

    def undo() -> None:
        undo_forward()
        if block.attn2.processor is ours and ours is not before:
            before._attention_backend = ours._attention_backend
            block.attn2.set_processor(before)

    return undo
