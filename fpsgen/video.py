"""Videos that are whole or absent, with their recipe inside; and frames read back one by one. A leaf.

A file gets its name only after ffmpeg has ended well, the boxes of the MP4 are complete, and as many frames decode from
it as were given. What a killed run leaves is a hidden temporary that the next run in the same folder removes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen import pictures
from fpsgen.errors import BAD_INPUT, DISK, FpsgenError
from fpsgen.ffmpeg import Process, check_ffmpeg, encode, raw_input, run
from fpsgen.files import absolute, atomic, sweep, temporary
from fpsgen.text import plural, show

_SCHEMA_KEY = "schema"
_COMMENT = "comment"  # the tag of an MP4
_PIXELS_PER_SECOND = 1e6  # even a slow core that others use encodes many times as many


@dataclass(frozen=True)
class Clip:
    """A video that can be read. fps: frames a second, 0 where none is known. pixel: its shape, "1:1" for square."""

    path: Path
    fps: float
    pixel: str


def write_mp4(
    frames: np.ndarray | Iterable[np.ndarray],
    path: str | Path,
    fps: float,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write frames as H.264 in MP4 (yuv420p, BT.709, CRF 18, index first).

    frames: uint8 [T, H, W, 3] in RGB, or such [H, W, 3] one after the other; H and W even. fps: frames a second.
    recipe: JSON for the comment tag, or None. size: (width, height) that the frames are scaled to (Lanczos), between
    black bars where the shapes differ; None to leave them. Raises FileExistsError unless `overwrite`; ValueError for
    other frames; FpsgenError DISK when the file could not be written, ENVIRONMENT when ffmpeg does not work. On any
    error, and when interrupted, nothing is left under `path`.
    """
    waiting = iter(frames)
    first = next(waiting, None)
    if first is None:
        raise ValueError("there are no frames")
    _check_frame(first, first.shape)
    wide, high = size or first.shape[1::-1]
    if high % 2 or wide % 2:
        raise ValueError(f"{wide}x{high} has an odd side; yuv420p needs even ones")
    path = Path(path)
    sweep(path.parent)
    with atomic(path, overwrite) as part:
        count = _encode(first, waiting, part, fps, recipe, size)
        found = _frames_of(part, count * wide * high) if whole_mp4(part) else 0
        if found != count:
            check_ffmpeg()
            raise FpsgenError(
                f"{show(path)} came out with {found} of {plural(count, 'frame')}",
                "check the disk and run it again",
                DISK,
            )
    return path


def write_video(
    frames: np.ndarray | Iterable[np.ndarray],
    path: str | Path,
    fps: float,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write frames as what `path` ends in: .gif, .webp, .png (the first of them) or else MP4. As write_mp4."""
    kind = Path(path).suffix.lower()
    if kind not in (pictures.PNG, *pictures.ANIMATIONS):
        return write_mp4(frames, path, fps, recipe, overwrite, size)
    text = None if recipe is None else _as_json(recipe)
    if kind == pictures.PNG:
        return pictures.write_png(next(iter(frames)), path, text, overwrite, size)
    return pictures.write_animation(frames, path, fps, text, overwrite, size)


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe in an MP4's comment tag, or that of a PNG, GIF or WebP; None where it carries none.

    It is JSON, and no more is known of it. Raises FpsgenError BAD_INPUT for what is no such file, ENVIRONMENT.
    """
    kind = Path(path).suffix.lower()
    text = pictures.read_comment(path) if kind in (pictures.PNG, *pictures.ANIMATIONS) else _mp4_comment(path)
    try:
        recipe = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) and _SCHEMA_KEY in recipe else None


def open_video(path: str | Path) -> Clip:
    """What a video says of itself. Raises FpsgenError BAD_INPUT, ENVIRONMENT."""
    said = _probe(path)
    stream = re.search(rb"Stream #0:\d+[^\n]*Video: [^\n]*", said)
    if stream is None:
        raise _no_video(path, "there is no video stream in it")
    rate = re.search(rb"([\d.]+)(k?) fps", stream[0])
    pixel = re.search(rb"\bSAR (\d+:\d+)", stream[0])
    fps = float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0
    shape = pixel[1].decode() if pixel else "1:1"
    return Clip(Path(path), fps, "1:1" if shape == "0:1" else shape)


