"""Which sizes and lengths a model can make, by its VAE's stride, its patches and its rotary table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fpsgen.attention.windows import Size3
from fpsgen.settings.parsers import MAX_SIDE

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Geometry:
    """spatial, temporal: pixels and frames that one latent stands for. patch: latents a token, (t, h, w). positions:
    entries of the rotary table, for each axis.
    """

    spatial: int
    temporal: int
    patch: Size3
    positions: int

    @property
    def side(self) -> int:
        """Both sides of a video must be multiples of this, in pixels."""
        return self.spatial * math.lcm(self.patch[1], self.patch[2])

    @property
    def largest(self) -> int:
        """The longest side that the model has positions for and that can be asked for, in pixels."""
        return min(self.positions, MAX_SIDE // self.side) * self.side

    def token_grid(self, width: int, height: int, frames: int) -> Size3:
        """Tokens (T, H, W) of a video."""
        latents = (frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial
        t, h, w = (size // patch for size, patch in zip(latents, self.patch, strict=True))
        return t, h, w

    def refuses(self, width: int, height: int, frames: int) -> str:
        """Why the model cannot make this; "" where it can. Pixels, frames."""
        if width % self.side or height % self.side or min(width, height) < self.side:
            return f"{width}x{height} cannot be made: both sides must be multiples of {self.side}"
        if (frames - 1) % (self.temporal * self.patch[0]):
            return f"{frames} frames cannot be made: it must be {self.temporal * self.patch[0]}n+1 of them"
        tall, wide = self.positions * self.spatial * self.patch[1], self.positions * self.spatial * self.patch[2]
        if width > wide or height > tall:
            return f"{width}x{height} cannot be made: the model has positions for at most {wide}x{tall} pixels"
        longest = (self.positions * self.patch[0] - 1) * self.temporal + 1
        if frames > longest:
            return f"{frames} frames cannot be made: the model has positions for at most {longest}"
        return ""


def geometry_of(configs: dict[str, dict[str, Any]]) -> Geometry:
    """The geometry by a folder's own configurations, see PipelineFolder."""
    transformer, vae = configs["transformer"], configs["vae"]
    return Geometry(
        spatial=2 ** (len(vae["dim_mult"]) - 1) * (vae["patch_size"] or 1),
        temporal=2 ** sum(vae["temperal_downsample"]),
        patch=transformer["patch_size"],
        positions=transformer["rope_max_seq_len"],
    )
