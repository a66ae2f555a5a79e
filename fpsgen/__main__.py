"""`fpsgen` and `python -m fpsgen`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from fpsgen.cli.app import run

        code = run()
    except KeyboardInterrupt:  # before or after the part of `run` that speaks of it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
