"""VMAF and XPSNR of two video files, by the ffmpeg that comes with imageio-ffmpeg. None where it has no such filter."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.video import ffmpeg

SECONDS = 600


def vmaf(video: str | Path, reference: str | Path) -> float | None:
    """VMAF (model vmaf_v0.6.1) of a video against another of the same size and length, 0 to 100, mean over frames."""
    if "libvmaf" not in _filters():
        return None
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vmaf.json"
        _compare(video, reference, "libvmaf=log_fmt=json:log_path=vmaf.json", folder)
        return round(float(json.loads(log.read_text(encoding="utf-8"))["pooled_metrics"]["vmaf"]["mean"]), 2)


def xpsnr(video: str | Path, reference: str | Path) -> float | None:
    """XPSNR of luma in dB (Helmrich et al. 2020), over the whole video; None where both are equal, too."""
    if "xpsnr" not in _filters():
        return None
    told = re.findall(r"XPSNR.*?\by: *([\d.]+|inf)", _compare(video, reference, "xpsnr", None))
    return None if not told or told[-1] == "inf" else round(float(told[-1]), 2)


def _compare(video: str | Path, reference: str | Path, graph: str, folder: str | None) -> str:
    paths = [str(Path(path).resolve()) for path in (video, reference)]
    command = [ffmpeg(), "-hide_banner", "-nostdin", "-i", f"file:{paths[0]}", "-i", f"file:{paths[1]}"]
    command += ["-lavfi", f"[0:v][1:v]{graph}", "-f", "null", "-"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise FpsgenError(f"ffmpeg cannot compare {video} and {reference}: {last[:200]}", "give two videos", BAD_INPUT)
    return done.stderr


@lru_cache(maxsize=1)
def _filters() -> frozenset[str]:
    listed = subprocess.run([ffmpeg(), "-hide_banner", "-filters"], capture_output=True, text=True, timeout=60).stdout
    return frozenset(line.split()[1] for line in listed.splitlines() if len(line.split()) > 2)
