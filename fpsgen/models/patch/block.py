"""A Wan block whose element-wise work is done in few passes: each reads the tokens once and writes what is next.

diffusers' block goes over its tokens some thirty times a layer. Here they are read by LayerNorm with modulation, by
each gated residual together with the norm that follows it, by GELU, and by what quantizes the attention's output:
arithmetic in fp32, the stream of residuals rounded where diffusers rounds it. Rows for FP8 layers are written in FP8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.activations import GELU
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from torch.compiler import is_compiling

from fpsgen.fused import FP8Rows, RowProduct, gelu_rows, norm_rows, quantize_rows, residual_norm_rows, residual_rows
from fpsgen.models.patch.attention import FpsAttnProcessor
from fpsgen.models.patch.fusable import not_fusable
from fpsgen.models.patch.head import install_head
from fpsgen.models.patch.linear import takes_fp8
from fpsgen.models.patch.patch_embedding import install_embedding
from fpsgen.models.patch.run_record import LayerRun
from fpsgen.models.patch.stack import Run
from fpsgen.models.patch.swap_class import has_hooks, swap_class
from fpsgen.models.patch.text_kv import TextAttnProcessor, install_projection

if TYPE_CHECKING:
    from fpsgen.models.patch.forward_state import ForwardState

BLOCK = "block"


@dataclass
class Fused:
    """How a fused block runs. following: the block after it; its first norm is computed together with this block's last
    residual, and the rows travel on the tensor that passes between the two. anywhere: on any device. run, layer: the
    run that counts its calls, and its number there. reason: why this block stays as diffusers wrote it. The others:
    which layers take FP8; out1 and out2 are those behind attention, whose processors can give it.
    """

    following: Any = None
    anywhere: bool = False
    run: Run | None = None
    layer: int = 0
    reason: str | None = None
    attn1: bool = False
    attn2: bool = False
    out1: bool = False
    out2: bool = False
    up: bool = False
    down: bool = False

    def note_fp8(self, block: Any) -> None:
        """Note which layers take FP8 now. Compiled code uses what was noted last."""
        attn1, up, down = block.attn1, block.ffn.net[0].proj, block.ffn.net[2]
        layers = (attn1.to_qkv,) if attn1.fused_projections else (attn1.to_q, attn1.to_k, attn1.to_v)
        self.attn1 = all(map(takes_fp8, layers))
        self.attn2, self.up, self.down = map(takes_fp8, (block.attn2.to_q, up, down))
        self.out1 = type(attn1.processor) is FpsAttnProcessor and takes_fp8(attn1.to_out[0])
        self.out2 = type(block.attn2.processor) is TextAttnProcessor and takes_fp8(block.attn2.to_out[0])


class FusedBlock(WanTransformerBlock):
    """A WanTransformerBlock made into this by install_block."""

    fused: Fused

    def apply(self, fn: Callable[[torch.nn.Module], Any]) -> FusedBlock:
        """See FP8Linear.apply."""
        if isinstance(self.attn2.processor, TextAttnProcessor):
            self.attn2.processor.forget()
        return super().apply(fn)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor, rotary_emb: Any
    ) -> torch.Tensor:
        x, fused = hidden_states, self.fused
        if not (fused.anywhere or x.is_cuda):
            return super().forward(x, encoder_hidden_states, temb, rotary_emb)
        if fused.run is not None and not is_compiling():
            fused.run.count(BLOCK, fused.layer)
        if fused.reason or not_fusable(x.device):
            return super().forward(x, encoder_hidden_states, temb, rotary_emb)
        if not is_compiling():
            fused.note_fp8(self)
        held = _pop_normed(x, self, temb)
        shift, scale, gate, c_shift, c_scale, c_gate = modulation(self, temb) if held is None else held.modulation
        rows = norm_rows(x, scale, shift, self.norm1.eps, True, fused.attn1) if held is None else held.rows
        y = self.attn1(rows, None, None, rotary_emb, **_FP8_OUT if fused.out1 else {})
        norm2 = self.norm2
        if isinstance(norm2, FP32LayerNorm):
            weight, bias = norm2.weight.unsqueeze(0), norm2.bias.unsqueeze(0)
            x, rows = residual_norm_rows(x, y, gate, weight, bias, norm2.eps, False, fused.attn2)
        else:
            x = residual_rows(x, y, gate)
            rows = quantize_rows(x) if fused.attn2 else x
        y = self.attn2(rows, encoder_hidden_states, None, None, **_FP8_OUT if fused.out2 else {})
        x, rows = residual_norm_rows(x, y, None, c_scale, c_shift, self.norm3.eps, True, fused.up)
        layers: Any = self.ffn.net
        rows = gelu_rows(layers[0].proj(rows), fused.down)
        y = layers[2].product(rows) if fused.down else layers[2](rows)
        return self._residual(x, y, c_gate, temb)

    def _residual(
        self, x: torch.Tensor, y: torch.Tensor | RowProduct, gate: torch.Tensor, temb: torch.Tensor
    ) -> torch.Tensor:
        """x + gate * y, with the next block's first norm where that is there to be computed."""
        after = self.fused.following
        if is_compiling() or after is None or x.is_inference():
            return residual_rows(x, y, gate)
        if after.fused.reason or after.scale_shift_table.device != x.device:
            return residual_rows(x, y, gate)
        after.fused.note_fp8(after)
        parts = modulation(after, temb)
        shift, scale, *_ = parts
        x, rows = residual_norm_rows(x, y, gate, scale, shift, after.norm1.eps, True, after.fused.attn1)
        setattr(x, _NORMED, _Normed(after, x._version, temb, parts, rows))
        return x


