"""Two videos next to each other: how far they are apart, frame by frame, and a picture of both. Nothing is kept but
figures: frames are read, measured and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.evaluate.metrics import decibels, mean_squares, ssim
from fpsgen.text import show
from fpsgen.video import frames_of, open_video

SAME_RATE = 0.01  # rates that differ by less are one rate that was rounded
_SMALLEST = 6  # pixels a side, for SSIM


@dataclass(frozen=True)
class Comparison:
    """width, height, fps: of both. mean_square, ssim: of each frame, float64 [T]; values in [0, 255]."""

    width: int
    height: int
    fps: float
    mean_square: np.ndarray
    ssim: np.ndarray

    @property
    def psnr(self) -> np.ndarray:
        """dB of each frame, inf where frames are equal."""
        return decibels(self.mean_square, 255.0)

    @property
    def psnr_of_all(self) -> float:
        """dB over all frames, inf where all are equal."""
        return float(decibels(self.mean_square.mean(), 255.0))


def compare_videos(a: Path, b: Path) -> Comparison:
    """Measure two videos as players show them, frame by frame.

    Raises FpsgenError BAD_INPUT for what is no video, and where sizes, shapes of pixels, rates or lengths differ.
    """
    clips = open_video(a), open_video(b)
    _check_equal(a, b, "pixels of shape", *(clip.pixel for clip in clips))
    rates = [clip.fps for clip in clips]
    if abs(rates[0] - rates[1]) > SAME_RATE * max(rates):
        _check_equal(a, b, "frames a second:", *(f"{rate:g}" for rate in rates))
    squares, alike, size = [], [], (0, 0)
    for left, right in _pairs(a, b):
        _check_equal(a, b, "pictures of", *(f"{x.shape[1]}x{x.shape[0]}" for x in (left, right)))
        size = left.shape[1], left.shape[0]
        if min(size) < _SMALLEST:
            raise FpsgenError(
                f"{show(a)} is {size[0]}x{size[1]}", f"compare from {_SMALLEST}x{_SMALLEST} on", BAD_INPUT
            )
        squares.append(mean_squares([left], [right])[0])
        alike.append(ssim([left], [right])[0])
    return Comparison(*size, rates[0], np.array(squares), np.array(alike))


def side_by_side(a: Path, b: Path) -> Iterator[np.ndarray]:
    """Frames of both under their names, uint8 [H', 2 W, 3], H' even. Raises as compare_videos."""
    band = None
    for left, right in _pairs(a, b):
        if band is None:
            band = _band(left.shape[0], left.shape[1], labels(a, b))
        yield np.concatenate([band, np.concatenate([left, right], axis=1)])


def labels(a: Path, b: Path) -> tuple[str, str]:
    """The names of two files, with as much of their folders as tells them apart."""
    for parts in range(1, 4):
        names = tuple("/".join(path.parts[-parts:]) for path in (a, b))
        if names[0] != names[1]:
            break
    return show(names[0], 80), show(names[1], 80)


def _pairs(a: Path, b: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of both, one by one. Raises FpsgenError BAD_INPUT where one has more."""
    left, right = frames_of(a), frames_of(b)
    count = 0
    while True:
        first, second = next(left, None), next(right, None)
        if first is None or second is None:
            break
        count += 1
        yield first, second
    lengths = [count + (frame is not None) + sum(1 for _ in rest) for frame, rest in ((first, left), (second, right))]
    _check_equal(a, b, "frames:", *map(str, lengths))


def _check_equal(a: Path, b: Path, what: str, first: str, second: str) -> None:
    if first != second:
        message = f"the videos differ: {show(a)} has {what} {first}, {show(b)} {second}"
        raise FpsgenError(message, "compare videos of one size, rate and length", BAD_INPUT)


def _band(height: int, width: int, names: tuple[str, str]) -> np.ndarray:
    """A black band [h, 2 width, 3] with a name over each half; h makes the whole picture's height even."""
    from PIL import Image, ImageDraw, ImageFont

    high = max(16, height // 20)
    high += (height + high) % 2
    image = Image.new("RGB", (2 * width, high))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(high * 0.7)
    for side, name in enumerate(names):
        while len(name) > 1 and draw.textlength(name, font) > width - 8:
            name = name[1:]  # the end of a name tells more
        draw.text((side * width + 4, high // 2), name, (255, 255, 255), font, anchor="lm")
    return np.asarray(image)
