"""A generator without a model, for tests of what surrounds it: frames come from the seed, all else is the real code.

As a program: `python -m fake_generator LOG ARGUMENTS...` runs fpsgen with it. Each video that begins is a line in LOG.
FAKE_NOISE=1 makes pictures that fill a disk. Two controls: FAKE_FORGETS=1 does not look for what a killed run left, to
FAKE_DEAF=1 signals do not arrive.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

HEIGHT, WIDTH = 32, 48


def frames_of(request: Any) -> np.ndarray:
    """Soft pictures that differ by seed, uint8 [T, 32, 48, 3]."""
    rng = np.random.default_rng(request.sampling.seed)
    if os.environ.get("FAKE_NOISE"):
        return rng.integers(0, 255, (request.video.frames, 128, 128, 3), np.uint8)
    coarse = rng.integers(0, 255, (1, HEIGHT // 8, WIDTH // 8, 3))
    shown = coarse.repeat(8, 1).repeat(8, 2).repeat(request.video.frames, 0)
    return np.clip(shown + np.arange(request.video.frames)[:, None, None, None], 0, 255).astype(np.uint8)


def modules(log: Path | None) -> dict[str, ModuleType]:
    """Stand-ins of the two modules that need torch."""
    from fpsgen.pipeline.output import write_output, write_sidecar

    def run(request: Any, timing: Any, model: Any) -> Any:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{request.prompt.text}\n")
        if os.environ.get("FAKE_DEAF"):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        timing.step(0, 1, "")
        values = request.values()
        names = ("prompt", "seed", "frames", "fps", "steps", "shift")
        recipe = {"schema": "fpsgen.recipe/1"} | {name: values[name] for name in names}
        path = write_output(frames_of(request), request, recipe)
        if request.output.metadata:
            write_sidecar(path, recipe, {"total_s": 0.1, "warnings": timing.warnings}, request.output.overwrite)
        return SimpleNamespace(path=path)

    made, loaded = ModuleType("fpsgen.pipeline.run"), ModuleType("fpsgen.pipeline.loaded_model")
    made.run = run  # pyright: ignore[reportAttributeAccessIssue]
    loaded.load_model = lambda request, timing: "a model"  # pyright: ignore[reportAttributeAccessIssue]
    return {made.__name__: made, loaded.__name__: loaded}


def command(log: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """(command line, environment) of a process that runs fpsgen with it."""
    here = Path(__file__).resolve().parent
    env = {name: value for name, value in os.environ.items() if not name.startswith("FPSGEN_")}
    env |= {"PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "XDG_CONFIG_HOME": str(log.parent / "no-config")}
    return [sys.executable, "-m", "fake_generator", str(log), *arguments], env


if __name__ == "__main__":
    from fpsgen.__main__ import main

    if os.environ.get("FAKE_FORGETS"):
        from fpsgen.batch.ledger import Ledger

        Ledger.unfinished = lambda ledger, job: None  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules.update(modules(Path(sys.argv.pop(1))))
    main()
