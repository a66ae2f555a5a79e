"""The application: its commands, and the one place where errors and signals become two lines and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from fpsgen import __version__, errors
from fpsgen.cli import bench, console, models
from fpsgen.cli.batch import batch
from fpsgen.cli.compare import compare
from fpsgen.cli.doctor import doctor
from fpsgen.cli.generate import generate
from fpsgen.cli.info import info, replay
from fpsgen.errors import FpsgenError

app = typer.Typer(
    name="fpsgen",
    help="Make videos with Wan2.1, faster: FP8 attention that skips most of its tiles (FPSAttention).",
    epilog="Settings: flag > FPSGEN_* variable > ./fpsgen.toml > user config > the model's own.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(batch)
app.add_typer(bench.app)
app.add_typer(models.app)
for command in (info, replay, compare, doctor):
    app.command()(command)


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread, so that the cleaning up of every block runs."""


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"fpsgen {__version__}")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code. Errors are shown, never raised."""
    arguments = sys.argv[1:] if arguments is None else arguments
    bare = not arguments or arguments == [models.app.info.name]
    console.prepare_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        given = [*arguments, "--help"] if bare else arguments
        code = app(args=given, prog_name="fpsgen", standalone_mode=False) or errors.OK
        sys.stdout.flush()
        if code == errors.INTERRUPTED:  # typer turns KeyboardInterrupt into this code
            raise KeyboardInterrupt
        return errors.USAGE if bare else code
    except BrokenPipeError:  # whoever read our results has gone
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.OK
    except KeyboardInterrupt:
        console.note("cancelled; no unfinished file was left")
        return errors.INTERRUPTED
    except Terminated:
        console.note("terminated; no unfinished file was left")
        return errors.TERMINATED
    except Exception as error:
        problem = _explain(error, arguments)
        if console.debugging("--debug" in arguments):
            console.traceback()
    if "--json" in arguments:
        console.print_json(_command(arguments), error=problem)
    console.error(problem)
    return problem.code


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _command(arguments: list[str]) -> str:
    """The command that was meant, "" if none."""
    names = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
    names += [group.name or "" for group in app.registered_groups]
    return next((word for word in arguments if word in names), "")


def _explain(error: Exception, arguments: list[str]) -> FpsgenError:
    """Any exception as two lines and a code."""
    if isinstance(error, FpsgenError):
        return error
    if hasattr(error, "format_message"):  # typer's usage errors, under whatever name its version gives them
        return FpsgenError(*_usage(error, arguments), errors.USAGE)
    if isinstance(error, MemoryError):
        return FpsgenError("out of memory", "try a smaller --res or fewer --frames", errors.ENVIRONMENT)
    what = f"internal error: {type(error).__name__}: {console.one_line(str(error)) or 'no message'}"
    return FpsgenError(what, "run it again with --debug, and report what it prints", errors.INTERNAL)


def _usage(error: Exception, arguments: list[str]) -> tuple[str, str]:
    message = console.one_line(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
    message = message[:1].lower() + message[1:].rstrip(".")
    near = getattr(error, "possibilities", None)
    if near:
        return message.split(" (", 1)[0], f"did you mean {' or '.join(sorted(near))}?"
    message, _, guess = message.partition(" Did you mean ")
    if guess:
        return message.rstrip("."), f"did you mean {guess}"
    first = arguments[0]
    if "no such command" in message and (" " in first or not first.isascii()):
        return message, f'to make a video: fpsgen generate "{console.one_line(first)}"'
    command = " ".join(["fpsgen", *filter(None, [_command(arguments)])])
    if message.startswith("missing argument"):
        missing = message.removeprefix("missing argument").strip(" '")
        return f"{command} needs {missing}", f"{command} --help says what that is"
    if "unexpected extra argument" in message and command == "fpsgen generate":
        return message, 'put the whole prompt in quotes: fpsgen generate "a cat surfing"'
    return message, f"{command} --help lists what there is"
