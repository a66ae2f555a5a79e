"""Which layer sets what: line of a prompt file > flag > FPSGEN_* > ./fpsgen.toml > user config > the model's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.files import read_toml
from fpsgen.settings.setting import ENVIRONMENT, FILE, LINE, Setting
from fpsgen.settings.table import SETTINGS
from fpsgen.text import nearest, show

CONFIG_NAME = "fpsgen.toml"
CONFIG_VARIABLE = "FPSGEN_CONFIG"  # names the user's own config file
DEFAULT = "default"  # the origin of what no layer sets
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What was asked for, by name of the setting; `settings.steps` is its value, else the table's default (None: the
    model decides). origins: the layer that set each value. Built by `gather`.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in SETTINGS:
            raise AttributeError(f"there is no setting {name!r}")
        return self.values.get(name, SETTINGS[name].default)

    def origin(self, *names: str) -> str:
        """The layer that set the first of `names` that was set at all, else "default"."""
        return next((self.origins[name] for name in names if name in self.origins), DEFAULT)

    def replace(self, **values: Any) -> Settings:
        """The same with other values; their origins stay."""
        return replace(self, values={**self.values, **values})


def gather(
    flags: Mapping[str, str | bool | None],
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    user_config: Path | None = None,
) -> Settings:
    """Settings from all layers.

    flags: as typed on the command line; None where an option was not given.
    environ, folder: default to the process's own. user_config: defaults to user_config_file().
    Raises FpsgenError: USAGE for a flag or variable, BAD_INPUT for a file.
    """
    return gather_lines(flags, environ, folder, user_config)(None)


def gather_lines(
    flags: Mapping[str, str | bool | None],
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    user_config: Path | None = None,
) -> Callable[[tuple[str, Mapping[str, Any]] | None], Settings]:
    """As `gather`, for many lines: files are read once. Returns what makes the Settings of a line, by what that sets,
    above the flags, and where it is ("prompts.jsonl line 3"). Raises FpsgenError BAD_INPUT for a line.
    """
    environ = os.environ if environ is None else environ
    layers = [
        _Layer(
            {k: v for k, v in flags.items() if v is not None},
            "flag",
            lambda entry: entry.option,
            _on_command_line,
            USAGE,
        ),
        _environment(environ),
        _file_layer((folder or Path()) / CONFIG_NAME, f"./{CONFIG_NAME}"),
        _file_layer(user_config or user_config_file(environ)),
    ]
    warnings = _unknown_variables(environ)

    def with_line(line: tuple[str, Mapping[str, Any]] | None) -> Settings:
        return _merge([*([] if line is None else [_checked(line[1], line[0], LINE)]), *layers], warnings)

    return with_line


def _merge(layers: list[_Layer], warnings: tuple[str, ...]) -> Settings:
    """Settings in which a layer wins over those behind it."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        found = {name: layer.parse(SETTINGS[name]) for name in layer.values}
        for name in _superseded(found, values, layer):
            found.pop(name, None)
        for name, value in found.items():
            if name not in values:
                values[name], origins[name] = value, layer.origin
    return Settings(values, origins, warnings)


def user_config_file(environ: Mapping[str, str] | None = None) -> Path:
    """The user's own config file, which need not exist: FPSGEN_CONFIG, else the platform's place. Raises FpsgenError
    BAD_INPUT where FPSGEN_CONFIG names no file.
    """
    named = (os.environ if environ is None else environ).get(CONFIG_VARIABLE)
    if named and not os.path.isfile(named):
        raise FpsgenError(f"{CONFIG_VARIABLE}={show(named)} is not a file", "name a TOML file, or unset it", BAD_INPUT)
    return Path(named) if named else platformdirs.user_config_path("fpsgen") / "config.toml"


def names_of(layer: str) -> list[str]:
    """The settings that may be set in a layer: setting.LINE, FILE or ENVIRONMENT."""
    return [entry.name for entry in SETTINGS.values() if layer in entry.layers]


def _alone(entry: Setting, value: str) -> str:
    return value


