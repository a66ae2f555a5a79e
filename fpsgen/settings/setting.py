"""What one setting is. The settings are in groups/, the table of all of them is in table.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fpsgen.settings.parsers import Parser, switch

LINE, FILE, ENVIRONMENT = "line", "file", "environment"  # a line of a prompt file, fpsgen.toml, FPSGEN_<NAME>
ANYWHERE = (LINE, FILE, ENVIRONMENT)

# Commands: that make videos, that measure them too, that plan one, all that take settings.
MADE = ("generate", "batch")
WHOLE = (*MADE, "bench", "evaluate")  # whole videos, accelerated as asked
PLANNED = (*WHOLE, "bench steps", "bench waterfall")
EVERY = (*PLANNED, "bench kernel", "replay", "compare", "info", "doctor", "models")


@dataclass(frozen=True)
class Setting:
    """One setting: everything that options, files, variables, recipes, job keys, help and --dry-run know of it.

    name: key of files and lines, FPSGEN_<NAME>, and --<name> unless `flag` says otherwise.
    help: one short line. example: a value that parses.
    default: the value where nobody sets it; None with model_default takes that attribute of the ModelSpec.
    unset: what help calls the default where its value does not say it ("drawn"); unset_in: in a command where that
    differs.
    commands: those that take the option. layers: where else it may be set.
    recipe: written into recipes and read back by replay. key: part of a job's key, so that another value is another
    video. becomes: names in a recipe or plan of what it is turned into ("seconds" becomes "frames").
    complete: what shells offer, where the parser's names do not say it: the values, or the name of a list that only
    the command line knows ("models").
    mistaken_for: other words that people try for it.
    """

    name: str
    parser: Parser
    help: str
    group: str
    example: str
    metavar: str = ""
    flag: str = ""
    short: str = ""
    default: Any = None
    model_default: str = ""
    unset: str = ""
    unset_in: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    recipe: bool = False
    key: bool = False
    becomes: tuple[str, ...] = ()
    complete: tuple[str, ...] | str = ()
    mistaken_for: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """Its long option, such as --dry-run."""
        return self.flag or "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"FPSGEN_{self.name.upper()}"

    @property
    def is_switch(self) -> bool:
        """On or off: the option takes no value."""
        return self.parser is switch

    def default_text(self, command: str = "") -> str:
        """What help says of the default in a command; empty for what is off or not set."""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        text = ",".join("on" if v is True else str(v) for v in values if v is not None and v is not False)
        return self.unset_in.get(command) or self.unset or text

    def read(self, value: object) -> Any:
        """The value of what a person, a file or a recipe says. Raises ValueError for what does not suit."""
        if isinstance(value, bool):
            return self.parser.read(str(value).lower())
        if isinstance(value, str):
            return self.parser.read(value)
        if isinstance(value, int | float):
            return self.parser.read(repr(value))
        raise ValueError


def decides_video(name: str, parser: Parser, help: str, **given: Any) -> Setting:
    """A setting that decides what the video looks like: in every layer, in recipes and in job keys."""
    return Setting(name, parser, help, **{"commands": PLANNED, "layers": ANYWHERE, "recipe": True, "key": True} | given)


def on_off(name: str, help: str, **given: Any) -> Setting:
    """A switch that is off unless `given` says otherwise."""
    return Setting(name, switch, help, **{"example": "true", "default": False} | given)
