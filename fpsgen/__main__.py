"""`fpsgen` and `python -m fpsgen`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads that wait must not burn the cores of a busy machine. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
