"""Structured text from outside: parsed strictly, then each field checked by name, kind and range. A leaf.

RECIPE = {"prompt": text(10_000), "steps": whole(1, 1000), "strict": switch(default=False), "model": {...}}
values = fields(parse_json(raw, "the recipe"), RECIPE, "the recipe")
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.text import clean_text, nearest, show

_ODD_ESCAPE = re.compile(r"\\[uU](0{4,8}|(0{4})?[dD][89a-fA-F])")  # NUL or half of a surrogate pair
REQUIRED = object()  # the default of a field that has to be there


@dataclass(frozen=True)
class Field:
    """One key of a table. check: the value as it is used, or ValueError. wanted: ends the sentence "... is not"."""

    check: Callable[[Any], Any]
    wanted: str
    default: Any = REQUIRED


Spec = Mapping[str, "Field | Spec"]


def whole(low: int, high: int, default: Any = REQUIRED) -> Field:
    """A whole number; neither a boolean nor 3.0."""
    return Field(
        lambda value: _require(type(value) is int and low <= value <= high, value),
        f"a whole number from {low} to {high}",
        default,
    )


def real(low: float, high: float, default: Any = REQUIRED) -> Field:
    """A finite number, given as float."""

    def check(value: Any) -> float:
        _require(type(value) in (int, float) and math.isfinite(value) and low <= value <= high, value)
        return float(value)

    return Field(check, f"a number from {low:g} to {high:g}", default)


def switch(default: Any = REQUIRED) -> Field:
    """True or false; not 0, 1 or "false"."""
    return Field(lambda value: _require(type(value) is bool, value), "true or false", default)


def text(limit: int, default: Any = REQUIRED, empty: bool = False) -> Field:
    """A text of at most `limit` characters, cleaned as fpsgen.text.clean_text does."""

    def check(value: Any) -> str:
        _require(isinstance(value, str) and len(value) <= limit, value)
        cleaned = clean_text(value)
        return _require(bool(cleaned) or empty, cleaned)

    return Field(check, f"a text of {'0' if empty else '1'} to {limit} characters", default)


def raw(limit: int, default: Any = REQUIRED) -> Field:
    """A text of several lines that another parser reads, at most `limit` characters."""
    return Field(
        lambda value: _require(isinstance(value, str) and len(value) <= limit, value),
        f"a text of at most {limit} characters",
        default,
    )


def choice(names: Iterable[str], default: Any = REQUIRED) -> Field:
    """One of these texts."""
    known = tuple(names)
    return Field(
        lambda value: _require(isinstance(value, str) and value in known, value), f"one of {', '.join(known)}", default
    )


def many(item: Field, low: int = 0, high: int = 1000, default: Any = REQUIRED) -> Field:
    """A list of `low` to `high` values of one kind, given as tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        _require(isinstance(value, list) and low <= len(value) <= high, value)
        return tuple(item.check(entry) for entry in value)

    count = f"{low} to {high}" if low != high else str(low)
    return Field(check, f"a list of {count} values, each {item.wanted}", default)


def mapping(item: Field, limit: int = 1000, default: Any = REQUIRED) -> Field:
    """A table of any keys whose values are of one kind."""

    def check(value: Any) -> dict[str, Any]:
        _require(isinstance(value, dict) and len(value) <= limit, value)
        return {clean_text(key): item.check(entry) for key, entry in value.items()}

    return Field(check, f"a table of values, each {item.wanted}", default)


def or_null(field: Field, default: Any = None) -> Field:
    """The same, or null; null where it is left out."""
    return Field(lambda value: None if value is None else field.check(value), f"{field.wanted}, or null", default)


def fields(
    table: Any, spec: Spec, what: str, code: int = BAD_INPUT, more: bool = False, example: str = ""
) -> dict[str, Any]:
    """The values of `table` by `spec`, each checked, defaults filled in; tables within it likewise.

    what: how messages name the table ("recipe of a.mp4"). more: other keys may be there and are left out, as in files
    of other programs. example: a remedy that shows a right table. Raises FpsgenError `code` naming the key, its value
    and what it is not.
    """
    if not isinstance(table, dict):
        raise FpsgenError(f"{what} is not a table of values", example or f"keys are {', '.join(spec)}", code)
    for key in table if not more else ():
        if key not in spec:
            near = nearest(str(key), spec)
            guess = f"; did you mean {near}?" if near else ""
            raise FpsgenError(
                f"{what} has an unknown key {show(key, 60)!r}{guess}", example or f"keys are {', '.join(spec)}", code
            )
    found: dict[str, Any] = {}
    for key, field in spec.items():
        if not isinstance(field, Field):
            found[key] = fields(table.get(key), field, f"{what}: {key}", code, more, example)
            continue
        if key not in table:
            if field.default is REQUIRED:
                raise FpsgenError(f"{what} has no {key}", example or f"{key} is {field.wanted}", code)
            found[key] = field.default
            continue
        try:
            found[key] = field.check(table[key])
        except (ValueError, TypeError, OverflowError):
            shown = _shown(table[key])
            raise FpsgenError(
                f"{what}: {key} is {shown}, not {field.wanted}", example or f"give {key} such a value", code
            ) from None
    return found


def parse_json(text: str, what: str, code: int = BAD_INPUT, example: str = "") -> dict[str, Any]:
    """A JSON object. Raises FpsgenError `code` for anything else: repeated keys, NaN and infinite numbers, numbers of
    thousands of digits, nesting too deep, NUL and lone surrogates included. example: a remedy that shows one.
    """
    remedy = example or "mend it, or write it anew"
    try:
        found = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise FpsgenError(f"{what} is not JSON: {error.msg} at {place}", remedy, code) from None
    except (ValueError, RecursionError) as error:
        raise FpsgenError(f"{what} cannot be used: {_why_unusable(error)}", remedy, code) from None
    if not isinstance(found, dict):
        raise FpsgenError(f"{what} is not a JSON object", remedy, code)
    return _no_odd_characters(text, found, what, remedy, code)


def parse_toml(text: str, what: str, code: int = BAD_INPUT) -> dict[str, Any]:
    """A TOML table. Raises FpsgenError `code` as `parse_json`."""
    remedy = "mend it, or write it anew"
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FpsgenError(f"{what} is not TOML: {show(error)}", remedy, code) from None
    except (ValueError, RecursionError) as error:
        raise FpsgenError(f"{what} cannot be used: {_why_unusable(error)}", remedy, code) from None
    return _no_odd_characters(text, found, what, remedy, code)


def _require(right: bool, value: Any) -> Any:
    if not right:
        raise ValueError
    return value


def _shown(value: Any) -> str:
    """A value of a table for a message; numbers of thousands of digits have no decimal form in Python."""
    try:
        return show(repr(value) if isinstance(value, str) else json.dumps(value, default=str), 60)
    except (ValueError, RecursionError):
        return "a value that is too large"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {show(next(n for n in names if names.count(n) > 1), 40)!r} is there twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON has")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {show(text, 40)} is too large")
    return value


def _why_unusable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number in it has thousands of digits" if "digits" in str(error) else show(error)


def _no_odd_characters(text: str, found: dict[str, Any], what: str, remedy: str, code: int) -> dict[str, Any]:
    """`found`, unless a text in it holds NUL or a lone surrogate, which only an escape in `text` can bring."""
    waiting: list[Any] = [found] if _ODD_ESCAPE.search(text) else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udfff]", value)):
            raise FpsgenError(f"{what} holds a text with NUL or half a character: {show(value, 40)}", remedy, code)
    return found
