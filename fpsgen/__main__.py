"""`fpsgen` and `python -m fpsgen`."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from fpsgen.errors import ENVIRONMENT, INTERRUPTED


def main() -> None:
    """Run the command line and exit with its code."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", spin_count())
    try:
        run, unfinished = _imported()
        code = run()
        if unfinished():
            os._exit(code)
        if "torch" in sys.modules:
            _leave(code)
    except KeyboardInterrupt:  # before or after the part of `run` that speaks of it
        code = INTERRUPTED
    if code == INTERRUPTED:  # Python ends `python -m` by the signal itself if the exception passed through an exec()
        _leave(code)
    sys.exit(code)


def _imported() -> tuple[Callable[[], int], Callable[[], bool]]:
    """`run`, and whether threads are left that would keep the process. Ends it where a package is not installed."""
    try:
        from fpsgen.cli.app import run
        from fpsgen.signals import unfinished
    except ModuleNotFoundError as error:
        if (error.name or "fpsgen").partition(".")[0] == "fpsgen":
            raise
        what = f"fpsgen needs the package {error.name}, which {sys.executable} does not have"
        print(f"error: {what}\nfix: install fpsgen with what it needs: pip install . in its folder", file=sys.stderr)
        sys.exit(ENVIRONMENT)
    return run, unfinished


def spin_count() -> str:
    """How often a waiting thread of OpenMP, which reads this when torch is imported, looks before it sleeps.

    On an idle machine it should not sleep between two operations. On one that others use it must not burn the time of
    the thread that it waits for: nano's steps took 2 to 6 s with 20,000, and 1.4 s with 1,000 (0.28 and 0.41 s idle).
    """
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    return "1000" if busy else "20000"


def _leave(code: int) -> None:
    """End at once. Taking apart what the libraries made, object by object, takes a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
