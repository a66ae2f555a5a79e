"""Command-line options from the table of settings. All are read as text; fpsgen/settings parses every layer alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from fpsgen.settings.setting import Setting
from fpsgen.settings.table import SETTINGS

CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Help:
    """Help as people read it: paragraphs are wrapped to the terminal alone, and switches and arguments, which say
    themselves what they are, have no type beside them.
    """

    def __init__(self, *args: Any, help: str | None = None, **more: Any) -> None:
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        super().__init__(*args, help=text or None, **more)  # pyright: ignore[reportCallIssue]

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)  # pyright: ignore[reportAttributeAccessIssue]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: None
        return params


class Command(_Help, TyperCommand): ...


class Group(_Help, TyperGroup): ...


def takes_settings(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command function an option for each setting that `command` takes.

    The function gets them as `given`: text as typed, True or False for switches, nothing for what was not given.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        entries = [entry for entry in SETTINGS.values() if command in entry.commands]
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "given"]

        @functools.wraps(function)
        def wrapper(**values: Any) -> None:
            given = {entry.name: values.pop(entry.name, None) for entry in entries}
            function(**values, given={name: value for name, value in given.items() if value is not None})

        kind = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(e.name, kind, default=None, annotation=annotation(e, command)) for e in entries]
        wrapper.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue]
            [parameter.replace(kind=kind) for parameter in own] + added
        )
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        return wrapper

    return decorate


def annotation(entry: Setting, command: str = "") -> Any:
    """The type of a command's parameter that is this setting's option."""
    names = [entry.option]
    if entry.is_switch and (entry.layers or entry.default):  # set elsewhere, or on by itself: it can be unset
        names = [f"{entry.option}/{entry.option.replace('--', '--no-', 1)}"]
    if entry.short:
        names.append(entry.short)
    default = entry.default_text(command)
    text = entry.help + (f" [{default}]" if default else "")
    option = typer.Option(
        *names,
        rich_help_panel=entry.group,
        metavar=entry.metavar,
        help=text.replace("[", "\\["),
        show_default=False,
        autocompletion=None if entry.is_switch else _completion(entry),
    )
    return Annotated[bool | None if entry.is_switch else str | None, option]


def examples(*lines: str) -> str:
    """The end of a command's help. Use it as `epilog`."""
    return "\n\n".join(["Examples:", *(line.replace("[", "\\[") for line in lines)])


def group(name: str, *lines: str, help: str | None = None, cls: type[Group] = Group) -> typer.Typer:
    """An application of several commands. lines: examples at the end of its help; help: where no callback has it."""
    shown: dict[str, Any] = {"epilog": examples(*lines), "context_settings": CONTEXT} | ({"help": help} if help else {})
    return typer.Typer(name=name, cls=cls, pretty_exceptions_enable=False, **shown)


def complete_models(incomplete: str) -> list[str]:
    """Names of models, and folders."""
    from fpsgen.models.catalog.registry import models
    from fpsgen.models.catalog.user_rows import AUTO

    return _starting([AUTO, *(spec.name for spec in models())], incomplete) + (
        _files(incomplete, ()) if incomplete else []
    )


def complete_files(incomplete: str) -> list[str]:
    """Files and folders that begin so."""
    return _files(incomplete, ())


def argument(metavar: str, help: str, complete: Callable[[str], list[str]] | None = complete_files) -> Any:
    """A command's argument. complete: what shells offer for it."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, autocompletion=complete)


def option(*names: str, metavar: str, help: str, group: str | None = None) -> Any:
    """A command's own option whose value is a file."""
    shown = {"rich_help_panel": group, "show_default": False, "autocompletion": complete_files}
    return typer.Option(*names, metavar=metavar, help=help.replace("[", "\\["), **shown)


def _files(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Folders, and files with one of `suffixes` (any, if none are named), that begin so."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder + "/" if "/" in incomplete else ".")
    try:
        found = sorted(path for path in place.iterdir() if path.name.startswith(start))
    except OSError:
        return []
    names = [
        path.name + "/" * path.is_dir() for path in found if path.is_dir() or not suffixes or path.suffix in suffixes
    ]
    return [f"{folder}/{name}" if "/" in incomplete else name for name in names if start or not name.startswith(".")]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _sizes(incomplete: str) -> list[str]:
    from fpsgen.models.catalog.registry import shipped

    return _starting(dict.fromkeys(size for spec in shipped() for size in spec.resolutions), incomplete)


def _schedules(incomplete: str) -> list[str]:
    from fpsgen.attention.presets import PRESETS

    return _starting(PRESETS, incomplete) + _files(incomplete, (".toml",))


_LISTS: dict[str, Callable[[str], list[str]]] = {
    "models": complete_models,
    "sizes": _sizes,
    "schedules": _schedules,
    "files": complete_files,
}


def _completion(entry: Setting) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        if isinstance(entry.complete, str):
            return _LISTS[entry.complete](incomplete)
        return _starting(entry.complete or entry.parser.names(), incomplete)

    return complete


Json = annotation(SETTINGS["json"])
Quiet = annotation(SETTINGS["quiet"])
Debug = annotation(SETTINGS["debug"])
Output = annotation(SETTINGS["output"])
Overwrite = annotation(SETTINGS["overwrite"])
Device = annotation(SETTINGS["device"])
