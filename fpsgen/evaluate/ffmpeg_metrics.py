"""VMAF and XPSNR of two video files, by the ffmpeg that comes with imageio-ffmpeg. None where it has no such filter."""

from __future__ import annotations

import json
import re
import tempfile
from functools import lru_cache
from pathlib import Path

from fpsgen import ffmpeg
from fpsgen.errors import BAD_INPUT, DISK, FpsgenError
from fpsgen.text import show

SECONDS = 600.0  # for two videos
EQUAL_DB = 100.0  # what stands for infinity, which JSON does not have


def vmaf(video: str | Path, reference: str | Path) -> float | None:
    """VMAF (model vmaf_v0.6.1) of a video against another of the same size and length: 0 to 100, mean over frames.

    Raises FpsgenError: BAD_INPUT where the two cannot be compared, DISK where there is no room for ffmpeg's log.
    """
    if "libvmaf" not in _filters():
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "vmaf.json"
            _compare(video, reference, f"libvmaf=log_fmt=json:log_path={_escaped(log)}")
            return round(float(json.loads(log.read_text(encoding="utf-8"))["pooled_metrics"]["vmaf"]["mean"]), 2)
    except (OSError, ValueError) as error:  # no place for temporary files, or a log that was cut short
        what = f"VMAF's log cannot be kept: {show(getattr(error, 'strerror', None) or error)}"
        raise FpsgenError(what, "free space for temporary files, or name a place with TMPDIR", DISK) from error


def xpsnr(video: str | Path, reference: str | Path) -> float | None:
    """XPSNR of luma in dB (Helmrich et al. 2020) over the whole video; EQUAL_DB where both are equal, below 0
    where they have nothing in common. ffmpeg before 7.1 has no such filter: None. Raises as vmaf.
    """
    if "xpsnr" not in _filters():
        return None
    text = _compare(reference, video, "xpsnr=stats_file=-")  # the other way round than libvmaf takes them
    found = re.findall(r"XPSNR average.*?y: *(-?[\d.]+|inf)", text)
    return round(min(float(found[-1]), EQUAL_DB), 2) if found else None


def _compare(first: str | Path, second: str | Path, graph: str) -> str:
    inputs = [part for path in (first, second) for part in ("-i", f"file:{Path(path).resolve()}")]
    done = ffmpeg.run([*inputs, "-lavfi", f"[0:v][1:v]{graph}", "-f", "null", "-"], work=SECONDS)
    what = f"ffmpeg cannot compare {show(first)} and {show(second)}"
    if done.code and not done.said:  # no fault of the videos
        remedy = "free space for temporary files (TMPDIR), and run it again"
        raise FpsgenError(f"{what}: it ended with code {done.code}", remedy, DISK)
    if done.code:
        raise FpsgenError(f"{what}: {done.said}", "give two videos", BAD_INPUT)
    return done.out.decode(errors="replace")


def _escaped(path: Path) -> str:
    return re.sub(r"([\\':,\[\];])", r"\\\\\\\1", str(path))


@lru_cache(maxsize=1)
def _filters() -> frozenset[str]:
    listed = ffmpeg.run(["-filters"]).out.decode(errors="replace")
    return frozenset(line.split()[1] for line in listed.splitlines() if len(line.split()) > 2)
