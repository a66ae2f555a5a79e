"""`fpsgen bench`: what the acceleration is worth, in seconds and pictures. `fpsgen bench kernel`: attention alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from fpsgen.cli import console
from fpsgen.cli.options import Command, examples, group, takes_settings
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.files import make_folder, used_alone
from fpsgen.settings.gather import DEFAULT, Settings, gather
from fpsgen.settings.groups.measuring import SHAPES
from fpsgen.settings.parsers import method_names
from fpsgen.signals import interruptible

app = group(
    "bench",
    "fpsgen bench --compare bf16",
    "fpsgen bench --compare bf16,fp8,sta -m wan2.1-1.3b --res 480p --repeats 3",
    "fpsgen bench -m wan2.1-14b --res 720p --random-weights",
    "fpsgen bench kernel --shape 480p",
)
KERNEL_EXAMPLES = examples(
    "fpsgen bench kernel --shape 480p,720p --heads 12,40",
    "fpsgen bench kernel --shape nano --compare bf16,fps",
    'fpsgen generate "a cat surfing" --capture captures/cat && fpsgen bench kernel --captured captures/cat',
)


WATERFALL_EXAMPLES = examples(
    "fpsgen bench waterfall", "fpsgen bench waterfall -m wan2.1-1.3b --res 720p --random-weights --schedule paper"
)
STEPS_EXAMPLES = examples("fpsgen bench steps --compare fp8,sta", "fpsgen bench steps -m nano --schedule paper")


@app.callback(invoke_without_command=True)
@takes_settings("bench")
def bench(context: typer.Context, given: dict[str, Any]) -> None:
    """Measure fps against other methods: the same prompt, seed and noise through each.

    stdout: a table and the path of the HTML page. Rows are added to bench.jsonl in the folder.
    """
    if context.invoked_subcommand:
        return
    settings = gather(given)

    with measuring(settings) as (request, timing):
        with timing.stage("import"):
            from fpsgen.bench import end_to_end
        arguments = (request, settings.compare, settings.repeats, settings.random_weights, timing, command_line())
        rows = end_to_end.run(*arguments)
        path = end_to_end.save(rows, Path(settings.bench_output), request.output.path.parent)
    from fpsgen.report.bench import table

    console.print_rows("bench", rows, settings, lambda: table(rows), path, warnings=timing.warnings)


@app.command("kernel", cls=Command, epilog=KERNEL_EXAMPLES)
@takes_settings("bench kernel")
def kernel(given: dict[str, Any]) -> None:
    """Time attention alone, against SDPA, FlexAttention and, if installed, FlashAttention-3, SageAttention and
    comfy-kitchen; each result is checked.
    """
    settings = gather(given)
    random_alone = [name for name in ("shape", "heads", "batch") if settings.origin(name) != DEFAULT]
    if settings.captured is not None and random_alone:
        what = f"--captured brings its own shapes, but --{random_alone[0]} was given too"
        raise FpsgenError(what, "leave one of them out", USAGE)
    names = method_names() if settings.origin("compare") == DEFAULT else settings.compare
    from fpsgen.pipeline.memory import check_device

    check_device(settings.device)
    console.quiet_libraries(settings.debug)
    from fpsgen.bench import kernel as measured
    from fpsgen.bench.rows import append_rows
    from fpsgen.bench.shapes import Shape, captured_shapes
    from fpsgen.pipeline.loaded_model import choose_device
    from fpsgen.report.kernel import line, lines

    by_name: dict[Any, Any] = SHAPES
    if settings.captured is not None:
        shapes = captured_shapes(Path(settings.captured), settings.tile)
    else:
        shapes = [
            Shape(str(name), by_name.get(name, name), heads, 64 if name == "nano" else 128, batch, tile)
            for name in settings.shape
            for heads in settings.heads
            for batch in settings.batch
            for tile in settings.tile
        ]
    device = choose_device(settings.device)
    if device.type == "cpu":
        console.warning(
            "these are times of a CPU; the GPU kernels play no part, and a row of a large shape takes minutes"
        )
    path = make_folder(settings.bench_output) / "kernel.jsonl"  # before there is a row to lose
    rows = []
    arguments = (shapes, list(names), list(settings.density), settings.row_seconds, device, command_line())
    for row in each(measured.run(*arguments), device):
        rows.append(row)
        append_rows([row], path)
        if not settings.quiet:
            console.note(line(row))
    console.print_rows("bench kernel", rows, settings, lambda: lines(rows), path)


@app.command("steps", cls=Command, epilog=STEPS_EXAMPLES)
@takes_settings("bench steps")
def steps(given: dict[str, Any]) -> None:
    """Error of every denoising step against dense bf16, on the dense trajectory: cosine, MSE, SNR; rows and a chart."""
    with_chart("steps", gather(given), "compare")


@app.command("waterfall", cls=Command, epilog=WATERFALL_EXAMPLES)
@takes_settings("bench waterfall")
def waterfall(given: dict[str, Any]) -> None:
    """What each part is worth, added one by one: tile order, attention, FP8 linear layers, fused passes, decoder."""
    with_chart("waterfall", gather(given), "repeats", "random_weights")


def with_chart(name: str, settings: Settings, *taken: str) -> None:
    """Run `fpsgen bench NAME`: rows into NAME.jsonl, a chart beside them; print table and paths.

    bench/NAME.py measures: its run(request, ..., timing, command) gets the settings `taken` in between. report/NAME.py
    shows: table(rows), chart(rows).
    """
    with measuring(settings) as (request, timing):
        with timing.stage("import"):
            measured, shown = (import_module(f"fpsgen.{package}.{name}") for package in ("bench", "report"))
            from fpsgen.bench.rows import append_rows
            from fpsgen.files import write_text
        arguments = (request, *(getattr(settings, key) for key in taken), timing, command_line())
        rows = measured.run(*arguments)
        path = Path(settings.bench_output) / f"{name}.jsonl"
        append_rows(rows, path)
        chart = write_text(shown.chart(rows), path.with_suffix(".svg"), overwrite=True)
    command, warnings = f"bench {name}", timing.warnings
    console.print_rows(command, rows, settings, lambda: shown.table(rows), path, chart, warnings=warnings)


@contextmanager
def measuring(settings: Settings) -> Iterator[tuple[Any, Any]]:
    """The request that is measured and its Timing, with progress shown meanwhile. No other bench writes into the folder
    then. Raises FpsgenError as plan_bench, check_machine and used_alone do.
    """
    from fpsgen.bench.plan import plan_bench
    from fpsgen.cli import progress
    from fpsgen.cli.model_choice import choose_model
    from fpsgen.pipeline.memory import check_machine

    planned = plan_bench(settings, choose_model)
    check_machine(planned.request)
    warnings = (*settings.warnings, *planned.notes)
    alone = used_alone(make_folder(settings.bench_output))
    with alone, progress.working(settings.quiet, settings.debug, warnings) as (events, timing):
        events.note("model", f"{planned.request.model.spec.name} ({planned.request.model.reason})")
        yield planned.request, timing


def each(rows: Iterator[dict[str, Any]], device: Any) -> Iterator[dict[str, Any]]:
    """The same rows. On a CPU, where one call may take a minute, a signal ends the wait for the next at once."""
    while row := interruptible(lambda: next(rows, None)) if device.type == "cpu" else next(rows, None):
        yield row


def command_line() -> str:
    """The command as it was typed, for whoever reads the page later."""
    import shlex
    import sys

    return shlex.join(["fpsgen", *sys.argv[1:]])
