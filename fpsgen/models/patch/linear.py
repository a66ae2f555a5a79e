"""FP8 linear layers on a transformer: each keeps its weight, and its forward multiplies a copy of it in FP8.

Weights stay where and what they were, so LoRA, fused projections, saving and offloading find what they expect. The
copy takes one byte a weight more, on the weight's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.compiler import is_compiling

from fpsgen.errors import ENVIRONMENT, USAGE, FpsgenError
from fpsgen.fused import (
    FP8Channels,
    FP8Rows,
    FP8Weight,
    RowProduct,
    fold_channels,
    fp8_linear,
    fp8_product,
    quantize_weight,
)
from fpsgen.fused.linear import StraightThrough, fp8_supported
from fpsgen.models.patch.run_record import LayerRun
from fpsgen.models.patch.stack import Run
from fpsgen.models.patch.swap_class import has_hooks, swap_class

if TYPE_CHECKING:
    from fpsgen.models.patch.forward_state import ForwardState

LINEAR = "linear"
KERNEL, EMULATED = "fp8_scaled_mm", "fp8_emulated"

# what is multiplied in FP8; to_k and to_v of the text are 512 rows; embeddings, modulation and the head stay as well
PARTS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_qkv", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_out.0"),
    *("ffn.net.0.proj", "ffn.net.2"),
)
_APART = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # not called where projections are fused


def parts_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of PARTS that lie in the parts of a block that a schedule names, see Schedule.fp8_linear."""
    return tuple(part for part in PARTS if part.partition(".")[0] in names)


