"""One request becomes one video, with progress on stderr and the result on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen.cli import console, progress
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.pipeline.libraries import import_libraries
from fpsgen.pipeline.memory import check_machine
from fpsgen.report.lines import describe, summary
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.pipeline.capture import Capture
    from fpsgen.pipeline.request import GenerateRequest
    from fpsgen.settings.gather import Settings


def make_video(
    request: GenerateRequest,
    settings: Settings,
    notes: tuple[str, ...],
    command: str,
    before: dict[str, Any] | None = None,
) -> None:
    """Make the video and print its path, or the JSON object. Raises as pipeline.run.run.

    notes: warnings that came up before. before: the recipe of a video that is replayed.
    """
    capture = capture_of(settings)
    if capture is not None and request.model.pipeline is not None:  # before anything is loaded
        capture.check(request.model.pipeline.configs["transformer"]["num_layers"], request.sampling.steps)
    check_machine(request)
    with progress.working(settings.quiet, settings.debug, (*settings.warnings, *notes)) as (events, timing):
        events.note("model", f"{request.model.spec.name} ({request.model.reason})")
        events.note("video", describe(request))
        with timing.stage("import"):
            import_libraries()
        from fpsgen.pipeline.run import run

        result = run(request, timing, capture=capture)
        for text in () if before is None else _other_machine(before, result.recipe):
            timing.warn(text)
        events.note("saved", summary(result.report))
    if settings.json:
        console.print_json(command, [result.as_json()], timing.warnings)
    else:
        print(result.path, flush=True)


def _other_machine(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What the machine did another way than when the video was made, and that may show."""
    if before.get("device") != now["device"]:
        yield f"it was made on {show(before.get('device'))}, and now on {now['device']}"
    tiled = [bool(recipe.get("vae_tiles")) for recipe in (before, now)]
    if tiled[0] != tiled[1]:
        was, new = ("in blended tiles" if tiles else "whole" for tiles in tiled)
        yield f"its frames were decoded {was}, and now {new}: other memory was free"


def capture_of(settings: Settings) -> Capture | None:
    """What --capture asks for. Raises FpsgenError USAGE for its options alone, and where a step cache is on."""
    if settings.capture is None:
        if settings.capture_layers or settings.capture_steps:
            raise FpsgenError("--capture-layers and --capture-steps need --capture", "add --capture FOLDER", USAGE)
        return None
    if settings.cache != "none":
        what = f"--capture saves chosen steps, and --cache {settings.cache} may skip them"
        raise FpsgenError(what, "leave one of them out", USAGE)
    from fpsgen.pipeline.capture import Capture

    return Capture(Path(settings.capture), settings.capture_layers, settings.capture_steps, settings.overwrite)
