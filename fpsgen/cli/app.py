"""The application: its commands, and the one place where errors and signals become two lines and an exit code."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from fpsgen import __version__, errors
from fpsgen.cli import (
    batch,
    bench,
    compare,
    console,
    doctor,
    evaluate,
    generate,
    info,
    models,
    options,
    report,
    train,
    train_export,
    train_prep,
)
from fpsgen.cli.usage import explain_usage
from fpsgen.errors import FpsgenError
from fpsgen.files import absolute, system_error
from fpsgen.signals import Terminated, stoppable
from fpsgen.text import show

app = options.group(
    "fpsgen",
    'fpsgen generate "a cat surfing" --res 720p',
    "fpsgen batch prompts/nano.txt",
    "fpsgen bench --compare bf16",
    "fpsgen doctor",
    "Settings: flag > FPSGEN_* variable > ./fpsgen.toml > user config (FPSGEN_CONFIG) > the model's own. "
    "FPSGEN_DEBUG=1 shows tracebacks.",
    help="Make videos with Wan2.1, faster: FP8 attention that skips most of its tiles (FPSAttention).",
)
app.command(cls=options.Command, epilog=generate.EXAMPLES)(generate.generate)
app.command(cls=options.Command, epilog=batch.EXAMPLES)(batch.batch)
app.add_typer(bench.app)
app.command(cls=options.Command, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
train.app.command("export", cls=options.Command, epilog=train_export.EXAMPLES)(train_export.export)
train.app.command("prep", cls=options.Command, epilog=train_prep.EXAMPLES)(train_prep.prep)
app.add_typer(train.app)
app.add_typer(models.app)
app.command(cls=options.Command, epilog=info.INFO_EXAMPLES)(info.info)
app.command(cls=options.Command, epilog=info.REPLAY_EXAMPLES)(info.replay)
app.command(cls=options.Command, epilog=compare.EXAMPLES)(compare.compare)
app.command(cls=options.Command, epilog=report.EXAMPLES)(report.report)
app.command(cls=options.Command, epilog=doctor.EXAMPLES)(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"fpsgen {__version__}")
        raise typer.Exit
    if sys.flags.optimize > 1:
        what = "Python runs without docstrings (-OO, PYTHONOPTIMIZE=2), which transformers reads"
        raise FpsgenError(what, "run it without that; -O is fine", errors.ENVIRONMENT)
    absolute(".")  # where the working folder was removed, torch's libraries end the process


def run(arguments: list[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code. Errors are shown, never raised."""
    arguments = sys.argv[1:] if arguments is None else arguments
    bare = not arguments or arguments == [models.app.info.name]
    with console.safe_streams(), stoppable() as stop:
        try:
            given = [*arguments, "--help"] if bare else arguments
            code = app(args=given, prog_name="fpsgen", standalone_mode=False) or errors.OK
            sys.stdout.flush()
            stop.check()  # typer turns KeyboardInterrupt into a code
            if code == errors.INTERRUPTED:
                raise KeyboardInterrupt
            return errors.USAGE if bare else code
        except (KeyboardInterrupt, Terminated):
            by_term = stop.received == signal.SIGTERM
            console.note(f"{'terminated' if by_term else 'cancelled'}; no unfinished file was left")
            return errors.TERMINATED if by_term else errors.INTERRUPTED
        except Exception as error:
            problem = _explain(error, arguments)
            if console.debugging("--debug" in arguments):
                console.traceback()
        with suppress(FpsgenError):  # stdout may be what failed
            if "--json" in arguments:
                console.print_json(_command(arguments), error=problem)
        console.error(problem)
        return problem.code


def _command(arguments: list[str]) -> str:
    """The command that was meant, with its subcommand ("models pull"); "" if none."""
    names: dict[str, list[str]] = {_name(command): [] for command in app.registered_commands}
    for group in app.registered_groups:
        inner = group.typer_instance
        if inner is not None:
            names[inner.info.name or ""] = [_name(command) for command in inner.registered_commands]
    first = next((index for index, word in enumerate(arguments) if word in names), None)
    if first is None:
        return ""
    second = next((word for word in arguments[first + 1 :] if word in names[arguments[first]]), None)
    return " ".join(filter(None, (arguments[first], second)))


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or getattr(command.callback, "__name__", "")


def _explain(error: Exception, arguments: list[str]) -> FpsgenError:
    """Any exception as two lines and a code."""
    if isinstance(error, FpsgenError):
        return error
    if hasattr(error, "format_message"):  # typer's usage errors, under whatever name its version gives them
        return explain_usage(error, arguments, _command(arguments))
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        return FpsgenError("out of memory", "try a smaller --res or fewer --frames", errors.ENVIRONMENT)
    found = system_error(error)
    if found is not None:
        return found
    what = f"internal error: {type(error).__name__}: {show(error, 300) or 'no message'}"
    return FpsgenError(what, "run it again with FPSGEN_DEBUG=1 set, and report what it prints", errors.INTERNAL)
