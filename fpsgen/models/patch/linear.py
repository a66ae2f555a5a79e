"""FP8 linear layers on a transformer: each keeps its weight, and its forward multiplies a copy of it in FP8.

Weights stay where and what they were, so LoRA, fused projections, saving and offloading find what they expect. The
copy takes one byte a weight more, on the weight's device.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.compiler import is_compiling

from fpsgen.fused import FP8Rows, FP8Weight, fp8_linear, quantize_weight
from fpsgen.fused.linear import StraightThrough
from fpsgen.models.patch.swap_class import has_hooks, swap_class

# what is multiplied in FP8; to_k and to_v of the text are 512 rows; embeddings, modulation and the head stay as well
PARTS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_qkv", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_out.0"),
    *("ffn.net.0.proj", "ffn.net.2"),
)


class FP8Linear(torch.nn.Linear):
    """A torch.nn.Linear made into this by install_linears; takes a tensor or FP8Rows [..., K], gives [..., N].

    The weight is quantized at the first call, and again when the parameter was replaced, moved or written to. What
    shows in neither (writing through .data, as merging a LoRA does) is shown by forget().
    """

    fp8: FP8Weight | None = None
    fp8_of: tuple | None = None

    def forget(self) -> None:
        """Quantize anew at the next call."""
        self.fp8 = self.fp8_of = None

    def quantized(self) -> FP8Weight:
        weight = self.weight
        if not is_compiling():
            version = 0 if weight.is_inference() else weight._version
            key = (weight.data_ptr(), version, weight.dtype, weight.device)
            if key != self.fp8_of:
                self.fp8, self.fp8_of = quantize_weight(weight), key
        assert self.fp8 is not None, "compiled before the first call"
        return self.fp8

    def forward(self, x: torch.Tensor | FP8Rows) -> torch.Tensor:
        weight = self.quantized()
        if isinstance(x, FP8Rows):
            return fp8_linear(x, weight, self.bias, self.weight.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return StraightThrough.apply(x, self.weight, self.bias, weight)
        return fp8_linear(x, weight, self.bias, x.dtype)


def takes_fp8(module: torch.nn.Module) -> bool:
    """Whether the module may be called with FP8Rows: an FP8 linear with nothing around it."""
    return type(module) is FP8Linear and not has_hooks(module)


def project_rows(attn: Any, rows: FP8Rows) -> tuple[torch.Tensor, ...]:
    """q, k, v [B, L, dim] of a self-attention whose projections take FP8 rows: one product, so its results are strided.

    The three layers then hold views of one FP8 weight, which lies on attn as fp8_joined.
    """
    if attn.fused_projections:
        return attn.to_qkv(rows).chunk(3, dim=-1)
    layers = (attn.to_q, attn.to_k, attn.to_v)
    weights = [layer.quantized() for layer in layers]
    joined: Joined | None = attn.__dict__.get("fp8_joined")
    if not is_compiling() and (joined is None or not all(map(operator.is_, joined.views, weights))):
        joined = attn.fp8_joined = join(layers, weights)
    assert joined is not None, "compiled before the first call"
    out = fp8_linear(rows, joined.weight, joined.bias, attn.to_q.weight.dtype)
    return out.split([len(weight.values) for weight in weights], dim=-1)


class Joined(NamedTuple):
    """Weights of several layers as one, and what those layers hold: views of it."""

    weight: FP8Weight
    bias: torch.Tensor | None
    views: tuple[FP8Weight, ...]


def join(layers: tuple[FP8Linear, ...], weights: list[FP8Weight]) -> Joined:
    """One weight of several, in the place of their own."""
    whole = FP8Weight(torch.cat([w.values for w in weights]), torch.cat([w.scale for w in weights], 1))
    sizes = [len(weight.values) for weight in weights]
    views = tuple(map(FP8Weight, whole.values.split(sizes), whole.scale.split(sizes, 1)))
    for layer, view in zip(layers, views, strict=True):
        layer.fp8 = view
    biases = [layer.bias for layer in layers]
    return Joined(whole, None if biases[0] is None else torch.cat(biases).detach(), views)


def base_linear(module: torch.nn.Module) -> torch.nn.Module:
    """The layer that a LoRA is wrapped around, or the module itself."""
    return getattr(module, "base_layer", module)


def linears(block: torch.nn.Module, parts: tuple[str, ...] = PARTS) -> Iterator[tuple[str, torch.nn.Module]]:
    """(name, module) of a block's layers in `parts`, LoRA taken off; those it lacks are left out."""
    for name in parts:
        module: Any = block
        for step in name.split("."):
            module = module[int(step)] if step.isdigit() else getattr(module, step, None)
        if module is not None:
            yield name, base_linear(module)


def unfit(module: torch.nn.Module) -> str | None:
    """Why a layer cannot be multiplied in FP8, or None."""
    if type(module) is not torch.nn.Linear:
        return f"is a {type(module).__name__}"
    if module.in_features % 16 or module.out_features % 16:
        return f"is {module.in_features} x {module.out_features}, not multiples of 16"
    return "has its weight offloaded" if module.weight.is_meta else None


def install_linears(block: torch.nn.Module, parts: tuple[str, ...] = PARTS) -> Callable[[], None]:
    """FP8 for the block's layers that fit. Returns what undoes it."""
    undos = []
    for _, module in linears(block, parts):
        if unfit(module) is None and (undo := swap_class(module, FP8Linear)):
            undos.append((module, undo))

    def undo_all() -> None:
        while undos:
            module, undo = undos.pop()
            undo()
            for name in ("fp8", "fp8_of"):
                module.__dict__.pop(name, None)
        block.attn1.__dict__.pop("fp8_joined", None)

    return undo_all
