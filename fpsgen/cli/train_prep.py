"""`fpsgen train prep`: videos with captions to latents and text embeddings; or the teacher's pairs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fpsgen.cli import console, options, progress
from fpsgen.cli.options import annotation
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.gather import gather
from fpsgen.settings.parsers import real, whole
from fpsgen.settings.table import SETTINGS
from fpsgen.text import plural, show

EXAMPLES = options.examples(
    "fpsgen train prep clips/ -o data/clips -m wan2.1-1.3b --res 480p",
    "fpsgen train prep clips.csv -o data/clips --clips 4 --filter flow=0.05-3,duplicate=off",
    "fpsgen train prep --teacher run.toml -o runs/mine",
    "What was stopped goes on with the same line.",
)


def prep(
    data: Annotated[
        str | None,
        options.argument(
            "DATA", "Videos with captions: a folder, a .csv, a .jsonl, a .tar or a folder of them (WebDataset)."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="FILE", help="Instead of DATA: the teacher's pairs of a run (TOML)."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="As --teacher, of a run that comes with fpsgen.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            rich_help_panel="Output",
            help="The data's folder; with --teacher the run's. \\[data/NAME, runs/NAME]",
            autocompletion=options.complete_files,
        ),
    ] = None,
    model: annotation(SETTINGS["model"]) = None,
    res: annotation(SETTINGS["res"]) = None,
    aspect: annotation(SETTINGS["aspect"]) = None,
    frames: annotation(SETTINGS["frames"]) = None,
    seconds: annotation(SETTINGS["seconds"]) = None,
    fps: annotation(SETTINGS["fps"]) = None,
    clips: Annotated[
        str,
        typer.Option("--clips", metavar="N", rich_help_panel="Video", help="Clips of a video at most, from its start."),
    ] = "1",
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="NAME=X,...",
            rich_help_panel="Video",
            help="Thresholds of size, fps, bars, colour, flow, duplicate; or off. \\[flow=0.05-2,...]",
        ),
    ] = None,
    held_out: Annotated[
        str,
        typer.Option(
            "--held-out", metavar="SHARE", rich_help_panel="Video", help="Share of videos kept for validation."
        ),
    ] = "0.05",
    device: options.Device = None,
    pull: annotation(SETTINGS["pull"]) = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make latents and text embeddings of videos with captions; or the teacher's pairs of a run.

    stdout: what was kept and dropped, then the folder. Exit codes: 2 usage, 4 input, 5 model, 6 machine, 7 disk, 9 not
    finite, 11 folder in use.
    """
    values = {"DATA": data, "--teacher": teacher, "--preset": preset}
    sources = [name for name, value in values.items() if value is not None]
    if len(sources) != 1:
        what = f"{' and '.join(sources)} were given" if sources else "neither DATA nor --teacher nor --preset was given"
        raise FpsgenError(what, "give one of them, for example fpsgen train prep clips/ -m nano", USAGE)
    flags = {"model": model, "res": res, "aspect": aspect, "frames": frames, "seconds": seconds, "fps": fps}
    if data is None:
        wrong = next((name for name, value in flags.items() if value is not None), None)
        if wrong is not None:
            raise FpsgenError(f"--{wrong} is what the run says", "change it in the run's file", USAGE)
        found = _pairs(teacher, preset, output, device, quiet)
        lines = [f"{plural(found['pairs'], 'pair')} of {plural(found['prompts'], 'prompt')}"]
    else:
        settings = gather(flags | {"device": device, "pull": pull or None})
        found, lines = _videos(Path(data), output, settings, (clips, filter or "", held_out), quiet)
    if as_json:
        console.print_json("train prep", [found])
        return
    if not quiet:
        print("\n".join(lines))
    print(found["folder"], flush=True)


def _videos(
    data: Path, output: str | None, settings: Any, own: tuple[str, str, str], quiet: bool
) -> tuple[dict[str, Any], list[str]]:
    """(what data.json holds and the folder, the table)."""
    from fpsgen.cli.model_choice import choose_model
    from fpsgen.pipeline.size import resolve_frames, resolve_size
    from fpsgen.report.lines import amount
    from fpsgen.train.prep.filters import read_filters
    from fpsgen.train.prep.sources import find_sources
    from fpsgen.train.prep.summary import table

    clips, filters, held_out = own
    count = _number(whole(1, 100_000), "--clips", clips)
    share = _number(real(0, 0.5), "--held-out", held_out)
    thresholds = read_filters(filters)
    choice = choose_model(settings)
    spec, geometry = choice.spec, choice.geometry
    fps = settings.fps or spec.fps
    period = geometry.temporal * geometry.patch[0]
    frames = resolve_frames(settings.frames, settings.seconds, fps, spec.frames, period)
    default, named = (spec.width, spec.height), spec.resolutions
    width, height = resolve_size(settings.res, settings.aspect, default, named, spec.name, geometry.side)
    refused = geometry.refuses(width, height, frames)
    if refused:
        raise FpsgenError(refused, "choose another --res or --frames", USAGE)
    sources = find_sources(data)
    folder = Path(output) if output else Path("data") / (data.stem or "data")

    with progress.working(bool(quiet)) as (events, timing):
        with timing.stage("import"):
            from fpsgen.pipeline.loaded_model import choose_device
            from fpsgen.train.prep.run import prepare, sample_bytes
            from fpsgen.train.prep.videos import PrepConfig
        config = PrepConfig(width, height, frames, fps, count, share, thresholds)
        each = sample_bytes(choice, config)
        what = f"{len(sources)} videos, {frames} frames of {width}x{height} at {fps} fps, for {spec.name}"
        events.note("data", f"{what}; at most {amount(each * len(sources) * count)} in {folder}")
        with timing.stage("prepare"):
            found = prepare(sources, config, choice, folder, choose_device(settings.device), timing)
        if share and not found["held_out"]:
            timing.warn(f"no video is held out: fewer than {round(1 / share)} were kept")
    return found | {"folder": str(folder)}, table(found)


def _pairs(
    teacher: str | None, preset: str | None, output: str | None, device: str | None, quiet: bool
) -> dict[str, Any]:
    """How many pairs there are, and the run's folder."""
    from fpsgen.train import config as runs

    run = runs.preset(preset) if preset is not None else runs.read_config(Path(str(teacher)))
    if not run.uses_teacher or run.teacher != runs.STORED:
        why = "makes its pairs while it goes" if run.uses_teacher else "learns from its data alone"
        raise FpsgenError(f"run {run.name} {why}: there is nothing to prepare", "start it: fpsgen train", USAGE)
    folder = Path(output) if output else Path("runs") / run.name
    settings = gather({"device": device})
    with progress.working(bool(quiet)) as (events, timing):
        with timing.stage("import"):
            from fpsgen.pipeline.loaded_model import choose_device
            from fpsgen.train.teacher import prepare_pairs
        what = f"{len(run.prompts)} prompts, {run.teacher_steps} steps each"
        events.note("run", f"{run.name}: {what}, in {folder}")
        with timing.stage("pairs"):
            shards = prepare_pairs(run, folder, choose_device(settings.device), timing)
    return {"prompts": len(shards), "pairs": len(shards) * run.teacher_steps, "folder": str(folder)}


def _number(parser: Any, option: str, text: str) -> Any:
    try:
        return parser.read(text)
    except ValueError:
        what = f"{option} {show(text, 40)!r} is not {parser.wanted()}"
        raise FpsgenError(what, f"leave {option} out, or give such a number", USAGE) from None
