"""`fpsgen info` and `fpsgen replay`: what a video was made from, and the same video again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fpsgen.cli import console, options
from fpsgen.cli.options import examples, takes_settings
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.files import make_folder
from fpsgen.settings.gather import gather
from fpsgen.settings.table import SETTINGS
from fpsgen.text import plural, show

INFO_EXAMPLES = examples(
    "fpsgen info outputs/a-cat-surfing-7.mp4", "fpsgen info cat.mp4 --sheet cat.png", "fpsgen info cat.json --json"
)
REPLAY_EXAMPLES = examples("fpsgen replay outputs/a-cat-surfing-7.mp4", "fpsgen replay cat.mp4 -o again.mp4")

File = Annotated[str, options.argument("FILE", "A video that fpsgen made, or the JSON beside it.")]
Sheet = Annotated[
    str | None,
    options.option(
        "--sheet", metavar="PNG", help="Write a contact sheet of the video: 12 of its frames on one picture."
    ),
]
# settings of a recipe that are always shown; others where they are not the default
SHOWN = ("negative", "frames", "fps", "steps", "guidance", "shift", "seed", "method", "schedule", "dtype")
SHEET_FRAMES, SHEET_COLUMNS, SHEET_WIDTH = 12, 4, 320  # the last in pixels of a frame


def info(file: File, sheet: Sheet = None, overwrite: options.Overwrite = None, as_json: options.Json = False) -> None:
    """Show how a video was made, and where the time went."""
    from fpsgen.pipeline.replay import load_recipe

    recipe, report = load_recipe(Path(file))
    written = None if sheet is None else write_sheet(Path(file), sheet, bool(overwrite))
    if as_json:
        result = {"path": file, "recipe": recipe, "report": report}
        console.print_json("info", [result | ({} if written is None else {"sheet": str(written)})])
        return
    rows = recipe_rows(recipe) + (report_rows(report) if isinstance(report, dict) else [])
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{wide}}  {console.one_line(value, 2000)}".rstrip())
    if written is not None:
        print(written)


def write_sheet(video: Path, output: str, overwrite: bool) -> Path:
    """Some frames of a video, evenly spaced, on one picture. Raises FpsgenError USAGE, BAD_INPUT, DISK."""
    from fpsgen.pictures import PNG, sheet, write_png
    from fpsgen.pipeline.output import check_writable, taken_by
    from fpsgen.video import frames_of

    path = Path(output)
    if path.suffix.lower() != PNG:
        raise FpsgenError(f"--sheet {show(output)} does not end in {PNG}", "for example --sheet frames.png", USAGE)
    if video.suffix.lower() == ".json":
        raise FpsgenError(f"{show(video)} holds no frames", "name the video itself", USAGE)
    check_writable(path.parent, "--sheet")
    count = sum(1 for _ in frames_of(video))
    wanted = {round(index * (count - 1) / (SHEET_FRAMES - 1)) for index in range(SHEET_FRAMES)}
    frames = [frame for index, frame in enumerate(frames_of(video)) if index in wanted]
    make_folder(path.parent)
    try:
        return write_png(sheet(frames, SHEET_COLUMNS, SHEET_WIDTH), path, None, overwrite)
    except FileExistsError:
        raise taken_by(path) from None


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

    make_video(request, settings, tuple(differ), "replay", recipe)


def recipe_rows(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what made the video. Any JSON may stand in a recipe; what makes no sense is shown as it is."""
    from fpsgen.attention.schedule import AS_SCHEDULED

    get = recipe.get
    model = table(recipe, "model")
    rows = [("prompt", str(get("prompt"))), ("negative", str(get("negative")) or "(empty)")]
    rows.append(("model", f"{model.get('name')} ({model.get('source')}, {model.get('revision')})"))
    frames, fps = number(recipe, "frames"), number(recipe, "fps")
    seconds = f" ({frames / fps:.2f} s at {get('fps')} fps)" if frames and fps else ""
    held = get("frames")
    count = plural(held, "frame") if isinstance(held, int) else f"{held} frames"
    rows.append(("size", f"{get('width')}x{get('height')}, {count}{seconds}"))
    size = get("scaled_to")
    rows += [("scaled to", "x".join(map(str, size)))] if isinstance(size, list) else []
    rows += [(name, str(get(name))) for name in ("steps", "guidance", "shift", "seed", "method")]
    for entry in SETTINGS.values():
        if entry.recipe and entry.name not in SHOWN and get(entry.name) not in (None, entry.default, AS_SCHEDULED):
            rows.append((entry.option[2:], str(get(entry.name))))
    rows += schedule_rows(table(recipe, "schedule"))
    rows.append(("ran on", f"{get('device')}, {get('dtype')}, VAE {get('vae_dtype')}"))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in table(recipe, "versions").items())))
    return rows


