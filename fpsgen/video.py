"""MP4 files that are whole or absent, with their recipe inside. A leaf: imports nothing of ours but the errors.

ffmpeg (the one imageio-ffmpeg brings) is called with a list of arguments, its return code is checked, the frames
that it wrote are counted back, and only then does the file get its name. What a killed run leaves is a hidden
temporary that the next run in the same folder removes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from fpsgen.errors import BAD_INPUT, DISK, ENVIRONMENT, FpsgenError

_PART_PREFIX = ".fpsgen-"
_PART_SUFFIX = ".part.mp4"
_SCHEMA_KEY = "schema"
PATIENCE = 25.0  # seconds for ffmpeg to start and end, beside its work


def write_mp4(
    frames: np.ndarray,
    path: str | Path,
    fps: int,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write frames as H.264 in MP4 (yuv420p, BT.709, CRF 18, index first) and return the path.

    frames: uint8 [T, H, W, 3], RGB; H and W even. fps: frames a second. recipe: JSON for the comment tag, or None.
    size: (width, height) that the frames are scaled to (Lanczos), None to leave them.
    Raises FileExistsError unless `overwrite`; ValueError for other frames; FpsgenError DISK when the file could not be
    written and ENVIRONMENT when ffmpeg is missing. On any error, and when interrupted, nothing is left under `path`.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, wanted uint8 [T, H, W, 3]")
    count, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height} has an odd side; yuv420p needs even ones")
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(str(path))

    sweep(path.parent)
    with _temporary(path) as part:
        _encode(np.ascontiguousarray(frames), part, fps, recipe, size)
        written = count_frames(part)
        if written != count:
            raise FpsgenError(
                f"{path} came out with {written} of {count} frames", "check the disk and run it again", DISK
            )
        try:
            _sync(part)
            if overwrite:
                os.replace(part, path)
            else:
                _claim(part, path)
            _sync(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise _disk(path, error) from error
    return path


def write_text(text: str, path: str | Path) -> Path:
    """Write a small text file whole or not at all (UTF-8), replacing what was there. Raises FpsgenError DISK."""
    path = Path(path)
    with _temporary(path) as part:
        try:
            part.write_text(text, encoding="utf-8")
            _sync(part)
            os.replace(part, path)
            _sync(path.parent)
        except OSError as error:
            raise _disk(path, error) from error
    return path


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe in an MP4's comment tag, or None where it carries none. Raises FpsgenError BAD_INPUT."""
    command = [ffmpeg(), "-hide_banner", "-v", "error", "-i", _url(path), "-f", "ffmetadata", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    if done.returncode:
        raise FpsgenError(
            f"{path} is not a video that can be read: {_last_line(done.stderr)}", "name an MP4 file", BAD_INPUT
        )
    # ffmetadata writes key=value with \ before = ; # \ and line ends
    entry = re.search(r"^comment=((?:\\.|[^\\\n])*)", done.stdout.decode("utf-8", "replace"), re.MULTILINE | re.DOTALL)
    if not entry:
        return None
    try:
        recipe = json.loads(re.sub(r"\\(.)", r"\1", entry[1], flags=re.DOTALL))
    except json.JSONDecodeError:
        return None
    return recipe if isinstance(recipe, dict) and _SCHEMA_KEY in recipe else None


def read_frames(path: str | Path) -> tuple[np.ndarray, float]:
    """(uint8 frames [T, H, W, 3] in RGB, frames a second) of a whole video. Raises FpsgenError BAD_INPUT."""
    probe = [ffmpeg(), "-hide_banner", "-i", _url(path)]
    said = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE).stderr
    stream = re.search(rb"Stream #0:\d+.*Video: .*?, (\d+)x(\d+)[ ,].*?([\d.]+) fps", said)
    command = [ffmpeg(), "-hide_banner", "-v", "error", "-xerror", "-i", _url(path), "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    done = None
    if stream is not None:
        with suppress(subprocess.TimeoutExpired):
            patience = PATIENCE + _size(path) / 1e5
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience)
    if stream is None or done is None or done.returncode or not done.stdout:
        why = _last_line(done.stderr if done is not None else said)
        raise FpsgenError(f"{path} is not a video that can be read: {why}", "name an MP4 file", BAD_INPUT)
    width, height = int(stream[1]), int(stream[2])
    return np.frombuffer(bytearray(done.stdout), np.uint8).reshape(-1, height, width, 3), float(stream[3])


