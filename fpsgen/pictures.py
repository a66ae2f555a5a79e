"""PNG, GIF and WebP, written and read through imageio: whole or absent, with their recipe inside. A leaf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.errors import BAD_INPUT, DISK, FpsgenError
from fpsgen.files import atomic, sweep
from fpsgen.text import show

PNG, GIF, WEBP = ".png", ".gif", ".webp"
ANIMATIONS = (GIF, WEBP)
GIF_FPS = 50  # players show a GIF's frames of less than 20 ms for 100 ms
STRETCH = 0.05  # a picture is stretched by so much rather than put between bars
_COMMENT = "comment"  # the text of a PNG, and what a GIF calls it
_DESCRIPTION = 0x010E  # ImageDescription, of a WebP's Exif data
_UNIT_MS = {GIF: 10, WEBP: 1}
_QUALITY = 90  # of WebP


def write_png(
    frame: np.ndarray,
    path: str | Path,
    recipe: str | None = None,
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write one frame, uint8 [H, W, 3] in RGB. recipe: for its text "comment". size: (width, height) to scale it to
    (Lanczos). Raises FileExistsError unless `overwrite`; FpsgenError DISK, and nothing is left under `path` then.
    """
    import imageio.v3 as iio
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    if recipe is not None:
        texts.add_itxt(_COMMENT, recipe)
    frame = scaled(frame, size)
    path = Path(path)
    sweep(path.parent)
    with atomic(path, overwrite) as part:
        part.write_bytes(iio.imwrite("<bytes>", frame, extension=PNG, plugin="pillow", pnginfo=texts))
        if not np.array_equal(iio.imread(part, extension=PNG, plugin="pillow"), frame):
            raise FpsgenError(f"{show(path)} came out wrong", "check the disk and run it again", DISK)
    return path


def write_animation(
    frames: Iterable[np.ndarray],
    path: str | Path,
    fps: float,
    recipe: str | None = None,
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write frames, each uint8 [H, W, 3] in RGB, as an animation that repeats: a GIF of 256 colours a frame, or a WebP,
    by the ending of `path`. size: (width, height) to scale them to (Lanczos). Raises as write_png.
    """
    import imageio.v3 as iio
    from PIL import Image

    path = Path(path)
    kind = path.suffix.lower()
    pictures = [scaled(frame, size) for frame in frames]
    options: dict[str, Any] = {"duration": durations(len(pictures), fps, kind), "loop": 0}
    if kind == WEBP:
        options["quality"] = _QUALITY
    if recipe is not None and kind == GIF:
        options[_COMMENT] = recipe.encode()
    elif recipe is not None:
        exif = Image.Exif()
        exif[_DESCRIPTION] = recipe.encode()
        options["exif"] = exif
    sweep(path.parent)
    with atomic(path, overwrite) as part:
        part.write_bytes(
            iio.imwrite("<bytes>", pictures, extension=kind, plugin="pillow", is_batch=True, **options)  # pyright: ignore[reportArgumentType]
        )
        if shown_ms(part) != sum(options["duration"]):
            raise FpsgenError(f"{show(path)} came out wrong", "check the disk and run it again", DISK)
    return path


def durations(count: int, fps: float, kind: str) -> list[int]:
    """Milliseconds that each of `count` frames is shown, such that no error adds up: a GIF has steps of 10 ms."""
    unit = _UNIT_MS[kind]
    ends = [round(index * 1000 / fps / unit) * unit for index in range(count + 1)]
    return [max(end - start, unit) for start, end in pairwise(ends)]


def shown_ms(path: str | Path) -> int:
    """Milliseconds of a whole GIF or WebP, all of whose frames decode; 0 for others. Frames that are equal may have
    been joined, so their number says nothing.
    """
    from PIL import Image

    total = 0
    try:
        with Image.open(path) as picture:
            for index in range(getattr(picture, "n_frames", 1)):
                picture.seek(index)
                picture.load()
                total += round(picture.info.get("duration", 0))
    except Exception:  # pillow raises nearly anything for a file that is none
        return 0
    return total


def read_comment(path: str | Path) -> str:
    """The recipe's text in a PNG, GIF or WebP, "" where there is none. Raises FpsgenError BAD_INPUT."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            found = picture.info.get(_COMMENT) or picture.getexif().get(_DESCRIPTION, "")
            if isinstance(found, str) and picture.format == "WEBP":
                found = found.encode("latin-1")  # as pillow reads the bytes of Exif data
    except Exception as error:  # as above
        what = f"{show(path)} is not a picture that can be read: {show(error)}"
        raise FpsgenError(what, "name a PNG, GIF or WebP file", BAD_INPUT) from error
    if isinstance(found, bytes):
        return found.decode("utf-8", "replace")
    return found if isinstance(found, str) else ""


def scaled(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 [H, W, 3] at (width, height) by a Lanczos filter, between black bars where the shapes differ; as it is
    where `size` is None.
    """
    if size is None or size == frame.shape[1::-1]:
        return frame
    from PIL import Image

    inner = picture_size(frame.shape[1::-1], size)
    picture = np.asarray(Image.fromarray(frame).resize(inner, Image.Resampling.LANCZOS))
    page = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = (size[1] - inner[1]) // 2, (size[0] - inner[0]) // 2
    page[top : top + inner[1], left : left + inner[0]] = picture
    return page


def picture_size(own: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that a picture of size `own` takes of a file's `size`: all of it where the shapes differ by no
    more than the eye forgives, else as much as keeps its shape. Even numbers, as yuv420p needs them.
    """
    ratio = (own[0] / own[1]) / (size[0] / size[1])
    if abs(ratio - 1) <= STRETCH:
        return size
    if ratio > 1:
        return size[0], max(2, round(size[1] / ratio / 2) * 2)
    return max(2, round(size[0] * ratio / 2) * 2), size[1]


def sheet(frames: Sequence[np.ndarray], columns: int, width: int) -> np.ndarray:
    """A contact sheet, uint8 [H, W, 3]: frames uint8 [h, w, 3] of one size, row by row, each at most `width` wide, with
    white space between them.
    """
    high, wide = frames[0].shape[:2]
    scale = min(1.0, width / wide)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    gap, rows = 4, -(-len(frames) // columns)
    columns = min(columns, len(frames))
    page = np.full((rows * (size[1] + gap) + gap, columns * (size[0] + gap) + gap, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = (place * (side + gap) + gap for place, side in zip(divmod(index, columns), size[::-1], strict=True))
        page[top : top + size[1], left : left + size[0]] = scaled(frame, size)
    return page
