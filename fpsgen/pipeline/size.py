"""Frame sizes and lengths that Wan can make: sides in multiples of 16, 4n+1 frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.text import plural

SIDE = 16  # pixels a token in Wan: the VAE halves a side three times, the patches once more
EVEN = 2  # pixels: what H.264 in yuv420p needs
TIME = 4  # the VAE keeps the first frame and joins each four that follow


def resolve_size(
    res: str | tuple[int, int] | None,
    aspect: tuple[int, int] | None,
    default: tuple[int, int],
    named: Mapping[str, tuple[int, int]],
    model: str,
    multiple: int = SIDE,
) -> tuple[int, int]:
    """(width, height) in pixels, both multiples of `multiple`.

    res: a name from `named`, a size, or None for `default`. aspect: width to height, keeps about the area of `res`.
    Raises FpsgenError USAGE with the nearest size that works.
    """
    if isinstance(res, tuple):
        near = (_nearest(res[0], multiple), _nearest(res[1], multiple))
        if near != res:
            must = "even" if multiple == EVEN else f"multiples of {multiple}"
            message = f"size {res[0]}x{res[1]} does not suit the model: both sides must be {must}"
            raise FpsgenError(message, f"nearest: --res {near[0]}x{near[1]}", USAGE)
        return res
    if res is not None and res not in named:
        known = ", ".join([*named, f"{default[0]}x{default[1]}"])
        raise FpsgenError(
            f"model {model} has no resolution named {res}", f"choose from {known}, or give WIDTHxHEIGHT", USAGE
        )
    width, height = named[res] if res is not None else default
    return fit_aspect(width, height, aspect, multiple) if aspect else (width, height)


def nearest_trained(size: tuple[int, int], trained: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size of `trained` nearest in shape to `size`, the largest of equals; `size` itself if `trained` is empty."""

    def distance(own: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(own[0] / own[1] * size[1] / size[0])), -own[0] * own[1]

    return min(trained, key=distance) if trained and size not in trained else size


def fit_aspect(width: int, height: int, aspect: tuple[int, int], multiple: int = SIDE) -> tuple[int, int]:
    """The size nearest to `aspect` with about the area of width x height; the given size or its transpose if alike."""
    ratio = aspect[0] / aspect[1]
    for own in ((width, height), (height, width)):
        if abs(own[0] / own[1] / ratio - 1) < 0.03:
            return own
    short = _nearest(math.sqrt(width * height / max(ratio, 1 / ratio)), multiple)
    long = _nearest(short * max(ratio, 1 / ratio), multiple)
    return (long, short) if ratio > 1 else (short, long)


def resolve_frames(frames: int | None, seconds: float | None, fps: int, default: int, period: int = TIME) -> int:
    """Number of frames, n*period + 1. `seconds` is rounded to the nearest length that exists; `frames` must be one.

    Raises FpsgenError USAGE naming the nearest.
    """
    if seconds is not None:
        return period * max(0, round((seconds * fps - 1) / period)) + 1
    if frames is None:
        return default
    if (frames - 1) % period:
        below = (frames - 1) // period * period + 1
        near = [n for n in sorted((below, below + period), key=lambda n: abs(n - frames)) if n >= 1]
        remedy = f"nearest: --frames {near[0]}" + (f" (or {near[1]})" if len(near) > 1 else "")
        raise FpsgenError(f"{plural(frames, 'frame')} will not do: the model makes {period}n+1 of them", remedy, USAGE)
    return frames


def _nearest(value: float, step: int) -> int:
    return max(step, round(value / step) * step)