def schedule_rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """The schedule in words: which profile at which noise levels."""
    from fpsgen.attention.schedule import Schedule
    from fpsgen.attention.windows import BLOCK_TILES

    try:
        schedule = Schedule.from_toml(entry["toml"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return [("schedule", f"{entry.get('name')} (not readable)")]
    rows = [("schedule", schedule.name + (" (weights trained with it)" if schedule.trained else ""))]
    profiles = {profile.name: profile for profile in schedule.profiles}
    for low, high, name in sorted(schedule.windows, reverse=True):
        profile = profiles[name]
        if profile.density is not None:
            how = f"density {profile.density:g}"
        elif profile.window == "all":
            how = "all tiles"
        else:
            sides = " x ".join("all" if side == 0 else str(side) for side in profile.window)
            how = f"window {sides} {'blocks' if profile.tile in BLOCK_TILES else 'tiles'}"
        tile = profile.tile if isinstance(profile.tile, str) else "x".join(map(str, profile.tile or ()))
        rows.append((f"  sigma {low:.3g} to {high:.3g}", f"{name}: {profile.method}, {how}, tile {tile}"))
    if schedule.fp8_linear:
        rows.append(("  FP8 linears", ", ".join(schedule.fp8_linear)))
    if schedule.dense_layers:
        rows.append(("  dense layers", ", ".join(map(str, schedule.dense_layers))))
    return rows


def report_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what it took."""
    times = table(report, "stages_s")
    stages = ", ".join(f"{name} {number(times, name):.1f}" for name in times)
    rows = [("made", str(report.get("created"))), ("took", f"{number(report, 'total_s'):.1f} s ({stages})")]
    memory = table(report, "peak_memory")
    known = {"RAM": number(memory, "rss_bytes"), "GPU": number(memory, "cuda_bytes")}
    rows.append(("peak memory", ", ".join(f"{size / 1e9:.1f} GB {where}" for where, size in known.items() if size)))
    attention, density = table(report, "attention"), number(report, "density")
    ran = _calls(table(attention, "kernels"))
    rows.append(("attention", f"{ran}; density {density:.2f}" if density else ran))
    components = table(attention, "components")
    rows += [(f"{name}s", _calls(table(components, name))) for name in components if name != "attention"]
    skipped, fallbacks = number(attention, "skipped_by_cache"), attention.get("fallbacks")
    rows += [("step cache", f"{skipped:.0f} calls of layers skipped")] if skipped else []
    rows += [("not as asked", _detail(row)) for row in (fallbacks if isinstance(fallbacks, list) else [])]
    warnings = report.get("warnings")
    return rows + [("warning", str(text)) for text in (warnings if isinstance(warnings, list) else [])]


def _calls(kernels: dict[str, Any]) -> str:
    return ", ".join(f"{name} {calls} calls" for name, calls in kernels.items())


def _detail(row: Any) -> str:
    return str(row.get("detail") if isinstance(row, dict) else row)


def table(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The table of that name; an empty one where something else stands there."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def number(values: dict[str, Any], name: str) -> float:
    """The number of that name; 0 where something else stands there."""
    value = values.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) >= 1e18:
        return 0.0
    return float(value)
