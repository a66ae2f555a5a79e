"""FP8 linear layers on a transformer: each keeps its weight, and its forward multiplies a copy of it in FP8.

Weights stay where and what they were, so LoRA, fused projections, saving and offloading find what they expect. The
copy takes one byte a weight more, on the weight's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.compiler import is_compiling

from fpsgen.fused import FP8Rows, FP8Weight, fp8_linear, quantize_weight
from fpsgen.fused.linear import StraightThrough
from fpsgen.models.patch.forward_swap import has_hooks, inner_forward, swap_forward

# what is multiplied in FP8; to_k and to_v of the text are 512 rows, embeddings, modulation and the head stay as well
PARTS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_qkv", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_out.0"),
    *("ffn.net.0.proj", "ffn.net.2"),
)


class FP8Forward:
    """Replaces the forward of one torch.nn.Linear; takes a tensor or FP8Rows [..., K], gives [..., N].

    The weight is quantized at the first call, and again when the parameter was replaced, moved or written to. What
    neither shows (writing through .data, as merging a LoRA does) shows at refresh().
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        self.linear = linear
        self._key: tuple | None = None
        self._held: FP8Weight | None = None

    def refresh(self) -> None:
        """Quantize anew at the next call."""
        self._key = None

    def weight(self) -> FP8Weight:
        weight = self.linear.weight
        if not is_compiling():
            version = 0 if weight.is_inference() else weight._version
            key = (weight.data_ptr(), version, weight.dtype, weight.device)
            if key != self._key:
                self._held, self._key = quantize_weight(weight), key
        held = self._held
        assert held is not None, "compiled before the first call"
        return held

    def __call__(self, x: torch.Tensor | FP8Rows) -> torch.Tensor:
        weight, bias = self.weight(), self.linear.bias
        if isinstance(x, FP8Rows):
            return fp8_linear(x, weight, bias, self.linear.weight.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or self.linear.weight.requires_grad):
            return StraightThrough.apply(x, self.linear.weight, bias, weight)
        return fp8_linear(x, weight, bias, x.dtype)


def takes_fp8(module: torch.nn.Module) -> bool:
    """Whether the module may be called with FP8Rows: an FP8 linear with nothing around it."""
    return type(module) is torch.nn.Linear and isinstance(inner_forward(module), FP8Forward) and not has_hooks(module)


def base_linear(module: torch.nn.Module) -> torch.nn.Module:
    """The layer that a LoRA is wrapped around, or the module itself."""
    return getattr(module, "base_layer", module)


def linears(block: torch.nn.Module, parts: tuple[str, ...] = PARTS) -> Iterator[tuple[str, torch.nn.Module]]:
    """(name, module) of a block's layers in `parts`, LoRA taken off; those it lacks are left out."""
    for name in parts:
        module: Any = block
        for step in name.split("."):
            module = getattr(module, step, None) if not step.isdigit() else module[int(step)]
        if module is not None:
            yield name, base_linear(module)


def fits(module: torch.nn.Module) -> str | None:
    """Why a layer cannot be multiplied in FP8, or None."""
    if type(module) is not torch.nn.Linear:
        return f"is a {type(module).__name__}"
    if module.in_features % 16 or module.out_features % 16:
        return f"is {module.in_features} x {module.out_features}, not multiples of 16"
    if module.weight.is_meta:
        return "has its weight offloaded"
    return None


def install_linears(block: torch.nn.Module, parts: tuple[str, ...] = PARTS) -> Callable[[], None]:
    """FP8 for the block's layers that fit. Returns what undoes it."""
    undos = [swap_forward(m, FP8Forward(m)) for _, m in linears(block, parts) if fits(m) is None]

    def undo() -> None:
        while undos:
            undos.pop()()

    return undo
