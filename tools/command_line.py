"""The command line of a tool: --help, its arguments, and two lines where it needs a GPU and there is none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fpsgen.errors import ENVIRONMENT


def parser_of(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m tools.NAME`, described by the first line of its documentation."""
    return argparse.ArgumentParser(prog=f"python -m tools.{name}", description=(doc or "").split("\n")[0])


def parse_on_gpu(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, by default those of this process, where there is a GPU. Else raises SystemExit 6."""
    import torch

    found = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: there is no CUDA GPU\nfix: run this where there is one", file=sys.stderr)
        raise SystemExit(ENVIRONMENT)
    return found
