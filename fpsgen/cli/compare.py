"""`fpsgen compare`: how far one video is from another, in figures and side by side."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from fpsgen.cli import console, options
from fpsgen.cli.options import examples, takes_settings
from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.files import make_folder
from fpsgen.settings.gather import Settings, gather
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.evaluate.compare import Comparison

EXAMPLES = examples("fpsgen compare bf16.mp4 fps.mp4", "fpsgen compare a.mp4 b.mp4 --no-video --json")

First = Annotated[str, options.argument("A", "A video, shown on the left.")]
Second = Annotated[str, options.argument("B", "Another of the same size, rate and length.")]


@takes_settings("compare")
def compare(a: First, b: Second, given: dict[str, Any]) -> None:
    """Compare two videos frame by frame (PSNR, SSIM, VMAF, XPSNR) and write them side by side.

    stdout: the figures, then the path of the side-by-side MP4.
    """
    settings = gather(given)
    paths = Path(a), Path(b)
    for path in paths:
        if not os.path.isfile(path):
            raise FpsgenError(f"{show(path)} is not a file", "name two MP4 files", BAD_INPUT)
    target = target_of(*paths, settings) if settings.video else None

    from fpsgen.evaluate.compare import compare_videos, side_by_side
    from fpsgen.evaluate.ffmpeg_metrics import vmaf, xpsnr
    from fpsgen.video import write_video

    found = compare_videos(*paths)
    same_files = filecmp.cmp(*paths, shallow=False)
    perceived = {"vmaf": vmaf(paths[1], paths[0]), "xpsnr_db": xpsnr(paths[1], paths[0])}
    if not settings.json and not settings.quiet:
        print("\n".join([*lines(found, same_files), *perceived_lines(perceived)]), flush=True)
    if target is not None:
        make_folder(target.parent)
        write_video(side_by_side(*paths), target, found.fps or 1, None, settings.overwrite)
    if settings.json:
        result = {"a": a, "b": b, "identical_files": same_files, **as_json(found), **perceived}
        console.print_json("compare", [result | {"path": str(target) if target else None}])
    elif target is not None:
        print(target, flush=True)


def target_of(a: Path, b: Path, settings: Settings) -> Path:
    """Where the side-by-side video goes: the file of -o, or <a>-vs-<b>.mp4. Raises FpsgenError USAGE, DISK."""
    from fpsgen.pipeline.output import OUTPUT_FOLDER, PNG, VIDEO, free_name, is_folder, resolve_output, slug

    name = f"{slug(a.stem)[:20]}-vs-{slug(b.stem)[:20]}"
    output = settings.output
    if output is None or is_folder(output):
        path = Path(output or OUTPUT_FOLDER) / f"{name}{VIDEO}"
        output = str(path if settings.overwrite else free_name(path))
    if output.lower().endswith(PNG):
        raise FpsgenError(f"-o {show(output)} is one picture", "name a file ending in .mp4, .gif or .webp", USAGE)
    return resolve_output(output, name, 0, settings.overwrite)[0]


def lines(found: Comparison, same_files: bool) -> list[str]:
    """The figures for a person."""
    peak, alike = found.psnr, found.ssim
    same = "the files are identical" if same_files else "the frames are identical"
    first = f"frames  {len(peak)}" + (f", {same}" if not found.mean_square.any() else "")
    each = f"of frames {median(peak):.2f} ({peak.min():.2f} to {peak.max():.2f})"
    second = f"PSNR    {found.psnr_of_all:.2f} dB; {each}"
    each = f"of frames {median(alike):.4f} ({alike.min():.4f} to {alike.max():.4f})"
    return [first, second, f"SSIM    {alike.mean():.4f}; {each}"]


def perceived_lines(figures: dict[str, float | None]) -> list[str]:
    """VMAF and XPSNR of B against A, where this ffmpeg can tell."""
    from fpsgen.evaluate.ffmpeg_metrics import EQUAL_DB

    score, peak = figures["vmaf"], figures["xpsnr_db"]
    found = [] if score is None else [f"VMAF    {score:.1f}"]
    return found if peak is None else [*found, f"XPSNR   {peak:.2f} dB" if peak < EQUAL_DB else "XPSNR   equal"]


def as_json(found: Comparison) -> dict[str, Any]:
    return {
        "identical_frames": not found.mean_square.any(),
        "frames": len(found.mean_square),
        "width": found.width,
        "height": found.height,
        "fps": found.fps,
        "psnr_db": finite(found.psnr_of_all),
        "psnr_db_of_frames": [finite(value) for value in found.psnr],
        "ssim": round(float(found.ssim.mean()), 5),
        "ssim_of_frames": [round(float(value), 5) for value in found.ssim],
    }


def finite(value: float) -> float | None:
    """A PSNR for JSON, which has no infinity: None where frames are equal."""
    return round(float(value), 3) if value != float("inf") else None
