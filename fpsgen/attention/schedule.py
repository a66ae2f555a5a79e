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

SCHEDULE_METHODS = ("bf16", "fp8", "sta", "fps")
WINDOWED = ("sta", "fps")
QUANTIZED = ("fp8", "fps")


@dataclass(frozen=True)
class Profile:
    """How attention runs. tile: "fit" or (t, h, w) tokens. window: "all" or per axis odd tiles, 0 (whole axis) or a
    share such as 0.5 of the axis. granularity: consecutive kernel blocks (tile order) that share one Q or K scale.
    smooth_k: FP8 methods quantize keys without their mean.
    """

    name: str
    method: str
    tile: str | tuple[int, int, int] = "fit"
    window: str | tuple[int | float, int | float, int | float] = "all"
    granularity: int = 1
    smooth_k: bool = False

    def __post_init__(self) -> None:
        if self.method not in SCHEDULE_METHODS:
            raise ValueError(
                f"profile {self.name!r} has method {self.method!r}.\nGive one of {', '.join(SCHEDULE_METHODS)}."
            )
        for field in ("tile", "window"):
            value = getattr(self, field)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, field, tuple(0 if part == "all" else part for part in value))
        if self.tile != "fit" and not _triple(self.tile, lambda x: isinstance(x, int) and x > 0):
            raise ValueError(
                f'profile {self.name!r} has tile {self.tile!r}.\nGive "fit" or three positive integers [t, h, w].'
            )
        if self.window != "all" and not _triple(self.window, _window_entry):
            raise ValueError(
                f"profile {self.name!r} has window {self.window!r}.\n"
                'Give "all" or three entries: an odd number of tiles, 0 for the whole axis, or a share such as 0.5.'
            )
        if self.window != "all" and self.method not in WINDOWED:
            raise ValueError(
                f"profile {self.name!r} has a window, but method {self.method!r} sees everything.\n"
                'Remove the window, or give method "sta" or "fps".'
            )
        if isinstance(self.granularity, bool) or not isinstance(self.granularity, int) or self.granularity < 1:
            raise ValueError(f"profile {self.name!r} has granularity {self.granularity!r}.\nGive an integer from 1.")
        if not isinstance(self.smooth_k, bool) or (self.smooth_k and self.method not in QUANTIZED):
            raise ValueError(
                f"profile {self.name!r} has smooth_k {self.smooth_k!r} and method {self.method!r}.\n"
                f"Give true or false; true goes with {' or '.join(QUANTIZED)}."
            )


def _triple(value: object, good) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(not isinstance(x, bool) and good(x) for x in value)


def _window_entry(x: object) -> bool:
    return (isinstance(x, int) and (x == 0 or (x > 0 and x % 2 == 1))) or (isinstance(x, float) and 0 < x <= 1)


