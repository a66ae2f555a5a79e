"""Frames of a clip at the size and rate wanted, decoded, resampled and scaled by ffmpeg in one go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.ffmpeg import Process, check_ffmpeg
from fpsgen.files import absolute
from fpsgen.text import show

MAX_PIXELS = 1 << 26  # of a frame; ffmpeg refuses more, so that a made-up size takes no memory
_SQUARE = "scale=w=trunc(iw*sar/2)*2:h=trunc(ih/2)*2,setsar=1"  # pixels as players show them; sides even


@dataclass(frozen=True)
class Picture:
    """What a video shows: width and height in square pixels, turned as players turn it; frames a second."""

    width: int
    height: int
    fps: float


@dataclass(frozen=True)
class Box:
    """A part of the picture: shares of its width and height, from the left and from the top."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0

    @property
    def area(self) -> float:
        return self.width * self.height


def probe(path: Path) -> Picture:
    """Decodes the first frame. Raises FpsgenError BAD_INPUT for what is no video, ENVIRONMENT."""
    command = [*_input(path), "-frames:v", "1", "-vf", _SQUARE, "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"]
    with Process(command) as process:
        head = process.read_exactly(200)
        found = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) ", head)
        if found is None:
            process.wait()
            raise _unreadable(path, process.said)
    width, height, above, below = map(int, found.groups())
    return Picture(width, height, above / max(1, below))


def clip_frames(path: Path, start: float, count: int, fps: float, size: tuple[int, int], box: Box) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] in RGB, T <= count (fewer where the video ends), from `start` in seconds on.

    box: the part of the picture that is taken and scaled to `size`, (width, height). Raises FpsgenError BAD_INPUT where
    the video does not decode so far, ENVIRONMENT.
    """
    width, height = size
    crop = f"crop=w=iw*{box.width:.6f}:h=ih*{box.height:.6f}:x=iw*{box.left:.6f}:y=ih*{box.top:.6f}:exact=1"
    shape = f"fps={fps:g},{_SQUARE},{crop},scale={width}:{height}:flags=lanczos+accurate_rnd"
    seek = ["-ss", f"{start:.6f}"] if start else []
    command = [*seek, *_input(path), "-frames:v", str(count), "-vf", shape, "-pix_fmt", "rgb24"]
    # without an index it decodes all that lies before
    with Process([*command, "-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"], work=start) as process:
        data = process.read_exactly(count * width * height * 3)
        code = process.wait()
        if code or process.late:
            raise _unreadable(path, process.said)
    found = len(data) // (width * height * 3)
    return np.frombuffer(data, np.uint8)[: found * width * height * 3].reshape(found, height, width, 3)


def centre(picture: Picture, box: Box, size: tuple[int, int]) -> Box:
    """The largest part of `box`, from its centre, in the shape of `size` (width, height)."""
    shown = picture.width * box.width / (picture.height * box.height)
    wanted = size[0] / size[1]
    width, height = (wanted / shown, 1.0) if shown > wanted else (1.0, shown / wanted)
    left, top = box.left + box.width * (1 - width) / 2, box.top + box.height * (1 - height) / 2
    return Box(left, top, box.width * width, box.height * height)


def _input(path: Path) -> list[str]:
    return ["-xerror", "-max_pixels", str(MAX_PIXELS), "-i", f"file:{absolute(path)}", "-map", "0:v:0", "-an"]


def _unreadable(path: Path, said: str) -> FpsgenError:
    check_ffmpeg()  # which may be what is wrong
    # an address and the name of a temporary are others in each run
    said = re.sub(r" @ 0x[0-9a-f]+", "", said).replace(f"file:{absolute(path)}", "the file")
    return FpsgenError(f"{show(path)} does not decode: {said or 'no frame comes'}", "leave it out", BAD_INPUT)
