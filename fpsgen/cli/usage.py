"""Usage errors in two lines: what is wrong, and what was probably meant."""

from __future__ import annotations

import re
import shlex
from typing import Any

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.setting import Setting
from fpsgen.settings.table import SETTINGS
from fpsgen.text import nearest, show

WIDTHS, HEIGHTS = ("width", "w"), ("height", "h")
SIDES = (*WIDTHS, *HEIGHTS)


def explain_usage(error: Any, arguments: list[str], command: str) -> FpsgenError:
    """The error for what typer could not parse. command: the one that was meant, "" if none."""
    message = show(error.format_message(), 300)
    message = message[:1].lower() + message[1:]
    message, _, guess = message.partition(" Did you mean ")
    message = message.split(" (Possible", 1)[0].rstrip(".")
    line = " ".join(filter(None, ("fpsgen", command)))
    option = re.match(r"no such option: (-+[^\s]+)", message)
    if option:
        place = error.ctx.command_path if error.ctx else line  # "fpsgen" for what stands before the command
        guess = meant(option[1], command, arguments)
        if place != line and _has(error.ctx.command, line.removeprefix(place).split(), option[1]):
            guess = f"put it behind the command: {line} {option[1]}"
        elif place != line and guess:
            guess = f"{guess.rstrip('?')}, behind the command?"
        return FpsgenError(f"{place} has no option {option[1]}", guess or _list(line), USAGE)
    if "no such command" in message:
        return FpsgenError(message, _for_command(arguments, guess), USAGE)
    if guess:
        return FpsgenError(message, f"did you mean {guess}", USAGE)
    if message.startswith("missing argument"):
        missing = message.removeprefix("missing argument").strip(" '")
        return FpsgenError(f"{line} needs {missing}", f"{line} --help says what that is", USAGE)
    if "unexpected extra argument" in message and command == "generate":
        remedy = 'put the whole prompt in quotes: fpsgen generate "a cat surfing"'
        return FpsgenError(message, remedy, USAGE)
    return FpsgenError(message, _list(line), USAGE)


def meant(option: str, command: str, arguments: list[str]) -> str:
    """The remedy for an option that `command` does not have, with the value that was typed; "" if none comes near."""
    word = _word(option)
    entries = [entry for entry in SETTINGS.values() if command in entry.commands]
    names = {entry.option.lstrip("-"): entry for entry in entries}
    mistaken = next((entry for entry in entries if word in entry.mistaken_for), None)
    entry = mistaken or names.get(nearest(word, names))
    others = {"help": "--help"} | ({"prompts": "--prompts FILE"} if command == "generate" else {})
    other = "" if mistaken else nearest(word, (*others, *names))
    if other in others:
        return f"did you mean {others[other]}?"
    return f"did you mean {_with_value(entry, word, arguments)}?" if entry else ""


def _has(group: Any, names: list[str], option: str) -> bool:
    """Whether the command of a group has the option. names: the command, and those of the groups between."""
    for name in names:
        group = group.commands[name]
    return any(option in (*param.opts, *param.secondary_opts) for param in group.params)


def _word(option: str) -> str:
    return option.lstrip("-").split("=", 1)[0].lower().replace("_", "-")


def _value(word: str, arguments: list[str]) -> str:
    """What the command line gives to the option `word`, "" if nothing."""
    for place, argument in enumerate(arguments):
        if argument.startswith("-") and _word(argument) == word:
            after = arguments[place + 1] if place + 1 < len(arguments) else ""
            return argument.partition("=")[2] or ("" if after.startswith("-") else after)
    return ""


def _with_value(entry: Setting, word: str, arguments: list[str]) -> str:
    """The option that was meant, with the value that was typed where it suits, else with an example."""
    if entry.is_switch:
        return entry.option
    value = _value(word, arguments)
    if entry.name == "res" and word in SIDES:
        sides = (next(filter(None, (_value(name, arguments) for name in names)), "") for names in (WIDTHS, HEIGHTS))
        value = "x".join(side or name for side, name in zip(sides, ("WIDTH", "HEIGHT"), strict=True))
        return f"{entry.option} {show(value, 40)}"
    try:
        entry.read(value)
    except ValueError:
        value = entry.example
    return f"{entry.option} {shlex.quote(show(value, 80))}" if value != entry.example else f"{entry.option} {value}"


def _for_command(arguments: list[str], guess: str) -> str:
    first = arguments[0] if arguments else ""
    if first == "help":
        return "for help: " + " ".join(["fpsgen", *map(show, arguments[1:2]), "--help"])
    if guess:
        return f"did you mean {guess}"
    if " " in first or not first.isascii():
        return f'to make a video: fpsgen generate "{show(first, 60)}"'
    return _list("fpsgen")


def _list(line: str) -> str:
    return f"{line} --help lists what there is"
