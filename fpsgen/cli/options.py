"""The options of the commands that make videos. All are read as text; fpsgen/config.py parses every layer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from fpsgen.config import DTYPES, METHODS, PARSERS

_VIDEO, _QUALITY, _SPEED, _OUTPUT, _MACHINE = "Video", "Quality", "Acceleration", "Output", "Machine"


def _text(
    *names: str, panel: str, metavar: str, help: str, values: Callable[[], Iterable[str]] = tuple
) -> typer.models.OptionInfo:
    """values: what shell completion offers."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    help = help.replace("[", "\\[")
    return typer.Option(
        *names, rich_help_panel=panel, metavar=metavar, help=help, show_default=False, autocompletion=complete
    )


def _models() -> list[str]:
    from fpsgen.models.catalog.registry import AUTO, models

    return [AUTO, *(spec.name for spec in models())]


def _sizes() -> list[str]:
    from fpsgen.models.catalog.registry import shipped

    return list(dict.fromkeys(size for spec in shipped() for size in spec.resolutions))


def _schedules() -> list[str]:
    from fpsgen.attention.schedule import PRESETS

    return list(PRESETS)


def switch(*names: str, panel: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(*names, rich_help_panel=panel, metavar="", help=help, show_default=False)


def flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's parameters those that are settings, for config.gather; switches that are off were not given."""
    found = {key: value for key, value in given.items() if key in PARSERS}
    return {**found, "strict": given["strict"] or None, "metadata": False if given["no_metadata"] else None}


Prompt = Annotated[
    str | None, typer.Argument(help='What the video shows, in quotes: "a cat surfing".', show_default=False)
]
Prompts = Annotated[
    str | None,
    _text("--prompts", panel=_VIDEO, metavar="FILE", help="Many videos, as fpsgen batch FILE makes them."),
]
Model = Annotated[
    str | None,
    _text(
        "--model",
        "-m",
        panel=_VIDEO,
        metavar="NAME",
        values=_models,
        help="auto, nano, wan2.1-1.3b, wan2.1-14b, hub id or folder.",
    ),
]
Res = Annotated[
    str | None, _text("--res", panel=_VIDEO, metavar="SIZE", values=_sizes, help="480p, 720p or WIDTHxHEIGHT.")
]
Aspect = Annotated[
    str | None,
    _text(
        "--aspect",
        panel=_VIDEO,
        metavar="W:H",
        values=lambda: ("16:9", "9:16", "1:1", "4:3", "3:4"),
        help="16:9, 9:16, 1:1, 4:3, 3:4 ... at that size.",
    ),
]
Frames = Annotated[str | None, _text("--frames", panel=_VIDEO, metavar="N", help="Number of frames, 4n+1.")]
Seconds = Annotated[
    str | None, _text("--seconds", panel=_VIDEO, metavar="S", help="Length instead of --frames, to the nearest 4n+1.")
]
Fps = Annotated[str | None, _text("--fps", panel=_VIDEO, metavar="N", help="Frames a second of the file.")]
Steps = Annotated[str | None, _text("--steps", panel=_QUALITY, metavar="N", help="Denoising steps.")]
Guidance = Annotated[
    str | None, _text("--guidance", panel=_QUALITY, metavar="X", help="Pull towards the prompt; 1 and less: none.")
]
Shift = Annotated[
    str | None, _text("--shift", panel=_QUALITY, metavar="X", help="Flow shift; larger: more steps at high noise.")
]
Negative = Annotated[
    str | None, _text("--negative", panel=_QUALITY, metavar="TEXT", help='What to avoid; "" for nothing.')
]
Seed = Annotated[str | None, _text("--seed", panel=_QUALITY, metavar="N", help="Same seed, same video. [drawn]")]
Method = Annotated[
    str | None,
    _text(
        "--method", panel=_SPEED, metavar="NAME", values=lambda: METHODS, help=f"{', '.join(METHODS)}. [as scheduled]"
    ),
]
Schedule = Annotated[
    str | None,
    _text(
        "--schedule",
        panel=_SPEED,
        metavar="NAME",
        values=_schedules,
        help="safe, balanced, paper or a file. [model's own, or safe]",
    ),
]
Strict = Annotated[bool, switch("--strict", panel=_SPEED, help="Fail where anything falls back (exit 9).")]
Output = Annotated[
    str | None,
    _text("--output", "-o", panel=_OUTPUT, metavar="PATH", help="An .mp4 file or a folder. [outputs/]"),
]
Folder = Annotated[
    str | None, _text("--output", "-o", panel=_OUTPUT, metavar="FOLDER", help="Where the videos go. [outputs/]")
]
Overwrite = Annotated[bool, switch("--overwrite", panel=_OUTPUT, help="Replace the file if it exists.")]
NoMetadata = Annotated[
    bool, switch("--no-metadata", panel=_OUTPUT, help="No recipe in the MP4 and no JSON file beside it.")
]
Json = Annotated[bool, switch("--json", panel=_OUTPUT, help="One JSON object on stdout.")]
Quiet = Annotated[bool, switch("--quiet", "-q", panel=_OUTPUT, help="Only the path.")]
DryRun = Annotated[bool, switch("--dry-run", panel=_OUTPUT, help="Show every setting and where it is from; stop.")]
Device = Annotated[
    str | None,
    _text(
        "--device",
        panel=_MACHINE,
        metavar="NAME",
        values=lambda: ("auto", "cpu", "cuda"),
        help="auto, cpu, cuda or cuda:N.",
    ),
]
Dtype = Annotated[
    str | None,
    _text("--dtype", panel=_MACHINE, metavar="NAME", values=lambda: DTYPES, help=f"{', '.join(DTYPES)}. [bf16 on GPU]"),
]
Debug = Annotated[bool, switch("--debug", panel=_MACHINE, help="Tracebacks, and the libraries' own messages.")]
