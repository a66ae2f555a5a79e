"""`fpsgen generate`: one prompt, one MP4, and a report of where the time went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fpsgen import config
from fpsgen.cli import console, options
from fpsgen.errors import USAGE, FpsgenError

if TYPE_CHECKING:
    from fpsgen.pipeline.request import GenerateRequest


def generate(
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    model: options.Model = None,
    res: options.Res = None,
    aspect: options.Aspect = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    shift: options.Shift = None,
    negative: options.Negative = None,
    seed: options.Seed = None,
    method: options.Method = None,
    schedule: options.Schedule = None,
    strict: options.Strict = False,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    debug: options.Debug = False,
) -> None:
    """Make one video from a prompt.

    stdout: the path. stderr: progress. Exit codes: 2 usage, 4 input file, 5 model, 6 machine, 7 disk, 9 bad video.
    """
    given = options.flags(locals())
    if prompts is not None:
        if prompt is not None:
            raise FpsgenError("a prompt and --prompts were both given", "give one of the two", USAGE)
        from fpsgen.cli.batch import make

        make(prompts, given, overwrite, as_json, quiet, dry_run, debug, "generate")
        return
    if prompt is None:
        raise FpsgenError("no prompt was given", 'for example fpsgen generate "a cat surfing"', USAGE)
    settings = config.gather(given)

    from fpsgen.pipeline.request import plan

    planned = plan(prompt, settings, overwrite)
    if dry_run:
        from fpsgen.cli import dry_run as dry

        dry.show(planned, (*settings.warnings, *planned.notes), as_json)
        return

    from fpsgen.cli import progress
    from fpsgen.pipeline.events import Timing

    request = planned.request
    debug = console.debugging(debug)
    console.quiet_libraries(debug)
    with progress.choose(quiet) as events:
        timing = Timing(events)
        for text in (*settings.warnings, *planned.notes):
            timing.warn(text)
        events.note("model", f"{request.model.name} ({planned.reason})")
        events.note("video", describe(request))
        with timing.stage("import"):
            from fpsgen.pipeline.generate import run
        with console.library_warnings(timing.warn, debug):
            result = run(request, timing)
        events.note("saved", summary(result.report))
    if as_json:
        console.print_json("generate", [result.as_json()], timing.warnings)
    else:
        print(result.path, flush=True)


def describe(request: GenerateRequest) -> str:
    """What is being made, on one line."""
    seconds = request.frames / request.fps
    size = f"{request.width}x{request.height}, {request.frames} frames ({seconds:.1f} s)"
    return f"{size}, {request.steps} steps, guidance {request.guidance:g}, shift {request.shift:g}, seed {request.seed}"


def summary(report: dict[str, Any]) -> str:
    """What it took, on one line."""
    memory = report["peak_memory"]
    known = {where: memory[key] for key, where in (("rss_bytes", "RAM"), ("cuda_bytes", "GPU")) if memory[key]}
    peak = ", ".join(f"{size / 1e9:.1f} GB {where}" for where, size in known.items())
    density = "" if report["density"] is None else f", attention density {report['density']:.2f}"
    return f"in {report['total_s']:.1f} s, peak {peak or 'unknown'}{density}"
