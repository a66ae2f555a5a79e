"""What the filters look at, measured on small frames: bars, flatness, motion, a perceptual hash.

Motion is the mean length of OpenCV's dense inverse search flow (DIS; Kroeger et al., arXiv 1603.03590) between
neighbouring frames at the data's rate, in percent of the picture's short side. The paper (arXiv 2506.04648, section on
data) keeps 0.05 to 2.0 and names no unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.train.prep.frames import Box, Picture

SHORT, LONG = 256, 1024  # pixels of the sides of the frames that are measured, at most
HASH_FRAMES = 3  # first, middle, last; 64 bits each
_BLACK = 20  # of 255: what bars stay under; video noise and ringing reach this far
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Measures:
    """box: the picture without black bars. colour: standard deviation over a frame's pixels, of 255, the largest of
    its three channels, median over the frames. flow: see above, None if not measured. hash: perceptual, hex.
    """

    box: Box
    colour: float
    flow: float | None
    hash: str


def small_size(picture: Picture) -> tuple[int, int]:
    """(width, height) of the frames that are measured."""
    ratio = min(SHORT / min(picture.width, picture.height), LONG / max(picture.width, picture.height))
    return max(16, round(picture.width * ratio)), max(16, round(picture.height * ratio))


def measure(frames: np.ndarray, bars: bool, flow: bool) -> Measures:
    """frames: uint8 [T, H, W, 3] of `small_size`. bars: look for black bars, which then count in nothing
    else. flow: measure motion. Raises FpsgenError ENVIRONMENT where motion is asked for without OpenCV.
    """
    box = without_bars(frames) if bars else Box()
    height, width = frames.shape[1:3]
    top, left = round(box.top * height), round(box.left * width)
    inner = frames[:, top : top + round(box.height * height), left : left + round(box.width * width)]
    grey = (inner @ _LUMA).astype(np.uint8)
    colour = float(np.median(inner.std(axis=(1, 2), dtype=np.float32).max(axis=1)))
    motion = None
    if flow:
        motion = 100 * mean_flow(grey) / min(grey.shape[1:])
    return Measures(box, colour, motion, perceptual_hash(grey))


def without_bars(frames: np.ndarray) -> Box:
    """The part of the picture that is not a bar: rows and columns at its sides that stay black in every frame."""
    brightest = frames.max(axis=(0, 3))
    sides = []
    for line in (brightest.max(axis=1), brightest.max(axis=0)):  # rows, columns
        lit = np.flatnonzero(line > _BLACK)
        first, last = (int(lit[0]), int(lit[-1]) + 1) if len(lit) else (0, len(line))
        # a bar's edge lies within a pixel of these small frames, so one more goes
        first, last = first + (first > 0), last - (last < len(line))
        sides.append((first / len(line), max(0, last - first) / len(line)))
    (top, height), (left, width) = sides
    return Box(left, top, width, height)


def mean_flow(grey: np.ndarray) -> float:
    """Mean length of the flow between neighbouring frames, uint8 [T, H, W], T >= 2, in pixels."""
    cv2 = _opencv()
    estimate = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    lengths = [
        float(np.linalg.norm(estimate.calc(before, after, None), axis=2).mean()) for before, after in pairwise(grey)
    ]
    return sum(lengths) / len(lengths)


def perceptual_hash(grey: np.ndarray) -> str:
    """Signs of the lowest 8 x 8 frequencies of three frames around their median: alike for the same video in another
    size or encoding. grey: uint8 [T, H, W].
    """
    side = 32
    steps = np.arange(side)
    cosine = np.cos(np.pi / side * (steps[None] + 0.5) * np.arange(8)[:, None]).astype(np.float32)
    bits = []
    for index in np.linspace(0, len(grey) - 1, HASH_FRAMES).round().astype(int):
        low = cosine @ _shrunk(grey[index].astype(np.float32), side) @ cosine.T
        bits.append((low > np.median(low)).flatten())
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def distances(hash: str, others: np.ndarray) -> np.ndarray:
    """Bits in which a hash differs from each of others, uint8 [N, 24]."""
    return np.bitwise_count(others ^ as_bytes(hash)[None]).sum(axis=1, dtype=np.int64)


def as_bytes(hash: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(hash), np.uint8)


def check_opencv() -> None:
    """Raises FpsgenError ENVIRONMENT without OpenCV."""
    _opencv()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        what = "the filter of motion needs OpenCV, which is not installed"
        raise FpsgenError(
            what, "pip install 'fpsgen[prep]', or leave it out: --filter flow=off", ENVIRONMENT
        ) from error
    return cv2


def _shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Means over side x side cells of a picture [H, W]."""
    for axis in (0, 1):
        edges = np.linspace(0, picture.shape[axis], side + 1).round().astype(int)
        sums = np.add.reduceat(picture, edges[:-1], axis=axis)
        shape = [-1 if other == axis else 1 for other in (0, 1)]
        picture = sums / np.maximum(1, np.diff(edges)).reshape(shape)
    return picture
