"""How attention runs at some noise levels: one method and its settings. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fpsgen.attention.methods import METHODS, find_method
from fpsgen.attention.methods.base import Option
from fpsgen.attention.windows import (
    TILES,
    Size3,
    Window,
    count,
    density_window,
    head_windows,
    resolve_tile,
    resolve_window,
    window_density,
)

_MANY = 1 << 20  # units of an axis, when the grid is not known


@dataclass(frozen=True)
class Profile:
    """One way to run attention. Raises ValueError for settings that do not go together.

    method: a key of METHODS. tile: "fit", "blocks", "even", "paper" or (t, h, w) tokens, see windows.resolve_tile; None
    is "even" where the method chooses keys online, "blocks" where a density is stated, else "fit". density: share of
    all token pairs that the window keeps, in (0, 1]; each grid gets the window that comes nearest. window, instead of a
    density: "all" or per axis an odd number of units, 0 (whole axis) or a share such as 0.5 of the axis. granularity:
    consecutive kernel blocks (tile order) that share one Q or K scale. smooth_k: quantized methods take the mean off
    the keys; None is the method's default. options: of the method's own hyper-parameters, those that differ from its
    defaults.
    """

    name: str
    method: str
    tile: str | Size3 | None = None
    window: Window = "all"
    granularity: int = 1
    smooth_k: bool | None = None
    density: float | None = None
    options: Mapping[str, Option] | tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"a profile has the name {self.name!r}.\nGive text.")
        try:
            method = find_method(self.method)
        except ValueError as error:
            raise ValueError(f"profile {self.name!r}: {error}") from None
        if not isinstance(self.options, (Mapping, tuple)):
            self._refuse("options", "Give a table of names and values.")
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))
        if self.tile is None:
            object.__setattr__(self, "tile", method.tile or ("fit" if self.density is None else "blocks"))
        if self.smooth_k is None:
            object.__setattr__(self, "smooth_k", method.smooth_k)
        for field in ("tile", "window"):
            value = getattr(self, field)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, field, tuple(0 if part == "all" else part for part in value))
        if self.tile not in TILES and not _triple(self.tile, lambda x: isinstance(x, int) and x > 0):
            names = ", ".join(f'"{name}"' for name in TILES)
            self._refuse("tile", f"Give {names} or three positive integers [t, h, w].")
        if self.window != "all" and not _triple(self.window, _window_entry):
            self._refuse(
                "window", 'Give "all" or three entries: an odd number, 0 for the whole axis, or a share such as 0.5.'
            )
        if self.density is not None:
            if type(self.density) is int:
                object.__setattr__(self, "density", float(self.density))
            if not isinstance(self.density, float) or not 0 < self.density <= 1:
                self._refuse("density", "Give a share of all token pairs, above 0 and at most 1.0.")
            if self.window != "all":
                self._refuse("density", f"It also has the window {self.window!r}: give one of the two.")
        if not self.sees_all and not method.windowed:
            raise ValueError(
                f"profile {self.name!r} has a window or density, but method {self.method!r} takes none.\n"
                f"Remove it, or give a method that does: {_names(lambda m: m.windowed)}."
            )
        if isinstance(self.granularity, bool) or not isinstance(self.granularity, int) or self.granularity < 1:
            self._refuse("granularity", "Give an integer from 1.")
        if not isinstance(self.smooth_k, bool) or (self.smooth_k and not method.quantized):
            raise ValueError(
                f"profile {self.name!r} has smooth_k {self.smooth_k!r} and method {self.method!r}.\n"
                f"Give true or false; true goes with {_names(lambda m: m.quantized)}."
            )
        try:
            method.check_options(dict(self.options))
            head_windows(self._head_windows, (_MANY, _MANY, _MANY))
        except ValueError as error:
            raise ValueError(f"profile {self.name!r}: {error}") from None

    def _refuse(self, field: str, remedy: str) -> None:
        raise ValueError(f"profile {self.name!r} has {field} {getattr(self, field)!r}.\n{remedy}")

    @property
    def sees_all(self) -> bool:
        """No window: every query sees every key, on any grid."""
        return self.window == "all" and self.density in (None, 1.0) and not self._head_windows

    @property
    def _head_windows(self) -> str:
        return str(dict(self.options).get("head_windows", ""))

    def resolve(self, grid: Size3) -> tuple[Size3, Size3 | None, Size3, float]:
        """Tile and 3D block (or None) in tokens, window in units, and the density that is achieved on a grid.

        A few ms for a grid that is new, then cached. Density is 1.0 for methods that choose their keys online.
        """
        tile, block = resolve_tile(grid, self.tile or "fit")
        units, least = count(grid, block or tile), count(tile, block or tile)
        if self.density is not None and not self.sees_all:
            window = density_window(grid, tile, block, self.density)
        else:
            window = resolve_window(units, self.window, least)
        windows = head_windows(self._head_windows, units, least) or (window,)
        density = sum(window_density(grid, tile, block, each) for each in windows) / len(windows)
        return tile, block, window, density


def _names(which: Callable[[Any], bool]) -> str:
    return " or ".join(name for name, method in METHODS.items() if which(method))


def _triple(value: object, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(not isinstance(x, bool) and good(x) for x in value)


def _window_entry(x: object) -> bool:
    return (isinstance(x, int) and (x == 0 or (x > 0 and x % 2 == 1))) or (isinstance(x, float) and 0 < x <= 1)