# what goes by a class's name knows it: compile_repeated_blocks, accelerate's placing of layers
FusedBlock.__name__ = WanTransformerBlock.__name__
_NORMED = "fpsgen_normed"
_FP8_OUT = {"fp8_out": True}


class _Normed(NamedTuple):
    """What a block has computed for the block after it. version: of the tensor that carries it."""

    block: Any
    version: int
    temb: torch.Tensor
    modulation: tuple[torch.Tensor, ...]
    rows: FP8Rows | torch.Tensor


def _pop_normed(x: torch.Tensor, block: Any, temb: torch.Tensor) -> _Normed | None:
    """What the block before has left on x, if it is for this block and x is as it was then."""
    held: _Normed | None = None if is_compiling() else getattr(x, _NORMED, None)
    if held is None:
        return None
    delattr(x, _NORMED)
    usable = held.block is block and held.version == x._version and held.temb is temb
    return held if usable and isinstance(held.rows, FP8Rows) == block.fused.attn1 else None


def modulation(block: Any, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The block's shift, scale and gate of self-attention, then of the feed-forward, fp32: [B, dim] each, [B, L, dim]
    where there is a noise level for every token (temb [B, L, 6, dim]).
    """
    return (block.scale_shift_table + temb.float()).unbind(-2)


def unfit(block: Any) -> str | None:
    """Why the block cannot be fused, or None."""
    norms = (block.norm1, block.norm3, *(() if isinstance(block.norm2, torch.nn.Identity) else (block.norm2,)))
    gelu, middle, *_ = block.ffn.net
    if any(type(norm) is not FP32LayerNorm or has_hooks(norm) for norm in norms):
        return "norms_hooked"
    if type(gelu) is not GELU or gelu.approximate != "tanh" or has_hooks(gelu) or has_hooks(block.ffn):
        return "feed_forward_hooked"
    if len(block.ffn.net) != 3 or middle.p:
        return "dropout"
    return None


def install_block(
    block: Any, following: Any = None, anywhere: bool = True, run: Run | None = None, layer: int = 0
) -> Callable[[], None] | None:
    """Fuse one block, its cross-attention included, if it can be; `following` is fused as well. Returns what undoes
    it, None where something unknown has replaced the block's forward.
    """
    reason = unfit(block)
    undo_class = swap_class(block, FusedBlock, fused=Fused(following, anywhere, run, layer, reason))
    if undo_class is None:
        return None
    before = block.attn2.processor
    replaced = type(before) is WanAttnProcessor and reason is None
    ours = TextAttnProcessor(before._attention_backend) if replaced else before
    block.attn2.set_processor(ours)

    def undo() -> None:
        undo_class()
        if block.attn2.processor is ours and ours is not before:
            before._attention_backend = ours._attention_backend
            block.attn2.set_processor(before)

    return undo


@dataclass(frozen=True)
class FusedPatch:
    """Fused element-wise passes in all blocks that can have them, and in the head; a prompt's keys and values computed
    once; the patch embedding as one product. Where results have the rounding of diffusers to the bit, it is left out
    ("exact"). anywhere: also on devices that gain nothing by it, for tests.
    """

    anywhere: bool = False
    component: str = BLOCK

    def install(self, transformer: Any, run: Run) -> _InstalledBlocks:
        """Blocks that cannot be fused run as they are, and the report says why."""
        return _InstalledBlocks(self, transformer, run)


class _InstalledBlocks:
    def __init__(self, patch: FusedPatch, transformer: Any, run: Run) -> None:
        self._patch, self._run = patch, run
        self._blocks: dict[int, Any] = {}  # those that were made into FusedBlock, by layer
        self._undos: list[Callable[[], None]] = []
        self._runs: dict[tuple[str | None, ...], tuple[LayerRun, ...]] = {}
        metadata = replace(TransformerBlockRegistry.get(WanTransformerBlock))
        TransformerBlockRegistry.register(FusedBlock, metadata)  # diffusers' step caches look blocks up by class
        blocks = list(transformer.blocks)
        for layer, block in enumerate(blocks):
            undo = install_block(block, None, patch.anywhere, run, layer)
            if undo is not None:
                self._undos.append(undo)
                self._blocks[layer] = block
        for layer, block in self._blocks.items():
            block.fused.following = self._blocks.get(layer + 1)
        self._reasons = [block.fused.reason for block in self._blocks.values()]
        self._others = [layer for layer in range(len(blocks)) if layer not in self._blocks]
        others = [install_projection(transformer.condition_embedder.text_embedder)]
        others += [install_embedding(transformer.patch_embedding), install_head(transformer, patch.anywhere)]
        self._undos += [undo for undo in others if undo is not None]

    def undo(self) -> None:
        while self._undos:
            self._undos.pop()()

    def layer_runs(self, forward: ForwardState) -> tuple[LayerRun, ...]:
        if not (self._patch.anywhere or forward.device.type == "cuda"):
            return ()
        if self._others:
            what = f"nothing is fused in blocks {self._others}, whose forward is not diffusers'"
            self._run.deviation(BLOCK, "forward_replaced", self._others, what, in_loop=False)
            self._others = []  # said once
        for block, reason in zip(self._blocks.values(), self._reasons, strict=True):
            block.fused.reason = reason or unfit(block)  # offloading may have put hooks on it since
        reason = not_fusable(forward.device)
        reasons = tuple(block.fused.reason or reason for block in self._blocks.values())
        if reasons not in self._runs:
            self._runs[reasons] = tuple(
                LayerRun(layer, "diffusers" if why else "fused", why)
                for layer, why in zip(self._blocks, reasons, strict=True)
            )
        return self._runs[reasons]
