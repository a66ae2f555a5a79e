"""ST-LPIPS of two videos: shift-tolerant perceptual distance (Ghildyal and Liu, ECCV 2022, arXiv 2207.13686), by the
package stlpips-pytorch with its AlexNet. Its values are not those of LPIPS: the two must not be compared.

The package brings its weights, so nothing is fetched. It comes with the extra fpsgen[lpips].
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fpsgen.errors import ENVIRONMENT, FpsgenError

FRAMES = 8  # of a video: a frame costs seconds on a CPU
NEEDED = ("stlpips_pytorch", "torchvision", "torchsummary", "IPython")


def stlpips(frames: np.ndarray, reference: np.ndarray) -> float | None:
    """Mean over eight evenly spaced frames, 0 for equal ones; None where the package is not installed.

    frames, reference: uint8 [T, H, W, 3]. Raises FpsgenError ENVIRONMENT as `available`.
    """
    if not available():
        return None
    import torch

    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    pairs = (torch.from_numpy(x[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (frames, reference))
    with torch.no_grad():
        distances = [float(_network()(a[None], b[None])) for a, b in zip(*pairs, strict=True)]
    return round(sum(distances) / len(distances), 4)


def available() -> bool:
    """Whether the package and what it imports are installed. Raises FpsgenError ENVIRONMENT where they are, and fail:
    a torchvision that was built for another torch does. So ask before hours of work.
    """
    if not all(find_spec(name) is not None for name in NEEDED):
        return False
    try:
        _network()
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        what = f"ST-LPIPS is installed and cannot be loaded: {said[:200]}"
        raise FpsgenError(
            what, "install the torchvision of this torch, or remove stlpips-pytorch", ENVIRONMENT
        ) from error
    return True


@lru_cache(maxsize=1)
def _network() -> Any:
    from stlpips_pytorch.stlpips import LPIPS  # pyright: ignore[reportMissingImports]

    return LPIPS(net="alex", variant="shift_tolerant", verbose=False)
