"""From text to value, the same for every layer. A parser raises ValueError for what it does not take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fpsgen.text import clean_text

MIN_SIDE, MAX_SIDE = 16, 8192  # pixels of a video


class Parser(NamedTuple):
    """read: text to value, or ValueError. wanted: ends the sentence "... is not". names: what can be chosen, if few."""

    read: Callable[[str], Any]
    wanted: Callable[[], str]
    names: Callable[[], tuple[str, ...]] = tuple


def method_names() -> tuple[str, ...]:
    """The attention methods there are."""
    from fpsgen.attention.methods import METHODS

    return tuple(METHODS)


def whole(low: int, high: int) -> Parser:
    """A whole number in ASCII digits."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Parser(read, lambda: f"a whole number from {low} to {high}")


def real(low: float, high: float) -> Parser:
    """A finite number; its value as float."""

    def read(text: str) -> float:
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
            raise ValueError
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value

    return Parser(read, lambda: f"a number from {low:g} to {high:g}")


def choice(names: Callable[[], tuple[str, ...]]) -> Parser:
    """One of `names`, asked for at each use; upper case counts as lower."""

    def read(text: str) -> str:
        if text.lower() not in names():
            raise ValueError
        return text.lower()

    return Parser(read, lambda: f"one of {', '.join(names())}", names)


def listed(one: Parser, wanted: str) -> Parser:
    """Values of one kind with commas between them, as a tuple without repeats."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(one.read(part.strip()) for part in text.split(",")))

    def explain() -> str:
        names = f" ({', '.join(one.names())})" if one.names() else ""
        return f"a list of {wanted}{names} with commas between them"

    return Parser(read, explain, one.names)


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
    if not size or not all(MIN_SIDE <= int(side) <= MAX_SIDE for side in size.groups()):
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


def _grid(text: str) -> tuple[int, int, int]:
    size = re.fullmatch(r"(\d{1,4})x(\d{1,4})x(\d{1,4})", text.lower(), re.ASCII)
    if not size or not all(0 < int(side) <= 4096 for side in size.groups()):
        raise ValueError
    return int(size[1]), int(size[2]), int(size[3])


def named(wanted: str) -> Parser:
    """Any printable text that is not blank."""
    return Parser(_name, lambda: wanted)


def text_up_to(limit: int, wanted: str) -> Parser:
    """Cleaned text on one line, at most `limit` characters; it may be empty."""

    def read(text: str) -> str:
        cleaned = clean_text(text)
        if len(cleaned) > limit:
            raise ValueError
        return cleaned

    return Parser(read, lambda: wanted)


def token_shape(names: tuple[str, ...]) -> Parser:
    """One of `names` as it is, or TxHxW as three numbers of 1 to 4096."""
    return Parser(
        lambda text: text.lower() if text.lower() in names else _grid(text),
        lambda: f"{', '.join(names)} or TxHxW, three numbers of tokens",
    )


switch = Parser(_switch, lambda: "true or false")
resolution = Parser(_res, lambda: f"480p, 720p or a size such as 832x480 ({MIN_SIDE} to {MAX_SIDE} pixels a side)")
aspect = Parser(_aspect, lambda: "a ratio such as 16:9, 9:16 or 1:1 (at most 4:1)")
device = Parser(_device, lambda: "auto, cpu, cuda or cuda:N")
