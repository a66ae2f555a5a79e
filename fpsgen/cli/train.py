"""`fpsgen train`: make a model expect FPSAttention, from prompts or videos, and export it with its schedule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fpsgen.cli import console, options, progress
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.gather import gather
from fpsgen.text import plural


class _RunOrCommand(options.Group):
    """A group whose first word is a run's file, unless it is the name of one of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            return super().parse_args(ctx, ["", *args])  # no run's file
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Usage lines of its commands (whose context asks) have no run's file."""
        params = super().get_params(ctx)
        return params if ctx.command is self else [param for param in params if param.param_type_name != "argument"]


app = options.group(
    "train",
    "fpsgen train --preset nano-demo",
    "fpsgen train run.toml -o runs/mine",
    "torchrun --nproc-per-node 8 -m fpsgen train run.toml",
    "A run that was stopped goes on with the same line.",
    cls=_RunOrCommand,
)


class _Steps:
    """Passes steps on to a Timing. A stage of this name begins with the first of them."""

    def __init__(self, timing: Any, name: str) -> None:
        self.timing, self.name, self.started = timing, name, False

    def step(self, index: int, total: int, note: str) -> None:
        if not self.started:
            self.timing.events.stage_start(self.name)
            self.started = True
        self.timing.step(index, total, note)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    config: Annotated[str | None, options.argument("FILE", "A run as TOML.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="A run that comes with fpsgen: nano-demo, wan-1.3b, wan-1.3b-lora, wan-14b-lora, wan-1.3b-flow.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", rich_help_panel="Output", help="The run's folder. \\[runs/NAME]"),
    ] = None,
    device: options.Device = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model to expect FPSAttention; prepare what it is trained on; export it.

    A run makes the teacher's pairs, trains, exports the model and evaluates it. stdout: the folder of the trained
    model. Exit codes: 2 usage, 4 input file, 5 model, 6 machine, 7 disk, 9 loss not finite or rising, 11 folder in use.
    """
    if context.invoked_subcommand:
        return
    from fpsgen.train import config as runs

    if (config is None) == (preset is None):
        raise FpsgenError("give a run's file or --preset", "for example fpsgen train --preset nano-demo", USAGE)
    where = gather({"device": device}).device
    run = runs.preset(preset) if preset is not None else runs.read_config(Path(str(config)))
    folder = Path(output) if output else Path("runs") / run.name

    from fpsgen.pipeline.events import Timing

    console.quiet_libraries(False)
    first = _first_process()
    with progress.choose(bool(quiet) or not first) as events:
        timing = Timing(events)
        with timing.stage("import"):
            from fpsgen.cli.train_videos import Validation, evaluate_run
            from fpsgen.pipeline.loaded_model import choose_device
            from fpsgen.train.run import train as train_run
        events.note("run", f"{run.name}: {plural(run.steps, 'step')} of {run.batch}, in {folder}")
        with console.library_warnings(timing.warn, False), timing.stage("train"):
            steps = _Steps(timing, "pairs"), _Steps(timing, "train")
            result = train_run(run, folder, choose_device(where), *steps, events.note, Validation(run, where, timing))
        if not first:
            return
        for line in _error_lines(result.report):
            events.note("held-out", line)
        rows, page = evaluate_run(run, result.model, folder / "evaluation", where, timing)
    from fpsgen.report.evaluate import summarize, table

    if as_json:
        found = {"model": str(result.model), "page": str(page), "evaluation": summarize(rows)}
        console.print_json("train", [result.report | found])
        return
    if not quiet:
        print("\n".join(table(rows)), file=sys.stderr)
    print(result.model, flush=True)


def _first_process() -> bool:
    """Whether torchrun started this process as the one that talks, or did not start it."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _error_lines(report: dict[str, Any]) -> list[str]:
    errors = report["held_out_error"]
    return [
        f"error of the velocity, {name}: {before:.4g} before, {errors['after'][name]:.4g} after"
        for name, before in sorted(errors["before"].items())
    ]
