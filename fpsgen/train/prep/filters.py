"""Which clips are left out: the filters of the paper (arXiv 2506.04648, section on data) that need no further model.

captions burned in, Q-Align and aesthetics need one, and are not here. Black bars are cropped, as in the paper.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from fpsgen.errors import USAGE, FpsgenError
from fpsgen.text import show
from fpsgen.train.prep.frames import Picture
from fpsgen.train.prep.measures import Measures

OFF = "off"


@dataclass(frozen=True)
class Dropped:
    """A clip that is left out. measure, threshold: numbers where there are some, else words."""

    filter: str
    measure: float | str
    threshold: float | str


@dataclass(frozen=True)
class Filters:
    """Thresholds; None switches a filter off.

    size: largest enlargement that covers the data's size. fps: least rate of the video, as a share of the data's; less
    would show frames twice. bars: largest share of the picture that black bars may take; None leaves bars as they are.
    colour: least deviation of a frame's pixels, of 255; less is one colour. flow: least and largest motion, in percent
    of the short side a frame. duplicate: a perceptual hash (192 bits) that differs in no more bits is the same video.
    """

    size: float | None = 1.0
    fps: float | None = 0.9
    bars: float | None = 0.5
    colour: float | None = 6.0
    flow: tuple[float, float] | None = (0.05, 2.0)
    duplicate: float | None = 16.0

    def as_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read_filters(text: str) -> Filters:
    """Filters from "flow=0.05-2,duplicate=off"; what is not named keeps its default. Raises FpsgenError USAGE."""
    found = Filters()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        name, value = name.strip().lower(), value.strip().lower()
        if name not in Filters.__dataclass_fields__:
            known = ", ".join(Filters.__dataclass_fields__)
            raise FpsgenError(f"--filter {show(part, 60)!r}: there is no such filter", f"filters are {known}", USAGE)
        found = replace(found, **{name: None if value == OFF else _threshold(name, value, part)})
    return found


def judge_picture(picture: Picture, fps: float, filters: Filters) -> Dropped | None:
    """By what a video says of itself. fps: the data's rate."""
    if filters.fps is not None and picture.fps < filters.fps * fps:
        return Dropped("fps", round(picture.fps, 3), round(filters.fps * fps, 3))
    return None


def judge_clip(picture: Picture, found: Measures, size: tuple[int, int], filters: Filters) -> Dropped | None:
    """By what was measured. size: (width, height) of the data."""
    bars = 1 - found.box.area
    if filters.bars is not None and bars > filters.bars:
        return Dropped("bars", round(bars, 4), filters.bars)
    larger = enlargement(picture, found, size)
    if filters.size is not None and larger > filters.size:
        return Dropped("size", round(larger, 4), filters.size)
    if filters.colour is not None and found.colour < filters.colour:
        return Dropped("colour", round(found.colour, 3), filters.colour)
    if filters.flow is not None and found.flow is not None and not filters.flow[0] <= found.flow <= filters.flow[1]:
        return Dropped("flow", round(found.flow, 4), filters.flow[found.flow > filters.flow[1]])
    return None


def enlargement(picture: Picture, found: Measures, size: tuple[int, int]) -> float:
    """By how much the picture without its bars is enlarged to cover `size`; below 1 it is made smaller."""
    shown = picture.width * found.box.width, picture.height * found.box.height
    return max(wanted / max(1.0, own) for wanted, own in zip(size, shown, strict=True))


def _threshold(name: str, text: str, part: str) -> float | tuple[float, float]:
    try:
        numbers = [float(piece) for piece in text.split("-")]
        good = all(math.isfinite(number) and number >= 0 for number in numbers)
        if good and name == "flow" and len(numbers) == 2 and numbers[0] <= numbers[1]:
            return numbers[0], numbers[1]
        if good and name != "flow" and len(numbers) == 1:
            return numbers[0]
    except ValueError:
        pass
    wanted = "two numbers, for example flow=0.05-2" if name == "flow" else f"a number, for example {name}=1"
    raise FpsgenError(f"--filter {show(part, 60)!r} is no threshold", f"give {wanted}, or {name}=off", USAGE)
