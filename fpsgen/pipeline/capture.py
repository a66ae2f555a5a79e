"""The inputs of self-attention, saved from a generation: real q, k and v for `fpsgen bench kernel --captured`.

One safetensors file for each chosen step and layer, step0003-layer05.safetensors: q, k, v [L, H, D] as attention gets
them (q and k normed, with rotary embedding), tokens in raster order; of a step's first forward and sample, those with
the prompt. Its metadata names schema, token grid, step, sigma, layer, profile, model, prompt and seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fpsgen.attention.windows import Size3
from fpsgen.errors import BAD_INPUT, DISK, ENVIRONMENT, USAGE, FpsgenError
from fpsgen.files import atomic, make_folder, open_tensors, writing_tensors
from fpsgen.pipeline.output import check_writable
from fpsgen.text import show

SCHEMA = "fpsgen.capture/1"
NAMES = ("q", "k", "v")
_FILE = re.compile(r"step\d+-layer\d+\.safetensors")


@dataclass(frozen=True)
class Capture:
    """What to save. layers, steps: counted from 0; None is the first, the middle and the last."""

    folder: Path
    layers: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    overwrite: bool = False

    def start(self, layers: int, steps: int, metadata: Mapping[str, Any]) -> CaptureObserver:
        """The observer of one denoising loop. layers, steps: how many there are. metadata: kept in each file.

        Raises FpsgenError as `check`.
        """
        chosen = self.check(layers, steps)
        make_folder(self.folder)
        wanted = {(step, layer) for step in chosen[1] for layer in chosen[0]}
        return CaptureObserver(self, wanted, {name: str(value) for name, value in metadata.items()})

    def check(self, layers: int, steps: int) -> tuple[frozenset[int], frozenset[int]]:
        """The layers and steps to save, of so many. Raises FpsgenError USAGE for one that there is not, DISK where the
        folder cannot be written or holds captures.
        """
        chosen = []
        for what, asked, count in (("layer", self.layers, layers), ("step", self.steps, steps)):
            beyond = [number for number in asked or () if number >= count]
            if beyond:
                raise FpsgenError(
                    f"--capture-{what}s names {what} {beyond[0]}", f"give numbers from 0 to {count - 1}", USAGE
                )
            chosen.append(frozenset(asked or (0, count // 2, count - 1)))
        check_writable(self.folder, "--capture")
        if not self.overwrite and captured_files(self.folder):
            what = f"{show(self.folder)} holds captures already"
            raise FpsgenError(what, "name another folder with --capture, or add --overwrite", DISK)
        return chosen[0], chosen[1]


class CaptureObserver:
    """Saves what is wanted as it comes; see models.patch.stack.Observer."""

    def __init__(self, capture: Capture, wanted: set[tuple[int, int]], metadata: dict[str, str]) -> None:
        self._capture, self._wanted, self._metadata = capture, wanted, metadata

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, forward: Any) -> None:
        if (forward.index, layer) not in self._wanted:
            return
        self._wanted.remove((forward.index, layer))
        inverse = None if forward.order is None else forward.order.tables(q.device).inverse
        tensors = {}
        for name, x in zip(NAMES, (q, k, v), strict=True):
            tensors[name] = (x[0] if inverse is None else x[0].index_select(0, inverse)).detach().cpu().contiguous()
        metadata = {"schema": SCHEMA, "grid": ",".join(map(str, forward.grid)), "step": str(forward.index)}
        metadata |= {"layer": str(layer), "sigma": f"{forward.sigma:.6f}", "profile": forward.profile.name}
        path = self._capture.folder / f"step{forward.index:04d}-layer{layer:02d}.safetensors"
        with atomic(path, self._capture.overwrite) as part, writing_tensors():
            save_file(tensors, part, self._metadata | metadata)

    def check_complete(self) -> None:
        """Raises FpsgenError ENVIRONMENT where something wanted never came."""
        if self._wanted:
            step, layer = min(self._wanted)
            what = f"{len(self._wanted)} captures did not come, the first of step {step}, layer {layer}"
            raise FpsgenError(what, "compiled layers cannot be seen: run without torch.compile", ENVIRONMENT)


@dataclass(frozen=True)
class Captured:
    """One file. q, k, v: [1, L, H, D], raster order, on the CPU. metadata: its metadata."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grid: Size3
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.metadata.get('model', 'captured')}, step {self.metadata['step']}, layer {self.metadata['layer']}"


def captured_files(folder: Path) -> list[Path]:
    """The captures in a folder, in order of step and layer; none where there is no folder."""
    return sorted(path for path in folder.glob("*.safetensors") if _FILE.fullmatch(path.name))


def read_capture(path: Path) -> Captured:
    """Raises FpsgenError BAD_INPUT for what is no whole capture."""
    try:
        with open_tensors(path) as file:
            metadata = dict(file.metadata() or {})
            tensors = [file.get_tensor(name) for name in NAMES]
        grid = tuple(int(side) for side in metadata["grid"].split(","))
        shape = tensors[0].shape
        whole = len(grid) == 3 and min(grid) > 0 and grid[0] * grid[1] * grid[2] == shape[0]
        if not (whole and len(shape) == 3 and all(x.shape == shape for x in tensors) and "step" in metadata):
            raise ValueError("its tensors do not fit its grid")
        step, layer = int(metadata["step"]), int(metadata["layer"])
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        what = f"{show(path)} is no capture: {show(error, 120)}"
        raise FpsgenError(what, "make one with fpsgen generate --capture FOLDER", BAD_INPUT) from error
    metadata |= {"step": str(step), "layer": str(layer)}
    q, k, v = (x[None] for x in tensors)
    return Captured(q, k, v, (grid[0], grid[1], grid[2]), metadata)
