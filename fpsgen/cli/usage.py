"""Usage errors in two lines: what is wrong, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from typing import Any

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.setting import Setting
from fpsgen.settings.table import SETTINGS
from fpsgen.text import show


def explain_usage(error: Any, arguments: list[str], command: str) -> FpsgenError:
    """The error for what typer could not parse. command: the one that was meant, "" if none."""
    message = show(error.format_message(), 300)
    message = message[:1].lower() + message[1:]
    message, _, guess = message.partition(" Did you mean ")
    message = message.split(" (Possible", 1)[0].rstrip(".")
    line = " ".join(filter(None, ("fpsgen", command)))
    option = re.match(r"no such option: (-+[^\s]+)", message)
    if option:
        return FpsgenError(f"{line} has no option {option[1]}", meant(option[1], command) or _list(line), USAGE)
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


def meant(option: str, command: str) -> str:
    """The remedy for an option that `command` does not have, "" if nothing comes near."""
    word = option.lstrip("-").split("=", 1)[0].lower().replace("_", "-")
    entries = [entry for entry in SETTINGS.values() if command in entry.commands]
    for entry in entries:
        if word in entry.mistaken_for:
            return f"did you mean {_example(entry)}?"
    names = {entry.option.lstrip("-"): _example(entry) for entry in entries}
    names |= {"help": "--help", "prompts": "--prompts FILE"} if command == "generate" else {"help": "--help"}
    near = difflib.get_close_matches(word[:80], names, 1, 0.6)
    return f"did you mean {names[near[0]]}?" if near else ""


def _example(entry: Setting) -> str:
    return entry.option if entry.is_switch else f"{entry.option} {entry.example}"


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
