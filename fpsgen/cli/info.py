"""`fpsgen info` and `fpsgen replay`: what a video was made from, and the same video again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fpsgen.cli import console, options
from fpsgen.cli.options import examples, takes_settings
from fpsgen.settings.gather import gather

INFO_EXAMPLES = examples("fpsgen info outputs/a-cat-surfing-7.mp4", "fpsgen info cat.json --json")
REPLAY_EXAMPLES = examples("fpsgen replay outputs/a-cat-surfing-7.mp4", "fpsgen replay cat.mp4 -o again.mp4")

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="An MP4 that fpsgen made, or the JSON beside it.",
        show_default=False,
        autocompletion=options.complete_files,
    ),
]


def info(file: File, as_json: options.Json = False) -> None:
    """Show how a video was made, and where the time went."""
    from fpsgen.pipeline.replay import load_recipe

    recipe, report = load_recipe(Path(file))
    if as_json:
        console.print_json("info", [{"path": file, "recipe": recipe, "report": report}])
        return
    rows = recipe_rows(recipe) + (report_rows(report) if report else [])
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{wide}}  {console.one_line(value, 2000)}".rstrip())


@takes_settings("replay")
def replay(file: File, given: dict[str, Any]) -> None:
    """Make the same video again: the same bytes on the same machine and versions; what differs is named.

    stdout: the path. The original is never overwritten without --overwrite.
    """
    from fpsgen.pipeline.replay import load_recipe, request_from

    settings = gather(given)
    recipe, _ = load_recipe(Path(file))
    request, differ = request_from(recipe, settings)

    from fpsgen.cli.one_video import make_video

    make_video(request, settings, tuple(differ), "replay", str(recipe.get("device")))


def recipe_rows(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what made the video."""
    get = recipe.get
    model = get("model") or {}
    rows = [("prompt", str(get("prompt"))), ("negative", str(get("negative")) or "(empty)")]
    rows.append(("model", f"{model.get('name')} ({model.get('source')}, {model.get('revision')})"))
    seconds = f" ({get('frames', 0) / get('fps', 1):.2f} s at {get('fps')} fps)" if get("fps") else ""
    rows.append(("size", f"{get('width')}x{get('height')}, {get('frames')} frames{seconds}"))
    rows += [(name, str(get(name))) for name in ("steps", "guidance", "shift", "seed", "method")]
    rows += schedule_rows(get("schedule") or {})
    rows.append(("ran on", f"{get('device')}, {get('dtype')}, VAE {get('vae_dtype')}"))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in (get("versions") or {}).items())))
    return rows


def schedule_rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """The schedule in words: which profile at which noise levels."""
    from fpsgen.attention.schedule import Schedule

    try:
        schedule = Schedule.from_toml(entry["toml"])
    except (KeyError, TypeError, ValueError):
        return [("schedule", f"{entry.get('name')} (not readable)")]
    rows = [("schedule", schedule.name + (" (weights trained with it)" if schedule.trained else ""))]
    profiles = {profile.name: profile for profile in schedule.profiles}
    for low, high, name in sorted(schedule.windows, reverse=True):
        at = profiles[name]
        sides = ("all" if side == 0 else str(side) for side in at.window)
        how = "all tiles" if at.window == "all" else f"window {'x'.join(sides)} tiles"
        tile = at.tile if isinstance(at.tile, str) else "x".join(map(str, at.tile))
        rows.append((f"  sigma {low:.3g} to {high:.3g}", f"{name}: {at.method}, {how}, tile {tile}"))
    if schedule.dense_layers:
        rows.append(("  dense layers", ", ".join(map(str, schedule.dense_layers))))
    return rows


def report_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what it took."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.get("stages_s", {}).items())
    rows = [("made", str(report.get("created"))), ("took", f"{report.get('total_s', 0):.1f} s ({stages})")]
    memory = report.get("peak_memory", {})
    known = {"RAM": memory.get("rss_bytes"), "GPU": memory.get("cuda_bytes")}
    rows.append(("peak memory", ", ".join(f"{size / 1e9:.1f} GB {where}" for where, size in known.items() if size)))
    kernels = report.get("attention", {}).get("kernels", {})
    ran = ", ".join(f"{name} {calls} calls" for name, calls in kernels.items())
    density = report.get("density")
    rows.append(("attention", f"{ran}; density {density:.2f}" if density is not None else ran))
    rows += [("warning", str(text)) for text in report.get("warnings", [])]
    return rows
