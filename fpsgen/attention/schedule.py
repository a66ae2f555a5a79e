"""Schedules: which profile (method, tile, window, granularity) runs at which noise level sigma in [0, 1].

Profiles are assigned to half-open windows [low, high) of sigma; the top one includes 1. Sigma survives a change of
step count and shift, so one lookup serves inference and training. Source: arXiv 2506.04648, section 3 (early steps
coarse and sparse, middle fine and dense, late in between); the paper does not publish its cut points: 0.2 and 0.8 of
50 steps at shift 5 are ours.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fpsgen.attention.methods import METHODS, find_method
from fpsgen.attention.profile import Profile
from fpsgen.attention.windows import Size3

AS_SCHEDULED = "as scheduled"  # in place of a method or of the kind of linear layers: nobody set another one
LINEAR_PARTS = ("attn1", "attn2", "ffn")  # self-attention, attention to the text, feed-forward


@dataclass(frozen=True)
class Schedule:
    """Profiles over sigma. windows: (low, high, profile name), covering [0, 1] without gap or overlap. dense_layers:
    transformer blocks that stay dense bf16 at every sigma. trained: the checkpoint was tuned with this schedule.
    fp8_linear: parts of every block whose linear layers are multiplied in FP8 at every sigma, of LINEAR_PARTS.
    """

    name: str
    profiles: tuple[Profile, ...]
    windows: tuple[tuple[float, float, str], ...]
    dense_layers: tuple[int, ...] = ()
    trained: bool = False
    fp8_linear: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(rows, tuple | list) for rows in (self.profiles, self.windows, self.dense_layers)):
            raise ValueError(f"schedule {self.name!r} lacks a list.\nGive lists of profiles, windows and dense layers.")
        object.__setattr__(self, "profiles", tuple(self.profiles))
        if not isinstance(self.name, str) or not isinstance(self.trained, bool):
            raise ValueError(
                f"a schedule has name = {self.name!r} and trained = {self.trained!r}.\n"
                "Give text for the name, and true or false for trained."
            )
        for row in self.windows:
            if not _is_window(row):
                raise ValueError(
                    f"schedule {self.name!r} has the window {row!r}.\n"
                    "Give two numbers from 0 to 1, low and high, and the name of a profile."
                )
        windows = sorted((float(low), float(high), name) for low, high, name in self.windows)
        object.__setattr__(self, "windows", tuple(windows))
        if any(type(layer) is not int or layer < 0 for layer in self.dense_layers):
            raise ValueError(
                f"schedule {self.name!r} has dense_layers {list(self.dense_layers)!r}.\nGive block numbers from 0."
            )
        object.__setattr__(self, "dense_layers", tuple(sorted(set(self.dense_layers))))
        if not isinstance(self.fp8_linear, (tuple, list)) or any(part not in LINEAR_PARTS for part in self.fp8_linear):
            raise ValueError(
                f"schedule {self.name!r} has fp8_linear = {self.fp8_linear!r}.\n"
                f"Give a list of {', '.join(LINEAR_PARTS)}, or leave it out."
            )
        object.__setattr__(self, "fp8_linear", tuple(part for part in LINEAR_PARTS if part in self.fp8_linear))
        names = [profile.name for profile in self.profiles]
        if len(set(names)) != len(names):
            raise ValueError(
                f"schedule {self.name!r} names a profile twice: {', '.join(names)}.\nGive each profile its own name."
            )
        covered = 0.0
        for low, high, profile in windows:
            if profile not in names:
                raise ValueError(
                    f"schedule {self.name!r} uses the unknown profile {profile!r}.\nIt has: {', '.join(names)}."
                )
            if not low < high:
                raise ValueError(
                    f"schedule {self.name!r} has the window [{low}, {high}).\nGive low < high, both in [0, 1]."
                )
            if low != covered:
                kind, a, b = ("leaves a gap", covered, low) if low > covered else ("overlaps", low, covered)
                raise ValueError(f"schedule {self.name!r} {kind} at sigma [{a}, {b}).\nWindows must cover [0, 1] once.")
            covered = high
        if covered != 1.0:
            kind = "leaves a gap" if covered < 1 else "goes beyond the range"
            raise ValueError(
                f"schedule {self.name!r} {kind} at sigma [{min(covered, 1.0)}, {max(covered, 1.0)}).\n"
                "Windows must cover [0, 1] once."
            )

    def profile_at(self, sigma: float) -> Profile:
        """The profile of one noise level. Raises ValueError outside [0, 1] (1e-6 beyond it is taken as rounding)."""
        if not -1e-6 <= sigma <= 1 + 1e-6:
            raise ValueError(
                f"sigma is {sigma}.\nGive a noise level in [0, 1]: the timestep over the scheduler's train timesteps."
            )
        name = next((name for low, high, name in self.windows if sigma < high), self.windows[-1][2])
        return next(profile for profile in self.profiles if profile.name == name)

    def profiles_for(self, sigmas: Iterable[float]) -> list[Profile]:
        """profile_at for every sigma."""
        return [self.profile_at(float(sigma)) for sigma in sigmas]

    @property
    def tiles(self) -> tuple[str | Size3, ...]:
        """Tiles of the profiles whose methods need tokens in tile order; one entry is one order for every step."""
        return tuple(dict.fromkeys(p.tile or "fit" for p in self.profiles if METHODS[p.method].tiled))

    def with_method(self, method: str) -> Schedule:
        """The same schedule as one method runs it, see Method.adapt. Raises ValueError for unknown names."""
        adapt = find_method(method).adapt
        change = tuple(adapt(profile) for profile in self.profiles)
        return self if change == self.profiles else replace(self, name=f"{self.name}-{method}", profiles=change)

    def to_toml(self) -> str:
        """The schedule as a TOML document that from_toml reads back equal."""
        lines = [f"name = {_quote(self.name)}", f"trained = {str(self.trained).lower()}"]
        lines.append(f"dense_layers = [{', '.join(map(str, self.dense_layers))}]")
        lines += [f"fp8_linear = {_toml(self.fp8_linear)}"] if self.fp8_linear else []
        for low, high, name in self.windows:
            lines += ["", "[[windows]]", f"low = {low!r}", f"high = {high!r}", f"profile = {_quote(name)}"]
        for profile in self.profiles:
            lines += ["", "[[profiles]]", f"name = {_quote(profile.name)}", f"method = {_quote(profile.method)}"]
            lines.append(f"tile = {_toml(profile.tile)}")
            if profile.density is None:
                lines.append(f"window = {_toml(profile.window)}")
            else:
                lines.append(f"density = {profile.density!r}")
            lines.append(f"granularity = {profile.granularity}")
            if profile.smooth_k != METHODS[profile.method].smooth_k:
                lines.append(f"smooth_k = {_toml(profile.smooth_k)}")
            options = ", ".join(f"{key} = {_toml(value)}" for key, value in profile.options)
            lines += [f"options = {{ {options} }}"] if options else []
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Schedule:
        """Reads to_toml's format. Raises ValueError for anything else, unknown keys included."""
        if not isinstance(text, str):
            raise ValueError(f"the schedule is a {type(text).__name__}.\nGive TOML as text.")
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(
                f"the schedule is not valid TOML: {error}.\nCompare it with a preset's to_toml()."
            ) from None
        _only(data, "the schedule", {"name", "profiles", "windows"}, {"trained", "dense_layers", "fp8_linear"})
        for key in ("profiles", "windows", "dense_layers"):
            if not isinstance(data.get(key, []), list):
                raise ValueError(f"{key} of the schedule is {data[key]!r}.\nGive a list.")
        for row in data["profiles"]:
            _only(row, "a profile of the schedule", {"name", "method"}, _OPTIONAL)
            if not isinstance(row.get("options", {}), dict):
                raise ValueError(f"options of a profile are {row['options']!r}.\nGive a table.")
        for row in data["windows"]:
            _only(row, "a window of the schedule", {"low", "high", "profile"}, set())
        return cls(
            name=data["name"],
            profiles=tuple(Profile(**row) for row in data["profiles"]),
            windows=tuple((row["low"], row["high"], row["profile"]) for row in data["windows"]),
            dense_layers=tuple(data.get("dense_layers", ())),
            trained=data.get("trained", False),
            fp8_linear=data.get("fp8_linear", ()),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Schedule:
        """from_toml of a UTF-8 file; the error names the file."""
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


_OPTIONAL = {"tile", "window", "granularity", "smooth_k", "density", "options"}  # of a profile


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return _quote(value) if isinstance(value, str) else repr(value)


def _is_window(row: object) -> bool:
    if not isinstance(row, (tuple, list)) or len(row) != 3:
        return False
    low, high, name = row
    return isinstance(name, str) and all(type(x) in (int, float) for x in (low, high))


def _quote(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c
        for c in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


def _only(row: object, what: str, need: set[str], may: set[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{what} is {row!r}.\nGive a table.")
    missing, unknown = need - row.keys(), row.keys() - need - may
    if missing or unknown:
        word = f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown keys {', '.join(sorted(unknown))}"
        raise ValueError(f"{what} {word}.\nKeys: {', '.join(sorted(need | may))}.")


def flow_sigma(t: float, shift: float) -> float:
    """Flow-match noise level of t in [0, 1] (1 is pure noise): shift*t / (1 + (shift-1)*t)."""
    return shift * t / (1 + (shift - 1) * t)


def sigma_at_fraction(fraction: float, steps: int = 50, shift: float = 5.0) -> float:
    """The noise level that separates the first `fraction` of `steps` denoising steps from the rest.

    It lies halfway in time between the last step before the cut and the first after it, so rounding in a scheduler's
    sigmas cannot move a step across. fraction 0 gives 1.0, fraction 1 gives 0.0.
    """
    if not 0 <= fraction <= 1 or steps < 1:
        raise ValueError(f"fraction is {fraction}, steps is {steps}.\nGive a fraction in [0, 1] and at least one step.")
    before = round(fraction * steps)
    if before in (0, steps):
        return 1.0 if before == 0 else 0.0
    return flow_sigma(1 - (before - 0.5) / steps, shift)


def windows_from_fractions(
    a1: float, a2: float, steps: int = 50, shift: float = 5.0, names: tuple[str, str, str] = ("early", "middle", "late")
) -> tuple[tuple[float, float, str], ...]:
    """Sigma windows of early (first a1 of the steps), middle (up to a2) and late (the rest), without empty ones."""
    if not a1 <= a2:
        raise ValueError(f"a1 is {a1}, a2 is {a2}.\nGive 0 <= a1 <= a2 <= 1.")
    high, low = sigma_at_fraction(a1, steps, shift), sigma_at_fraction(a2, steps, shift)
    rows = ((0.0, low, names[2]), (low, high, names[1]), (high, 1.0, names[0]))
    return tuple(row for row in rows if row[0] < row[1])
