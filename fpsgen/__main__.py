"""`fpsgen` and `python -m fpsgen`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads that wait must not burn the cores of a busy machine for long, and on an idle one must not sleep at once:
    # passive waiting takes twice the time there. OpenMP reads this when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        from fpsgen.cli.app import run
        from fpsgen.signals import unfinished

        code = run()
        if unfinished():
            os._exit(code)
    except KeyboardInterrupt:  # before or after the part of `run` that speaks of it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
