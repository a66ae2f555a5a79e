"""What a method of attention is: a selection of keys and a precision, under one name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fpsgen.attention.plan import AttentionPlan
    from fpsgen.attention.profile import Profile
    from fpsgen.attention.tiles import TileLists

Option = bool | int | float | str


class Precision(Enum):
    """Of the operands of a product. The value is what reports print."""

    BF16 = "16 bit"  # the type of the tensors; fp32 is multiplied in bf16 by GPU kernels
    E4M3 = "E4M3"
    INT8 = "INT8"


class Selection:
    """Which units (key blocks or tiles) each query tile sees. This one: what the plan's window holds.

    windowed: heeds a profile's window or density; without it the window is the whole grid. online: lists depend on q,
    k and v, so `select` chooses them at each call.
    """

    def __init__(self, windowed: bool = False) -> None:
        self.windowed = windowed

    online = False

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> TileLists:
        """Lists for one call, on q's device and without waiting for it: one group of lists for all (G = 1), one per
        head (H), or one per batch and head (B*H).

        q, k, v: [B, L, H, D], grid tokens alone, in tile order, q and k normed and with rotary embedding. plan: without
        prefix and suffix; plan.layout says which tokens, blocks, units and tiles belong together (constants, for
        torch.compile too), plan.option(name) gives the method's options. Indices count units, see TileLists.
        """
        raise NotImplementedError("a fixed selection has no lists of its own")


@dataclass(frozen=True)
class Method:
    """One method: selection x precision, and how it is described.

    summary: one line. citation: where it comes from. colour: of its marks on pages, "#rrggbb". qk, pv: precision of the
    two products. smooth_k: whether a profile that does not say takes the mean off the keys. per_block_scales: every
    kernel block has scales of its own, whatever a schedule's granularity. options: the method's own hyper-parameters
    with their defaults, under the names of its authors. allowed: of options with a name as value all names, of numbers
    the least and the largest.
    """

    name: str
    summary: str
    citation: str
    colour: str
    selection: Selection = field(default_factory=Selection)
    qk: Precision = Precision.BF16
    pv: Precision = Precision.BF16
    smooth_k: bool = False
    per_block_scales: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    allowed: Mapping[str, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("options", "allowed"):  # which nobody changes later
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def check_options(self, options: Mapping[str, Option]) -> None:
        """Raises ValueError (two lines) for an option that the method does not take."""
        for key, value in options.items():
            if key not in self.options or type(value) is not type(self.options[key]):
                known = ", ".join(f"{name} = {default!r}" for name, default in self.options.items()) or "none"
                raise ValueError(
                    f"option {key} = {value!r} is none of method {self.name!r}.\nIts options and defaults: {known}."
                )
            allowed = self.allowed.get(key)
            if allowed is None:
                continue
            names = isinstance(value, str)
            if value not in allowed if names else not allowed[0] <= value <= allowed[1]:
                least, most = allowed[0], allowed[-1]
                rest = f"one of {', '.join(map(str, allowed))}" if names else f"a number from {least} to {most}"
                raise ValueError(f"option {key} of method {self.name!r} is {value!r}.\nGive {rest}.")

    @property
    def quantized(self) -> bool:
        """Some product has operands below 16 bits: granularity and smooth_k have a meaning."""
        return {self.qk, self.pv} != {Precision.BF16}

    @property
    def windowed(self) -> bool:
        return self.selection.windowed

    @property
    def online(self) -> bool:
        return self.selection.online

    @property
    def dense(self) -> bool:
        """Every query sees every key, whatever a profile says."""
        return not (self.windowed or self.online)

    @property
    def tile(self) -> str | None:
        """The named tile that suits the method best: where blocks are chosen by what they hold, compact ones."""
        return "even" if self.online else None

    @property
    def tiled(self) -> bool:
        """Tokens must lie in tile order: all but dense attention in 16 bits depends on it."""
        return self.quantized or not self.dense

    def adapt(self, profile: Profile) -> Profile:
        """The profile as this method runs it: what the method has no use for is taken out, all else is kept."""
        changes: dict = {"method": self.name, "options": {}}
        if not self.windowed:
            changes |= {"window": "all", "density": None}
        if self.tile and profile.tile in ("fit", "blocks"):
            changes["tile"] = self.tile
        if self.per_block_scales or not self.quantized:
            changes["granularity"] = 1
        if not self.quantized:
            changes["smooth_k"] = False
        elif self.smooth_k:
            changes["smooth_k"] = True
        return replace(profile, **changes)
