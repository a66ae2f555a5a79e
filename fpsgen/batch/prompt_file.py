"""A file of prompts as people have them: any line ends, byte order marks, options behind a prompt as other tools write
them. What a line says is understood or refused by its number, never taken for words of the prompt.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.fields import parse_json
from fpsgen.files import decode, read_bytes
from fpsgen.settings.gather import names_of
from fpsgen.settings.setting import LINE
from fpsgen.settings.table import SETTINGS
from fpsgen.text import clean_text, nearest, show, split_lines

STDIN = "-"
LINES, OBJECTS = ".txt", ".jsonl"
MAX_BYTES = 64 << 20
EXAMPLE = 'for example {"prompt": "a cat surfing", "seed": 1}'

# What other tools for Wan call their options behind a prompt; --w and --h together are "res".
SHORT = {"f": "frames", "d": "seed", "s": "steps", "g": "guidance", "l": "guidance", "fs": "shift", "n": "negative"}
WIDTH, HEIGHT = "w", "h"
_OPTION = re.compile(r"(?<!\S)--([A-Za-z][A-Za-z0-9_-]*)(?=[=\s]|$)=?")
_LONG_DASH = re.compile(r"(?<!\S)[\u2010-\u2015\u2212]+-?([A-Za-z][A-Za-z0-9_-]*)(?=[=\s]|$)")  # as editors make of --
_NO_VALUES: dict[str, Any] = {}


class Line(NamedTuple):
    """number: counted from 1. where: how messages name it. text: as it stands there. objects: it is JSON."""

    number: int
    where: str
    text: str
    objects: bool


def read_lines(source: str) -> Iterator[Line]:
    """The lines of a file that may ask for a video: a .txt (without blank lines and those that begin with #), a .jsonl,
    or "-" for either on standard input. Raises FpsgenError BAD_INPUT.
    """
    name = "stdin" if source == STDIN else show(source)
    kind = Path(source).suffix.lower()
    if source != STDIN and kind not in (LINES, OBJECTS):
        what = f"{name} is neither {LINES} nor {OBJECTS}"
        raise FpsgenError(what, "write one prompt per line in a .txt file", BAD_INPUT)
    text = decode(_stdin() if source == STDIN else read_bytes(source, MAX_BYTES, name), name)
    objects = text.lstrip("\ufeff \t\r\n")[:1] == "{" if source == STDIN else kind == OBJECTS
    found = False
    # JSON has its own line ends, and its texts may hold the others
    for number, line in enumerate(re.split("\r\n|[\r\n]", text) if objects else split_lines(text), 1):
        line = line.strip("\ufeff\u200b\u2060 \t\f\v\u00a0\u3000")
        if line and (objects or line[0] != "#"):
            found = True
            yield Line(number, f"{name} line {number}", line, objects)
    if not found:
        raise FpsgenError(f"{name} holds no prompt", 'write one per line, for example "a cat surfing"', BAD_INPUT)


def parse_line(line: Line) -> tuple[str, dict[str, Any]]:
    """(prompt, what the line sets, by name of the setting). The prompt of a .txt may be "" where nothing is left of it.

    Raises FpsgenError BAD_INPUT naming the line.
    """
    if line.objects:
        values = parse_json(line.text, line.where, example=EXAMPLE)
        prompt = values.pop("prompt", None)
        if not isinstance(prompt, str):
            raise FpsgenError(f"{line.where} has no prompt", EXAMPLE, BAD_INPUT)
        return prompt, values
    try:
        text = clean_text(line.text)
    except ValueError as error:
        raise FpsgenError(f"{line.where} is not plain text: {error}", "remove that character", BAD_INPUT) from None
    if text[:1] == "{" and text[-1:] == "}" and '"prompt"' in text:
        raise FpsgenError(f"{line.where} is a JSON object", f"name the file {OBJECTS}", BAD_INPUT)
    if not text.isascii():
        _refuse_long_dashes(text, line.where)
    if "--" not in text:
        return text, _NO_VALUES
    return _split_options(text, line.where)


def _options() -> dict[str, str]:
    """The settings of a line by the word behind -- ."""
    return {SETTINGS[name].option.removeprefix("--"): name for name in names_of(LINE)}


def _refuse_long_dashes(text: str, where: str) -> None:
    for found in _LONG_DASH.finditer(text):
        if found[1].lower() in {*_options(), *SHORT, WIDTH, HEIGHT}:
            what = f"{where}: {found[0]} looks like the option --{found[1]}, with a dash that an editor put there"
            raise FpsgenError(what, f"write --{found[1]}, or put a blank behind the dash", BAD_INPUT)


def _split_options(text: str, where: str) -> tuple[str, dict[str, Any]]:
    options = list(_OPTION.finditer(text))
    if not options:
        return text, _NO_VALUES
    known = _options()
    sides: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for option, end in zip(options, [*(later.start() for later in options[1:]), len(text)], strict=True):
        word, value = option[1], text[option.end() : end].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        name = SHORT.get(word, known.get(word.lower().replace("_", "-")))
        if word in (WIDTH, HEIGHT):
            store, name = sides, word
        elif name is not None:
            store = values
        else:
            value, name = _switch(word, value, known, where)
            store = values
        if name in store:
            raise FpsgenError(f"{where} sets {name} twice (--{show(word)})", "remove one of the two", BAD_INPUT)
        store[name] = True if value == "" and name in SETTINGS and SETTINGS[name].is_switch else value
    if sides:
        if len(sides) == 1:
            raise FpsgenError(f"{where} has --w or --h alone", "give both, for example --w 832 --h 480", BAD_INPUT)
        if "res" in values:
            raise FpsgenError(f"{where} sets --res, and --w and --h", "give one of the two", BAD_INPUT)
        values["res"] = f"{sides[WIDTH]}x{sides[HEIGHT]}"
    return text[: options[0].start()].strip(), values


def _switch(word: str, value: str, known: dict[str, str], where: str) -> tuple[Any, str]:
    """(False, name) of a --no-NAME. Raises FpsgenError for any other word that is no option."""
    name = known.get(word.removeprefix("no-"))
    if word.startswith("no-") and name is not None and SETTINGS[name].is_switch and not value:
        return False, name
    names = [*known, *SHORT, WIDTH, HEIGHT]
    near = nearest(word, names)
    guess = f"; did you mean --{near}?" if near else ""
    known_ones = ", ".join(f"--{name}" for name in names)
    raise FpsgenError(f"{where}: --{show(word, 40)} is not an option{guess}", f"options are {known_ones}", BAD_INPUT)


def _stdin() -> bytes:
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin is not None else b""
    except OSError as error:
        raise FpsgenError(f"stdin cannot be read: {error.strerror}", "name a .txt or .jsonl file", BAD_INPUT) from None
    if len(data) > MAX_BYTES:
        raise FpsgenError(f"stdin is larger than {MAX_BYTES >> 20} MiB", "split it", BAD_INPUT)
    return data