@dataclass(frozen=True)
class Schedule:
    """Profiles over sigma. windows: (low, high, profile name), covering [0, 1] without gap or overlap. dense_layers:
    transformer blocks that stay dense bf16 at every sigma. trained: the checkpoint was tuned with this schedule.
    """

    name: str
    profiles: tuple[Profile, ...]
    windows: tuple[tuple[float, float, str], ...]
    dense_layers: tuple[int, ...] = ()
    trained: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "profiles", tuple(self.profiles))
        windows = sorted((float(low), float(high), str(name)) for low, high, name in self.windows)
        object.__setattr__(self, "windows", tuple(windows))
        object.__setattr__(self, "dense_layers", tuple(sorted({int(layer) for layer in self.dense_layers})))
        names = [profile.name for profile in self.profiles]
        if len(set(names)) != len(names):
            raise ValueError(
                f"schedule {self.name!r} names a profile twice: {', '.join(names)}.\nGive each profile its own name."
            )
        if any(layer < 0 for layer in self.dense_layers):
            raise ValueError(
                f"schedule {self.name!r} has dense_layers {list(self.dense_layers)}.\nGive block numbers from 0."
            )
        at = 0.0
        for low, high, profile in windows:
            if profile not in names:
                raise ValueError(
                    f"schedule {self.name!r} uses the unknown profile {profile!r}.\nIt has: {', '.join(names)}."
                )
            if not low < high:
                raise ValueError(
                    f"schedule {self.name!r} has the window [{low}, {high}).\nGive low < high, both in [0, 1]."
                )
            if low != at:
                kind, a, b = ("leaves a gap", at, low) if low > at else ("overlaps", low, at)
                raise ValueError(f"schedule {self.name!r} {kind} at sigma [{a}, {b}).\nWindows must cover [0, 1] once.")
            at = high
        if at != 1.0:
            kind = "leaves a gap" if at < 1 else "goes beyond the range"
            raise ValueError(
                f"schedule {self.name!r} {kind} at sigma [{min(at, 1.0)}, {max(at, 1.0)}).\n"
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

    def with_method(self, method: str) -> Schedule:
        """The same schedule as one method of the ablation table.

        bf16: everything dense bf16. fp8: every profile FP8 over all tiles. sta: windows kept, bf16 precision. fps:
        unchanged.
        """
        if method not in SCHEDULE_METHODS:
            raise ValueError(f"method is {method!r}.\nGive one of {', '.join(SCHEDULE_METHODS)}.")
        if method == "fps":
            return self
        if method == "sta":
            change = [
                replace(p, method="bf16" if p.window == "all" else "sta", granularity=1, smooth_k=False)
                for p in self.profiles
            ]
        elif method == "fp8":
            change = [replace(p, method="fp8", window="all") for p in self.profiles]
        else:
            change = [replace(p, method="bf16", window="all", granularity=1, smooth_k=False) for p in self.profiles]
        if tuple(change) == self.profiles:
            return self
        return replace(self, name=f"{self.name}-{method}", profiles=tuple(change))

    def to_toml(self) -> str:
        """The schedule as a TOML document that from_toml reads back equal."""
        lines = [f"name = {_quote(self.name)}", f"trained = {str(self.trained).lower()}"]
        lines.append(f"dense_layers = [{', '.join(map(str, self.dense_layers))}]")
        for low, high, name in self.windows:
            lines += ["", "[[windows]]", f"low = {low!r}", f"high = {high!r}", f"profile = {_quote(name)}"]
        for profile in self.profiles:
            lines += ["", "[[profiles]]", f"name = {_quote(profile.name)}", f"method = {_quote(profile.method)}"]
            for field in ("tile", "window"):
                value = getattr(profile, field)
                text = _quote(value) if isinstance(value, str) else f"[{', '.join(repr(part) for part in value)}]"
                lines.append(f"{field} = {text}")
            lines.append(f"granularity = {profile.granularity}")
            lines += ["smooth_k = true"] if profile.smooth_k else []
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Schedule:
        """Reads to_toml's format. Raises ValueError for anything else, unknown keys included."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(
                f"the schedule is not valid TOML: {error}.\nCompare it with a preset's to_toml()."
            ) from None
        _only(data, "schedule", {"name", "profiles", "windows"}, {"trained", "dense_layers"})
        for row in data["profiles"]:
            _only(row, "profile", {"name", "method"}, {"tile", "window", "granularity", "smooth_k"})
        for row in data["windows"]:
            _only(row, "window", {"low", "high", "profile"}, set())
        return cls(
            name=data["name"],
            profiles=tuple(Profile(**row) for row in data["profiles"]),
            windows=tuple((row["low"], row["high"], row["profile"]) for row in data["windows"]),
            dense_layers=tuple(data.get("dense_layers", ())),
            trained=bool(data.get("trained", False)),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Schedule:
        """from_toml of a UTF-8 file; the error names the file."""
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _quote(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c
        for c in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


def _only(row: object, what: str, need: set[str], may: set[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"a {what} of the schedule is {row!r}.\nGive a table.")
    missing, unknown = need - row.keys(), row.keys() - need - may
    if missing or unknown:
        word = f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown keys {', '.join(sorted(unknown))}"
        raise ValueError(f"a {what} of the schedule {word}.\nKeys: {', '.join(sorted(need | may))}.")


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


def _preset(
    name: str, cuts: tuple[float, float], profiles: tuple[Profile, ...], dense_layers: tuple[int, ...] = ()
) -> Schedule:
    return Schedule(name, profiles, windows_from_fractions(*cuts), dense_layers)


PRESETS = {
    schedule.name: schedule
    for schedule in (
        # for untuned weights: layout is decided in the first steps and layers, so these stay dense
        _preset(
            "safe",
            (0.3, 0.9),
            (
                Profile("early", "bf16"),
                Profile("middle", "fps", window=(0.6, 0.6, 0.6)),
                Profile("late", "fps", window=(0.5, 0.5, 0.5)),
            ),
            dense_layers=(0, 1),
        ),
        _preset(
            "balanced",
            (0.2, 0.8),
            (
                Profile("early", "fp8"),
                Profile("middle", "fps", window=(0.5, 0.5, 0.5)),
                Profile("late", "fps", window=(0.4, 0.4, 0.4), granularity=2),
            ),
            dense_layers=(0,),
        ),
        # the paper's pattern: for checkpoints trained with it
        _preset(
            "paper",
            (0.2, 0.8),
            (
                Profile("early", "fps", window=(0.3, 0.3, 0.3), granularity=8),
                Profile("middle", "fps", window=(0.5, 0.5, 0.5), granularity=1),
                Profile("late", "fps", window=(0.4, 0.4, 0.4), granularity=2),
            ),
        ),
    )
}


def preset(name: str) -> Schedule:
    """A preset by name. Raises ValueError naming the choices."""
    if name not in PRESETS:
        raise ValueError(
            f"there is no schedule preset {name!r}.\nGive one of {', '.join(PRESETS)}, or a path to a TOML file."
        )
    return PRESETS[name]
