"""The one list of methods: schedules, command line, reports and bench read their names here. Imports no torch.

A method is one file of this folder and one entry below. Nothing else compares names: what a method does is asked of
the Method itself.
"""

from __future__ import annotations

from fpsgen.attention.methods import bf16, fp8, fps, sage, sparge, sta, svg
from fpsgen.attention.methods.base import Method, Precision, Selection

METHODS: dict[str, Method] = {entry.METHOD.name: entry.METHOD for entry in (bf16, fp8, sta, sage, sparge, svg, fps)}
OURS, BASELINE = fps.METHOD.name, bf16.METHOD.name  # what benches compare


def find_method(name: object) -> Method:
    """A method by name. Raises ValueError naming the choices."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method is {name!r}.\nGive one of {', '.join(METHODS)}.")
    return METHODS[name]


__all__ = ["BASELINE", "METHODS", "OURS", "Method", "Precision", "Selection", "find_method"]
