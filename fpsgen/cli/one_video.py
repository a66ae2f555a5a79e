"""One request becomes one video, with progress on stderr and the result on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    request: GenerateRequest, settings: Settings, notes: tuple[str, ...], command: str, made_on: str | None = None
) -> None:
    """Make the video and print its path, or the JSON object. Raises as pipeline.run.run.

    notes: warnings that came up before. made_on: the device that a replayed video was made on.
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
        if made_on not in (None, result.recipe["device"]):
            timing.warn(f"it was made on {show(made_on)}, and now on {result.recipe['device']}")
        events.note("saved", summary(result.report))
    if settings.json:
        console.print_json(command, [result.as_json()], timing.warnings)
    else:
        print(result.path, flush=True)


def capture_of(settings: Settings) -> Capture | None:
    """What --capture asks for. Raises FpsgenError USAGE for its options alone."""
    if settings.capture is None:
        if settings.capture_layers or settings.capture_steps:
            raise FpsgenError("--capture-layers and --capture-steps need --capture", "add --capture FOLDER", USAGE)
        return None
    from fpsgen.pipeline.capture import Capture

    return Capture(Path(settings.capture), settings.capture_layers, settings.capture_steps, settings.overwrite)
