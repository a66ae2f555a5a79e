"""The two streams. stdout carries results and nothing else; everything that speaks to a person goes to stderr.

Text that came from outside is written as it is, never as markup, with its control characters made visible.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import traceback as tb
import warnings as py_warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from fpsgen.errors import DISK, FpsgenError
from fpsgen.text import show

SCHEMA = "fpsgen/1"


class Messages:
    """stderr, such that work goes on where nobody reads it or its disk is full; what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        pass


class Results(Messages):
    """stdout, such that work goes on where its reader has gone, and ends with exit 7 where results cannot be kept.

    Raises FpsgenError DISK from write and flush, once; what comes after it is dropped.
    """

    def _failed(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            what = f"standard output cannot be written: {error.strerror}"
            raise FpsgenError(what, "send it elsewhere; files that were written are there", DISK) from error


@contextmanager
def safe_streams() -> Iterator[None]:
    """Both streams are safe to write to within the block: closed ones swallow, characters that they lack are escaped,
    stdout is Results, stderr Messages. A COLUMNS that is no width of a terminal does not count.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not re.fullmatch("[1-9][0-9]{1,3}", os.environ.get("COLUMNS", "80")):  # 0, as some containers set it
        del os.environ["COLUMNS"]
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Results(before[0]), Messages(before[1])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def can_draw() -> bool:
    """Whether progress may move: stderr is a terminal that can, and nobody asked for plain lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def at_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def debugging(flag: bool) -> bool:
    """Whether tracebacks and the libraries' own messages are wanted: --debug or FPSGEN_DEBUG=1."""
    return flag or os.environ.get("FPSGEN_DEBUG", "").lower() in ("1", "true", "yes", "on")


def one_line(text: str, limit: int = 300) -> str:
    """Foreign text for a message, see fpsgen.text.show."""
    return show(text, limit).rstrip()


def note(text: str) -> None:
    """One line on stderr."""
    print(one_line(text, 2000), file=sys.stderr, flush=True)


def ask(question: str) -> bool:
    """Ask a person at the terminal; only "y" and "yes" agree, the end of input does not."""
    print(f"{one_line(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    return answer.strip().lower() in ("y", "yes")


def warning(text: str) -> None:
    """A warning on stderr."""
    _labelled("warning:", text, "33")


def error(problem: FpsgenError) -> None:
    """The two lines of an error on stderr."""
    _labelled("error:", problem.message, "1;31")
    _labelled("fix:", problem.remedy, "1;32")


def traceback() -> None:
    """The traceback of the exception being handled, on stderr (--debug)."""
    tb.print_exc()


def print_json(
    command: str,
    results: list[dict[str, Any]] | None = None,
    warnings: list[str] | None = None,
    error: FpsgenError | None = None,
) -> None:
    """The one JSON object that a command with --json writes to stdout."""
    failure = error and {"code": error.code, "message": error.message, "remedy": error.remedy}
    body = {
        "schema": SCHEMA,
        "ok": error is None,
        "command": command,
        "results": results or [],
        "warnings": warnings or [],
        "error": failure,
    }
    print(json.dumps(body, indent=2), flush=True)


def print_rows(
    command: str,
    rows: list[dict[str, Any]],
    settings: Any,
    table: Callable[[], list[str]],
    *paths: Path,
    warnings: list[str] | None = None,
) -> None:
    """What was measured: the JSON object with --json, else a table (not with --quiet) and the paths of files.

    settings: of a command with --json and --quiet.
    """
    if settings.json:
        print_json(command, rows, warnings)
        return
    if not settings.quiet:
        print("\n".join(table()))
    print(*paths, sep="\n", flush=True)


def quiet_libraries(debug: bool) -> None:
    """Stop the libraries' bars and chatter (before they are imported); what matters reaches people by our own lines."""
    if debug:
        return
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


@contextmanager
def library_warnings(warn: Callable[[str], None], debug: bool) -> Iterator[None]:
    """Python warnings of fpsgen's own modules go to `warn`; those of libraries are shown with --debug only."""

    def receive(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if os.path.dirname(os.path.dirname(__file__)) in filename:
            warn(one_line(str(message), 2000))
        elif debug:
            print(py_warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)

    with py_warnings.catch_warnings():
        py_warnings.simplefilter("always")  # `warn` says each once
        py_warnings.showwarning = receive
        yield


def _labelled(label: str, text: str, colour: str) -> None:
    label = f"\x1b[{colour}m{label}\x1b[0m" if _wants_colour() else label
    print(f"{label} {one_line(text, 2000)}", file=sys.stderr, flush=True)


def _wants_colour() -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
