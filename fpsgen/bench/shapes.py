"""What attention alone is measured on: shapes with random or captured inputs, and plans of a stated density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from fpsgen.attention.methods import METHODS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.profile import Profile
from fpsgen.attention.tiles import Size3
from fpsgen.bench.kernel_error import Inputs
from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.pipeline.capture import captured_files, read_capture


@dataclass(frozen=True)
class Shape:
    """grid: (T, H, W) tokens. tile: of windowed methods and of fp8. source: a capture that the inputs are read from."""

    name: str
    grid: Size3
    heads: int
    dim: int = 128
    batch: int = 1
    tile: str | Size3 = "fit"
    source: Path | None = None

    def inputs(self, device: torch.device) -> Inputs:
        """q, k, v [B, L, H, D] in bf16, raster order: captured, or normal and drawn on the device."""
        if self.source is not None:
            found = read_capture(self.source)
            return cast(Inputs, tuple(x.to(device, torch.bfloat16) for x in (found.q, found.k, found.v)))
        generator = torch.Generator(device).manual_seed(0)
        size = (self.batch, self.grid[0] * self.grid[1] * self.grid[2], self.heads, self.dim)
        drawn = (torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(3))
        return cast(Inputs, tuple(drawn))


def captured_shapes(folder: Path, tiles: Sequence[str | Size3]) -> list[Shape]:
    """A shape for each capture in a folder and each tile. Raises FpsgenError BAD_INPUT."""
    files = captured_files(folder)
    if not files:
        raise FpsgenError(f"{folder} holds no captures", "make some: fpsgen generate --capture FOLDER", BAD_INPUT)
    shapes = []
    for path in files:
        found = read_capture(path)
        heads, dim = found.q.shape[2:]
        shapes += [Shape(found.name, found.grid, heads, dim, 1, tile, path) for tile in tiles]
    return shapes


def plans_for(shape: Shape, method: str, densities: list[float]) -> list[AttentionPlan]:
    """plan_for each density, without repeats."""
    return list(dict.fromkeys(plan_for(shape, method, density) for density in densities))


def plan_for(shape: Shape, method: str, density: float) -> AttentionPlan:
    """The plan whose window of equal sides comes nearest to `density`."""
    if not METHODS[method].windowed or density >= 1:
        named = METHODS[method].tile if shape.tile in ("fit", "blocks") else None
        return AttentionPlan(shape.grid, named or shape.tile, method=method)
    if shape.tile == "blocks":
        return AttentionPlan.of(Profile("bench", method, shape.tile, density=density), shape.grid)
    tiles = AttentionPlan(shape.grid, shape.tile).tiling.tile_grid
    sides = [sorted({*range(1, n, 2), n}) for n in tiles]
    plans = {
        (t, h, w): AttentionPlan(shape.grid, shape.tile, (t, h, w), method=method)
        for t in sides[0]
        for h in sides[1]
        for w in sides[2]
        if abs(t * h * w / (tiles[0] * tiles[1] * tiles[2]) - density) < 0.5 * density
    }
    if not plans:
        return AttentionPlan(shape.grid, shape.tile, (1, 1, 1), method=method)

    def cost(window: Size3) -> float:
        share = [w / n for w, n in zip(window, tiles, strict=True)]
        return abs(share[0] * share[1] * share[2] / density - 1) + 0.1 * (max(share) / min(share) - 1)

    return plans[min(plans, key=cost)]
