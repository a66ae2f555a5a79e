"""The list of commands and options in docs/commands.md, written from the commands themselves.

`python -m tools.commands` rewrites what stands between `<!-- commands -->` and `<!-- /commands -->`; with --check it
changes nothing and fails where they differ.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from fpsgen.cli.app import app
from tools.command_line import parser_of

_BLOCK = re.compile(r"(<!-- commands -->\n)(.*?)(<!-- /commands -->)", re.DOTALL)
_EVERYWHERE = ("help", "install_completion", "show_completion")


def render() -> str:
    """Markdown: a table of options for every command. Those that mean what they mean for the first are only named."""
    parts: list[str] = []
    first: set[str] = set()
    for name, command in _commands(typer.main.get_command(app), "fpsgen"):
        arguments = [item for item in command.params if item.param_type_name == "argument"]
        usage = " ".join([name, *(_word(item) for item in arguments)])
        text = " ".join((command.help or "").split("\n\n")[0].split())
        parts.append(f"**`{usage}`** {text}\n")
        rows = [_row(item) for item in command.params if item.param_type_name == "option"]
        rows = [row for row in rows if row]
        own = [row for row in rows if row not in first]
        if own:
            parts.append("\n".join(["| Option | |", "| --- | --- |", *own]) + "\n")
        if len(own) < len(rows):
            names = [re.findall(r"`--[a-z0-9-]+`", row)[0] for row in rows if row in first]
            parts.append(f"As above: {', '.join(names)}.\n")
        first |= set(rows)
    return "\n".join(parts)


def fill(text: str) -> str:
    """A document with its marked block brought up to date. Raises ValueError where it has none."""
    if not _BLOCK.search(text):
        raise ValueError("the markers <!-- commands --> and <!-- /commands --> are missing")
    return _BLOCK.sub(lambda match: f"{match[1]}{render()}{match[3]}", text)


def main(arguments: list[str] | None = None) -> int:
    """Fill or check docs/commands.md of a checkout; the exit code."""
    parser = parser_of("commands", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where it is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of the checkout")
    chosen = parser.parse_args(arguments)
    path = chosen.root / "docs" / "commands.md"
    old = path.read_text(encoding="utf-8")
    new = fill(old)
    if chosen.check:
        if new != old:
            print("docs/commands.md is out of date: run python -m tools.commands", file=sys.stderr)
        return int(new != old)
    path.write_text(new, encoding="utf-8")
    return 0


def _commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """(full name, command) of all that do something, in the order of the help."""
    children = getattr(command, "commands", {})
    own = [(name, command)] if not children or getattr(command, "invoke_without_command", False) else []
    own = [] if name == "fpsgen" else own
    return own + [found for key, child in children.items() for found in _commands(child, f"{name} {key}")]


def _word(argument: Any) -> str:
    word = (argument.metavar or argument.name.upper()) + "..." * (argument.nargs == -1)
    return word if argument.required else f"[{word}]"


def _row(option: Any) -> str:
    if option.name in _EVERYWHERE or option.hidden:
        return ""
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=lambda name: (len(name) > 2, name)))
    metavar = f" {option.metavar}" if option.metavar else ""
    text = (option.help or "").replace("\\[", "[").replace("|", "\\|")
    default = option.default
    shown = f" [{default}]" if isinstance(default, str | int | float) and not isinstance(default, bool) else ""
    return f"| {names}{metavar} | {text}{shown} |"


if __name__ == "__main__":
    sys.exit(main())