class FP8Linear(torch.nn.Linear):
    """A torch.nn.Linear made into this by install_linears; takes a tensor, FP8Rows or FP8Channels [..., K], gives
    [..., N].

    The weight is quantized at the first call, and again when the parameter was replaced, moved or written to. What
    shows in neither (writing through .data, as merging a LoRA does) is shown by forget(), or comes by way of apply().
    place: whom to tell of calls.
    """

    fp8: FP8Weight | None = None
    fp8_of: tuple | None = None
    place: Place | None = None

    def forget(self) -> None:
        """Quantize anew at the next call."""
        self.fp8 = self.fp8_of = None

    def apply(self, fn: Callable[[torch.nn.Module], Any]) -> FP8Linear:
        """What goes through all modules may write to weights unseen: a model's fuse_lora does."""
        self.forget()
        return super().apply(fn)

    def quantized(self) -> FP8Weight:
        weight = self.weight
        if not is_compiling():
            version = 0 if weight.is_inference() else weight._version
            key = (weight.data_ptr(), version, weight.dtype, weight.device)
            if key != self.fp8_of:
                self.fp8, self.fp8_of = quantize_weight(weight), key
        assert self.fp8 is not None, "compiled before the first call"
        return self.fp8

    def count(self) -> None:
        """Count a call for the report."""
        if self.place is not None and not is_compiling():
            self.place.run.count(LINEAR, self.place.layer, self.place.part)

    def product(self, x: FP8Rows) -> RowProduct:
        """forward of rows with a scale each, for a pass that takes scales and bias."""
        self.count()
        return fp8_product(x, self.quantized(), self.bias, self.weight.dtype)

    def forward(self, x: torch.Tensor | FP8Rows | FP8Channels) -> torch.Tensor:
        self.count()
        weight = self.quantized()
        if isinstance(x, FP8Channels):
            x, weight = fold_channels(x, self.weight, weight.peaks)
        if isinstance(x, FP8Rows):
            return fp8_linear(x, weight, self.bias, self.weight.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return StraightThrough.apply(x, self.weight, self.bias, weight)
        return fp8_linear(x, weight, self.bias, x.dtype)


class Place(NamedTuple):
    """Where a layer is, and who counts its calls."""

    run: Run
    layer: int
    part: str


def takes_fp8(module: torch.nn.Module) -> bool:
    """Whether the module may be called with FP8Rows or FP8Channels: an FP8 linear with nothing around it."""
    return type(module) is FP8Linear and not has_hooks(module)


def base_linear(module: torch.nn.Module) -> torch.nn.Module:
    """The layer that a LoRA is wrapped around, or the module itself."""
    return getattr(module, "base_layer", module)


def modules(block: torch.nn.Module, parts: tuple[str, ...] = PARTS) -> Iterator[tuple[str, torch.nn.Module]]:
    """(name, module) of a block's layers in `parts`; those it lacks are left out."""
    for name in parts:
        module: Any = block
        for step in name.split("."):
            module = module[int(step)] if step.isdigit() else getattr(module, step, None)
        if module is not None:
            yield name, module


def linears(block: torch.nn.Module, parts: tuple[str, ...] = PARTS) -> Iterator[tuple[str, torch.nn.Module]]:
    """The same with LoRA taken off."""
    for name, module in modules(block, parts):
        yield name, base_linear(module)


def _is_here(weight: torch.Tensor, device: torch.device) -> bool:
    """Whether a weight is whole and on the device before its layer is called: not offloaded, not sharded (DTensor)."""
    return weight.device == device and type(weight.data) is torch.Tensor


def unfit(module: torch.nn.Module) -> str | None:
    """Why a layer cannot be multiplied in FP8, or None."""
    if type(module) is not torch.nn.Linear:
        return f"is a {type(module).__name__}"
    if module.in_features % 16 or module.out_features % 16:
        return f"is {module.in_features} x {module.out_features}, not multiples of 16"
    return None


def install_linears(
    block: torch.nn.Module, parts: tuple[str, ...] = PARTS, run: Run | None = None, layer: int = 0
) -> Callable[[], None]:
    """FP8 for the block's layers that fit and are not FP8 yet. Returns what undoes it."""
    undos = []
    for name, module in linears(block, parts):
        place = None if run is None else Place(run, layer, name)
        if unfit(module) is None and (undo := swap_class(module, FP8Linear, fp8=None, fp8_of=None, place=place)):
            undos.append(undo)

    def undo_all() -> None:
        while undos:
            undos.pop()()

    return undo_all


@dataclass(frozen=True)
class LinearPatch:
    """FP8 for the linear layers of all blocks. parts: names within a block. On a CPU the same product of the same
    rounded numbers runs in fp32, which is slow, and reports name it.
    """

    parts: tuple[str, ...] = PARTS
    component: str = LINEAR

    def install(self, transformer: Any, run: Run) -> _InstalledLinears:
        """Raises FpsgenError USAGE where no layer can be multiplied in FP8; some that cannot are a deviation."""
        return _InstalledLinears(self, transformer, run)


class _InstalledLinears:
    def __init__(self, patch: LinearPatch, transformer: Any, run: Run) -> None:
        self._patch, self._run = patch, run
        self._blocks = list(transformer.blocks)
        self._undos: list[Callable[[], None]] = []
        self._merged: dict[FP8Linear, tuple] = {}
        self._runs: tuple[LayerRun, ...] = ()
        self._install()
        try:
            self._check()
        except FpsgenError:
            self.undo()
            raise

    def _check(self) -> None:
        """Say which layers are not multiplied in FP8."""
        found = [
            (layer, *pair) for layer, block in enumerate(self._blocks) for pair in linears(block, self._patch.parts)
        ]
        wrong: dict[str, list[int]] = {}
        for layer, name, module in found:
            if type(module) is not FP8Linear:
                wrong.setdefault(f"{name} {unfit(module) or 'has a forward of its own'}", []).append(layer)
        if not any(type(module) is FP8Linear for *_, module in found):
            raise FpsgenError(
                "none of the transformer's linear layers can be multiplied in FP8: " + next(iter(wrong), "it has none"),
                "leave its linear layers as they are (--linear bf16)",
                USAGE,
            )
        for what, layers in wrong.items():
            self._run.deviation(LINEAR, "unfit", layers, f"not multiplied in FP8: {what}", in_loop=False)

    def undo(self) -> None:
        while self._undos:
            self._undos.pop()()

    def layer_runs(self, forward: ForwardState) -> tuple[LayerRun, ...]:
        """Looks at what others did to the layers since: projections fused, a LoRA merged, weights written to."""
        emulated = forward.device.type == "cpu"
        if not (emulated or fp8_supported(forward.device)):
            raise FpsgenError(
                "FP8 linear layers need a GPU of compute capability 8.9 or higher, and this one is a "
                f"{torch.cuda.get_device_name(forward.device)}",
                "run with --linear bf16",
                ENVIRONMENT,
            )
        runs, new = [], False
        for layer, block in enumerate(self._blocks):
            apart = not block.attn1.fused_projections
            for name, outer in modules(block, self._patch.parts):
                module = base_linear(outer)
                new |= type(module) is torch.nn.Linear and unfit(module) is None
                if type(module) is not FP8Linear or name in (("attn1.to_qkv",) if apart else _APART):
                    continue
                merged = tuple(getattr(outer, "merged_adapters", ()))
                if self._merged.setdefault(module, merged) != merged:
                    self._merged[module] = merged
                    module.forget()
                if _is_here(module.weight, forward.device):
                    module.quantized()  # compiled code takes what is there
                runs.append(LayerRun(layer, EMULATED if emulated else KERNEL, part=name))
        if new:
            self._install()
            return self.layer_runs(forward)
        if tuple(runs) != self._runs:
            self._runs = tuple(runs)
        return self._runs

    def _install(self) -> None:
        for layer, block in enumerate(self._blocks):
            self._undos.append(install_linears(block, self._patch.parts, self._run, layer))
