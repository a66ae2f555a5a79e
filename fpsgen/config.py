"""Settings and where each comes from: flag > FPSGEN_* > ./fpsgen.toml > user config; the model decides the rest.

A leaf: imports other leaves alone. Every layer goes through the same parsers, so a value is judged alike
wherever it was written, and before torch is imported.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.text import clean_text, show

METHODS = ("bf16", "fp8", "sta", "fps")
DTYPES = ("auto", "bf16", "fp16", "fp32")
CONFIG_NAME = "fpsgen.toml"
_NOT_SETTINGS = {"FPSGEN_CONFIG", "FPSGEN_DEBUG"}  # read by name elsewhere
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What was asked for. None means: the model's default. `origins` names the layer that set each value."""

    model: str = "auto"
    res: str | tuple[int, int] | None = None  # "480p" or (width, height) in pixels
    aspect: tuple[int, int] | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: int | None = None
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    negative: str | None = None
    seed: int | None = None
    method: str | None = None
    schedule: str | None = None  # a preset's name or a TOML file
    strict: bool = False
    output: str | None = None
    metadata: bool = True
    device: str = "auto"
    dtype: str = "auto"
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def origin(self, *names: str) -> str:
        """The layer that set the first of `names` that was set at all, else "default"."""
        return next((self.origins[name] for name in names if name in self.origins), "default")


class Parser(NamedTuple):
    read: Callable[[str], Any]  # raises ValueError
    wanted: str  # ends the sentence "... is not"


def _whole(low: int, high: int) -> Parser:
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Parser(read, f"a whole number from {low} to {high}")


def _real(low: float, high: float) -> Parser:
    def read(text: str) -> float:
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
            raise ValueError
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value

    return Parser(read, f"a number from {low:g} to {high:g}")


def _choice(names: tuple[str, ...]) -> Parser:
    def read(text: str) -> str:
        if text.lower() not in names:
            raise ValueError
        return text.lower()

    return Parser(read, f"one of {', '.join(names)}")


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError


def _res(text: str) -> str | tuple[int, int]:
    if re.fullmatch(r"\d{2,4}p", text.lower(), re.ASCII):
        return text.lower()
    size = re.fullmatch(r"(\d{1,5})[x\N{MULTIPLICATION SIGN}](\d{1,5})", text.lower(), re.ASCII)
    if not size or not all(16 <= int(side) <= 8192 for side in size.groups()):
        raise ValueError
    return int(size[1]), int(size[2])


def _aspect(text: str) -> tuple[int, int]:
    ratio = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text, re.ASCII)
    if not ratio:
        raise ValueError
    width, height = int(ratio[1]), int(ratio[2])
    if width < 1 or height < 1 or not 1 / 4 <= width / height <= 4:
        raise ValueError
    return width, height


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", text.lower(), re.ASCII):
        raise ValueError
    return text.lower()


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError
    return text


PARSERS: dict[str, Parser] = {
    "model": Parser(_name, "a model's name, a hub id or a folder"),
    "res": Parser(_res, "480p, 720p or a size such as 832x480 (16 to 8192 pixels a side)"),
    "aspect": Parser(_aspect, "a ratio such as 16:9, 9:16 or 1:1 (at most 4:1)"),
    "frames": _whole(1, 2001),
    "seconds": _real(0.01, 600),
    "fps": _whole(1, 240),
    "steps": _whole(1, 1000),
    "guidance": _real(0, 100),
    "shift": _real(0.01, 100),
    "negative": Parser(clean_text, "plain text"),
    "seed": _whole(0, 2**63 - 1),
    "method": _choice(METHODS),
    "schedule": Parser(_name, "a preset's name or a TOML file"),
    "strict": Parser(_switch, "true or false"),
    "output": Parser(_name, "a file name ending in .mp4, or a folder"),
    "metadata": Parser(_switch, "true or false"),
    "device": Parser(_device, "auto, cpu, cuda or cuda:N"),
    "dtype": _choice(DTYPES),
}