def count_frames(path: str | Path) -> int:
    """Decode the whole file and count its frames; 0 where it does not decode cleanly."""
    command = [ffmpeg(), "-hide_banner", "-v", "error", "-xerror", "-i", _url(path)]
    command += ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "null", "-progress", "pipe:1", "-"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE + _size(path) / 1e6
        )
    except subprocess.TimeoutExpired:
        return 0
    counts = re.findall(rb"^frame=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(counts[-1]) if counts and done.returncode == 0 else 0


def ffmpeg() -> str:
    """Path of the ffmpeg to use (IMAGEIO_FFMPEG_EXE is honoured). Raises FpsgenError ENVIRONMENT."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise FpsgenError("no ffmpeg was found", "pip install --force-reinstall imageio-ffmpeg", ENVIRONMENT) from error


def sweep(folder: str | Path) -> int:
    """Remove temporaries in `folder` that no living run holds, and say how many."""
    removed = 0
    for part in Path(folder).glob(f"{_PART_PREFIX}*{_PART_SUFFIX}"):
        with suppress(OSError), _locked(os.open(part, os.O_RDWR)) as free:
            if free:
                part.unlink()
                removed += 1
    return removed


def _encode(
    frames: np.ndarray, part: Path, fps: int, recipe: dict[str, Any] | None, size: tuple[int, int] | None
) -> None:
    count, height, width, _ = frames.shape
    command = [ffmpeg(), "-hide_banner", "-v", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s:v", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
    command += [
        "-an",
        "-vf",
        (f"scale={size[0]}:{size[1]}:flags=lanczos+accurate_rnd," if size else "")
        + "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd,"
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv",
    ]
    command += ["-c:v", "libx264", "-preset", "medium", "-crf", "18", "-pix_fmt", "yuv420p"]
    command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    if recipe is not None:
        command += ["-metadata", "comment=" + json.dumps(recipe, ensure_ascii=False, separators=(",", ":"))]
    command += ["-movflags", "+faststart", "-f", "mp4", _url(part)]

    patience = (
        PATIENCE + count * height * width / 1e6
    )  # seconds; even a slow core encodes a megapixel in far less than one
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
    except OSError as error:
        message = f"ffmpeg could not be started: {command[0]}: {error.strerror}"
        raise FpsgenError(message, "pip install --force-reinstall imageio-ffmpeg", ENVIRONMENT) from error
    try:
        _, complaints = process.communicate(cast(bytes, frames.data.cast("B")), timeout=patience)
    except subprocess.TimeoutExpired:
        message = f"ffmpeg ({command[0]}) did not finish within {patience:.0f} s"
        raise FpsgenError(message, "see whether the disk answers, and run it again", DISK) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        said = _last_line(complaints) or f"it ended with code {process.returncode}"
        raise FpsgenError(f"ffmpeg failed: {said}", "free space on the disk, or choose another folder with -o", DISK)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new, locked, hidden file beside `path`; gone when the block ends, unless it was renamed."""
    part = path.with_name(f"{_PART_PREFIX}{secrets.token_hex(6)}{_PART_SUFFIX}")
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise _disk(path, error) from error
    with _locked(descriptor):
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _locked(descriptor: int) -> Iterator[bool]:
    """Hold an advisory lock on an open file and close it at the end; yields whether the lock was free."""
    free = False
    try:
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except (ImportError, OSError):  # no such locks here: never take a file for abandoned
            pass
        yield free
    finally:
        os.close(descriptor)


def _claim(part: Path, path: Path) -> None:
    """Give `part` its name unless that exists by now. Raises FileExistsError."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(str(path)) from None
        os.replace(part, path)


def _sync(path: Path) -> None:
    """fsync a file or a folder."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk(path: Path, error: OSError) -> FpsgenError:
    remedy = "free space on the disk, or choose another folder with -o"
    return FpsgenError(f"{path} could not be written: {error.strerror or error}", remedy, DISK)


def _url(path: str | Path) -> str:
    return f"file:{Path(path).absolute()}"  # never taken for an option or a protocol


def _size(path: str | Path) -> int:
    return Path(path).stat().st_size


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
