"""torch.compile(transformer, fullgraph=True) is refused by name.

A forward chooses its plan by the noise level, which is a number that changes from step to step: compiled into one
graph, it would compile that graph again for every step. Blocks compiled with fullgraph=True have no such part, and a
transformer compiled without it breaks its graph there.
"""

from __future__ import annotations

import torch
from torch._dynamo.exc import Unsupported
from torch._guards import TracingContext

from fpsgen.errors import USAGE, FpsgenError


class OneGraphError(FpsgenError, Unsupported):
    """Breaks the graph where that may be done. Under fullgraph=True it is what people see: two lines."""

    def __init__(self) -> None:
        super().__init__(
            "torch.compile(transformer, fullgraph=True) does not go with fpsgen.apply, which picks a plan at each step",
            "compile the blocks instead: transformer.compile_repeated_blocks(fullgraph=True)",
            USAGE,
        )

    def __reduce__(self) -> tuple:
        return type(self), ()


@torch.compiler.assume_constant_result
def break_graph() -> None:
    """Called while torch.compile traces: raises OneGraphError. Called in eager code, between two graphs: nothing."""
    if TracingContext.try_get() is not None:
        raise OneGraphError