def refusal(
    entry: Setting, value: object, label: str, code: int, written: Callable[[Setting, str], str] = _alone
) -> FpsgenError:
    """The error for a value that a setting does not take. label: the setting and where it was found. written: the
    setting with a value as both are written there.
    """
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else _number(value)
    said = f"{label} {show(text)!r}" if text else f"{label} (empty)"
    example = nearest(text, entry.parser.names(), 0.5) or entry.example
    return FpsgenError(f"{said} is not {entry.parser.wanted()}", f"for example {written(entry, example)}", code)


@dataclass(frozen=True)
class _Layer:
    values: Mapping[str, Any]
    origin: str
    label: Callable[[Setting], str]
    written: Callable[[Setting, str], str]
    code: int

    def parse(self, entry: Setting) -> Any:
        value = self.values[entry.name]
        try:
            return entry.read(value)
        except ValueError:
            raise refusal(entry, value, self.label(entry), self.code, self.written) from None


def _on_command_line(entry: Setting, value: str) -> str:
    return f"{entry.option} {value}"


def _in_environment(entry: Setting, value: str) -> str:
    return f"{entry.variable}={value}"


def _in_toml(entry: Setting, value: str) -> str:
    bare = re.fullmatch(r"[\d.]+|true|false|\".*\"", value)
    return f"{entry.name} = {value if bare else json.dumps(value)}"


def _number(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"


def _environment(environ: Mapping[str, str]) -> _Layer:
    """The variables that are set; an empty one counts as unset."""
    entries = [SETTINGS[name] for name in names_of(ENVIRONMENT)]
    values = {entry.name: environ[entry.variable] for entry in entries if environ.get(entry.variable)}
    return _Layer(values, "environment", lambda entry: entry.variable, _in_environment, USAGE)


def _unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {SETTINGS[name].variable for name in names_of(ENVIRONMENT)} | {CONFIG_VARIABLE}
    unknown = sorted(name for name in environ if name.startswith("FPSGEN_") and name not in known)
    return tuple(f"{show(name)} is not a setting{_guess(name, known)}" for name in unknown)


def _superseded(found: Mapping[str, Any], above: Mapping[str, Any], layer: _Layer) -> list[str]:
    """Names of this layer that lose to a rival set higher up; two rivals in one layer are an error."""
    lost = []
    for name, rival in (("frames", "seconds"), ("seconds", "frames")):
        if name in found and rival in found:
            pair = f"{layer.label(SETTINGS['frames'])} and {layer.label(SETTINGS['seconds'])}"
            raise FpsgenError(f"{pair} both set the length", "give one of the two", layer.code)
        if rival in above:
            lost.append(name)
    if isinstance(found.get("res"), tuple) and "aspect" in found:
        size = "x".join(map(str, found["res"]))
        pair = f"{layer.label(SETTINGS['res'])} {size} and {layer.label(SETTINGS['aspect'])}"
        raise FpsgenError(
            f"{pair} both set the shape", "give a size alone, or a name such as 480p with a ratio", layer.code
        )
    if isinstance(above.get("res"), tuple):
        lost.append("aspect")
    return lost


def _file_layer(path: Path, origin: str = "") -> _Layer:
    """The settings of one TOML file; an absent file is an empty layer."""
    origin = origin or show(path, 200)
    values = read_toml(path, _MAX_CONFIG_BYTES, origin) if os.path.lexists(path) else {}
    return _checked(values, origin, FILE)


def _checked(values: Mapping[str, Any], origin: str, layer: str) -> _Layer:
    """The layer of a file or line. Raises FpsgenError BAD_INPUT for a key that is no setting there or a value that is
    not single.
    """
    known = names_of(layer)
    written = _in_toml if layer == FILE else _alone  # lines are written in two ways
    for name, value in values.items():
        if name not in known:
            what = f"{origin}: {show(name)!r} is not a setting{_guess(name, known)}"
            raise FpsgenError(what, f"known are {', '.join(known)}", BAD_INPUT)
        if not isinstance(value, str | int | float | bool):
            what = f"{origin}: {name} is not a single value"
            raise FpsgenError(what, f"for example {written(SETTINGS[name], SETTINGS[name].example)}", BAD_INPUT)
    return _Layer(values, origin, lambda entry: f"{entry.name} in {origin}", written, BAD_INPUT)


def _guess(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""