def frames_of(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video one by one, as players show them (turned by its display matrix): uint8 [H, W, 3], RGB.

    Raises FpsgenError BAD_INPUT where it does not decode to its end, ENVIRONMENT.
    """
    command = ["-xerror", "-i", _url(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    # each picture of this stream says how large it is
    with Process([*command, "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]) as process:
        count = 0
        while header := process.read_exactly(3):
            while header.count(b"\n") < 3 and len(header) < 40 and (byte := process.read(1)):
                header += byte
            size = re.fullmatch(rb"P6\n(\d+) (\d+)\n255\n", header)
            width, height = (int(size[1]), int(size[2])) if size else (0, 0)
            data = process.read_exactly(width * height * 3)
            if not data or len(data) < width * height * 3:
                break
            count += 1
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        code = process.wait()
    if code or not count or process.late:
        raise _no_video(path, process.said or "it does not decode")


def read_frames(path: str | Path) -> tuple[np.ndarray, float]:
    """(all frames, uint8 [T, H, W, 3]; frames a second). For short videos: all are in memory. Raises as frames_of."""
    return np.stack(list(frames_of(path))), open_video(path).fps


def count_frames(path: str | Path) -> int:
    """Decode a whole MP4 or PNG and count its frames; 0 where it is not whole or does not decode cleanly."""
    try:
        picture = Path(path).suffix.lower() == pictures.PNG
        return _frames_of(path, 0) if picture or whole_mp4(path) else 0
    except OSError:
        return 0


def is_whole(path: str | Path, frames: int, fps: float) -> bool:
    """Whether a file that fpsgen wrote decodes and shows so many frames, so many a second."""
    kind = Path(path).suffix.lower()
    if kind in pictures.ANIMATIONS:
        return pictures.shown_ms(path) == sum(pictures.durations(frames, fps, kind))
    return count_frames(path) == frames


def whole_mp4(path: str | Path) -> bool:
    """Whether an MP4's boxes fill the file to its last byte, with index and frames among them. Decodes nothing."""
    sizes: dict[bytes, int] = {}
    with open(path, "rb") as file:
        end, place = file.seek(0, 2), 0
        while place < end:
            file.seek(place)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8 or place + size > end or (not sizes and head[4:8] != b"ftyp"):
                return False
            sizes[head[4:8]] = size
            place += size
    return all(sizes.get(name, 0) > 8 for name in (b"ftyp", b"moov", b"mdat"))


def _encode(
    first: np.ndarray,
    others: Iterator[np.ndarray],
    part: Path,
    fps: float,
    recipe: dict[str, Any] | None,
    size: tuple[int, int] | None,
) -> int:
    """Encode into `part` and return the number of frames."""
    height, width = first.shape[:2]
    pixels = size[0] * size[1] if size else height * width
    command = raw_input(width, height, fps)
    with ExitStack() as stack:
        if recipe is not None:  # in a file: a command line has an end, and other users can read it
            tags, _ = stack.enter_context(temporary(part))
            tags.write_text(f";FFMETADATA1\n{_COMMENT}={_escaped(_as_json(recipe))}\n", encoding="utf-8")
            command += ["-f", "ffmetadata", "-i", _url(tags), "-map", "0:v", "-map_metadata", "1"]
        picture = pictures.picture_size((width, height), size) if size else None
        command += [*encode(size, picture), "-movflags", "+faststart", "-f", "mp4", "-y", _url(part)]
        process = stack.enter_context(Process(command, 100 * pixels / _PIXELS_PER_SECOND))
        count, taken = 0, True
        frame: np.ndarray | None = first
        while frame is not None:
            _check_frame(frame, first.shape)
            count += 1
            taken = process.write(np.ascontiguousarray(frame))
            if not taken:
                break
            frame = next(others, None)
        code = process.wait()
    if process.late:
        check_ffmpeg()
        raise FpsgenError("ffmpeg stopped getting on", "see whether the disk answers, and run it again", DISK)
    if code or not taken:
        check_ffmpeg()
        said = process.said or f"it ended with code {code} before its work"
        raise FpsgenError(f"ffmpeg failed: {said}", "free space on the disk, or choose another folder with -o", DISK)
    return count


def _frames_of(path: str | Path, pixels: int) -> int:
    """Number of frames that decode; 0 where one does not. pixels: how many there are in all, if that is known."""
    command = ["-xerror", "-i", _url(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    done = run([*command, "-f", "null", "-progress", "pipe:1", "-"], work=pixels / _PIXELS_PER_SECOND)
    counts = re.findall(rb"^frame=\s*(\d+)", done.out, re.MULTILINE)
    return int(counts[-1]) if counts and done.code == 0 else 0


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    good = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    if not good or frame.shape != shape or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"a frame is {frame.dtype} {list(frame.shape)}, wanted uint8 [H, W, 3], all of one size")


def _mp4_comment(path: str | Path) -> str:
    done = run(["-i", _url(path), "-f", "ffmetadata", "-"])
    if done.code or not done.out.startswith(b";FFMETADATA"):  # another program may end well and say nothing
        raise _no_video(path, done.said or "ffmpeg cannot read it")
    # ffmetadata writes key=value with \ before = ; # \ and line ends
    text = done.out.decode("utf-8", "replace")
    entry = re.search(rf"^{_COMMENT}=((?:\\.|[^\\\n])*)", text, re.MULTILINE | re.DOTALL)
    return re.sub(r"\\(.)", r"\1", entry[1], flags=re.DOTALL) if entry else ""


def _probe(path: str | Path) -> bytes:
    """What ffmpeg says of a file on stderr."""
    with Process(["-v", "info", "-i", _url(path)]) as process:
        process.wait()
        return process.tail


def _no_video(path: str | Path, why: str) -> FpsgenError:
    check_ffmpeg()  # which may be what is wrong
    return FpsgenError(f"{show(path)} is not a video that can be read: {why}", "name an MP4 file", BAD_INPUT)


def _as_json(recipe: dict[str, Any]) -> str:
    return json.dumps(recipe, ensure_ascii=False, separators=(",", ":"))


def _escaped(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)


def _url(path: str | Path) -> str:
    """A name that is never taken for an option or a protocol."""
    return f"file:{absolute(path)}"