def gather(
    flags: Mapping[str, str | bool | None],
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    user_config: Path | None = None,
    line: tuple[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Settings from all layers.

    flags: as typed on the command line; None where an option was not given.
    environ, folder: default to the process's own. user_config: defaults to user_config_file().
    line: what a line of a prompt file sets, above the flags, and where that is ("prompts.jsonl line 3").
    Raises FpsgenError: USAGE for a flag or variable, BAD_INPUT for a file or a line.
    """
    environ = os.environ if environ is None else environ
    local = (folder or Path()) / CONFIG_NAME
    user_config = user_config or user_config_file(environ)

    warnings = [
        f"{name} is not a setting{_guess(name, [f'FPSGEN_{key.upper()}' for key in PARSERS])}"
        for name in sorted(environ)
        if name.startswith("FPSGEN_") and name not in _NOT_SETTINGS and name[7:].lower() not in PARSERS
    ]
    from_environ = {key: environ[name] for key in PARSERS if environ.get(name := f"FPSGEN_{key.upper()}")}
    layers = [] if line is None else [_Layer(_checked(line[1], line[0]), line[0], _labels(line[0]), BAD_INPUT)]
    layers += [
        _Layer({k: v for k, v in flags.items() if v is not None}, "flag", lambda key: f"--{key}", USAGE),
        _Layer(from_environ, "environment", lambda key: f"FPSGEN_{key.upper()}", USAGE),
        _file_layer(local, f"./{CONFIG_NAME}"),
        _file_layer(user_config, str(user_config)),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        found = {key: layer.parse(key) for key in layer.values}
        for key in _superseded(found, values, layer):
            found.pop(key, None)
        for key, value in found.items():
            if key not in values:
                values[key], origins[key] = value, layer.origin
    return Settings(**values, origins=origins, warnings=tuple(warnings))


def user_config_file(environ: Mapping[str, str] | None = None) -> Path:
    """The user's own config file, which need not exist: FPSGEN_CONFIG, else the platform's place. Raises FpsgenError
    BAD_INPUT where FPSGEN_CONFIG names no file.
    """
    named = (os.environ if environ is None else environ).get("FPSGEN_CONFIG")
    if named and not Path(named).is_file():
        raise FpsgenError(f"FPSGEN_CONFIG={show(named)} is not a file", "name a TOML file, or unset it", BAD_INPUT)
    return Path(named) if named else platformdirs.user_config_path("fpsgen") / "config.toml"


@dataclass(frozen=True)
class _Layer:
    values: Mapping[str, Any]
    origin: str
    label: Callable[[str], str]
    code: int

    def parse(self, key: str) -> Any:
        value = self.values[key]
        parser = PARSERS[key]
        text = str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)
        try:
            return parser.read(text)
        except ValueError:
            said = f"{self.label(key)} {show(text)!r}" if text else f"{self.label(key)} (empty)"
            raise FpsgenError(f"{said} is not {parser.wanted}", self._remedy(key, text), self.code) from None

    def _remedy(self, key: str, text: str) -> str:
        names = {"method": METHODS, "dtype": DTYPES}.get(key, ())
        near = difflib.get_close_matches(text.lower(), names, 1, 0.5)
        example = near[0] if near else EXAMPLES[key]
        return f"for example {self.label(key)} {example}"


EXAMPLES = {
    "model": "nano",
    "res": "832x480",
    "aspect": "16:9",
    "frames": "81",
    "seconds": "5",
    "fps": "16",
    "steps": "50",
    "guidance": "5",
    "shift": "3",
    "negative": '"blurred, static"',
    "seed": "42",
    "method": "fps",
    "schedule": "balanced",
    "strict": "true",
    "output": "cat.mp4",
    "metadata": "false",
    "device": "cuda",
    "dtype": "bf16",
}


def _superseded(found: Mapping[str, Any], above: Mapping[str, Any], layer: _Layer) -> list[str]:
    """Keys of this layer that lose to a rival set higher up; two rivals in one layer are an error."""
    lost = []
    for key, rival in (("frames", "seconds"), ("seconds", "frames")):
        if key in found and rival in found:
            pair = f"{layer.label('frames')} and {layer.label('seconds')}"
            raise FpsgenError(f"{pair} both set the length", "give one of the two", layer.code)
        if rival in above:
            lost.append(key)
    if isinstance(found.get("res"), tuple) and "aspect" in found:
        pair = f"{layer.label('res')} {'x'.join(map(str, found['res']))} and {layer.label('aspect')}"
        raise FpsgenError(
            f"{pair} both set the shape", "give a size alone, or a name such as 480p with a ratio", layer.code
        )
    if isinstance(above.get("res"), tuple):
        lost.append("aspect")
    return lost


def _file_layer(path: Path, origin: str) -> _Layer:
    """The settings of one TOML file; an absent file is an empty layer."""
    label = _labels(origin)
    try:
        if not path.exists():
            return _Layer({}, origin, label, BAD_INPUT)
        if not path.is_file():
            raise FpsgenError(f"{origin} is not a regular file", "remove it, or write settings there", BAD_INPUT)
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise FpsgenError(f"{origin} is larger than 1 MiB", "settings are a few lines of TOML", BAD_INPUT)
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FpsgenError(f"{origin} cannot be read: {error.strerror}", "check its permissions", BAD_INPUT) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise FpsgenError(f"{origin} is not UTF-8 TOML text", "save it as plain UTF-8 text", BAD_INPUT) from error
    except tomllib.TOMLDecodeError as error:
        raise FpsgenError(f"{origin} is not valid TOML: {show(error)}", "mend the line named", BAD_INPUT) from error
    return _Layer(_checked(values, origin), origin, label, BAD_INPUT)


def _labels(origin: str) -> Callable[[str], str]:
    return lambda key: f"{key} in {origin}"


def _checked(values: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """The same values. Raises FpsgenError BAD_INPUT for a key that is no setting or a value that is not single."""
    for key, value in values.items():
        if key not in PARSERS:
            known = f"known are {', '.join(PARSERS)}"
            guess = _guess(key, list(PARSERS))
            raise FpsgenError(f"{origin}: {show(key)!r} is not a setting{guess}", known, BAD_INPUT)
        if not isinstance(value, str | int | float | bool):
            raise FpsgenError(
                f"{origin}: {key} is not a single value", f"for example {key} = {EXAMPLES[key]}", BAD_INPUT
            )
    return values


def _guess(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
