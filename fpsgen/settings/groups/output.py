"""Where results go and what is said meanwhile."""

from __future__ import annotations

from functools import partial

from fpsgen.settings import parsers as parse
from fpsgen.settings.setting import ANYWHERE, EVERY, MADE, Setting, on_off

OUTPUT = "Output"
_on_off = partial(on_off, group=OUTPUT)

ENTRIES = (
    Setting(
        "output",
        parse.named("a folder, or a file name ending in .mp4, .gif, .webp or .png"),
        "Folder, or file: .mp4 .gif .webp .png, {slug}-{n}.mp4",
        group=OUTPUT,
        example="cat.mp4",
        metavar="PATH",
        short="-o",
        unset="outputs/",
        commands=(*MADE, "replay", "compare"),
        layers=ANYWHERE,
        complete="files",
        mistaken_for=("out", "outdir", "output-dir", "output-path", "save-file", "file"),
    ),
    _on_off(
        "overwrite",
        "Replace files that exist.",
        commands=(*MADE, "replay", "compare"),
        mistaken_for=("force", "replace", "y"),
    ),
    _on_off(
        "metadata",
        "The recipe in the MP4 and a JSON file beside it.",
        default=True,
        commands=MADE,
        layers=ANYWHERE,
    ),
    _on_off("video", "The side-by-side video.", default=True, commands=("compare",)),
    _on_off("json", "One JSON object on stdout.", commands=EVERY),
    _on_off("quiet", "Results alone, no progress.", short="-q", commands=EVERY, mistaken_for=("silent",)),
    _on_off(
        "dry_run",
        "Show every setting and what it would take; make nothing.",
        commands=MADE,
        mistaken_for=("simulate", "plan"),
    ),
)
