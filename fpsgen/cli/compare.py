"""`fpsgen compare`: how far one video is from another, in figures and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpsgen.cli import console, options
from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.settings.gather import gather
from fpsgen.text import show

First = Annotated[str, typer.Argument(metavar="A", help="A video, shown on the left.", show_default=False)]
Second = Annotated[str, typer.Argument(metavar="B", help="Another of the same size.", show_default=False)]


def compare(
    a: First,
    b: Second,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two videos frame by frame (PSNR, SSIM) and write them side by side.

    stdout: the figures and the path of the side-by-side MP4.
    """
    settings = gather({"output": output})
    paths = [Path(a), Path(b)]
    for path in paths:
        if not path.is_file():
            raise FpsgenError(f"{show(path)} is not a file", "name two MP4 files", BAD_INPUT)
    from fpsgen.pipeline.output import resolve_output

    name = f"{paths[0].stem} vs {paths[1].stem}"
    target, _ = resolve_output(settings.output, name, 0, bool(overwrite))

    import numpy as np

    from fpsgen.video import read_frames, write_mp4

    (left, fps), (right, other_fps) = (read_frames(path) for path in paths)
    if left.shape != right.shape:
        sizes = [f"{x.shape[2]}x{x.shape[1]}, {x.shape[0]} frames" for x in (left, right)]
        raise FpsgenError(
            f"the videos differ in size: {sizes[0]} and {sizes[1]}", "compare videos of one size and length", BAD_INPUT
        )
    from fpsgen.evaluate.metrics import psnr, ssim

    peak, alike = psnr(left, right), ssim(left, right)
    mean_square = float(((left.astype(np.float64) - right) ** 2).mean())
    over_all = float("inf") if mean_square == 0 else 10 * float(np.log10(255**2 / mean_square))
    target.parent.mkdir(parents=True, exist_ok=True)
    written = write_mp4(np.concatenate([left, right], axis=2), target, max(1, round(fps)), None, bool(overwrite))
    result = {
        "a": a,
        "b": b,
        "identical_files": paths[0].read_bytes() == paths[1].read_bytes(),
        "identical_frames": mean_square == 0,
        "frames": len(left),
        "psnr_db": finite(over_all),
        "psnr_db_of_frames": [finite(value) for value in peak],
        "ssim": round(float(alike.mean()), 5),
        "ssim_of_frames": [round(float(value), 5) for value in alike],
        "path": str(written),
    }
    if fps != other_fps:
        console.warning(f"frame rates differ: {fps:g} and {other_fps:g}; frames were compared one by one")
    if as_json:
        console.print_json("compare", [result])
        return
    if not quiet:
        same = "the files are identical" if result["identical_files"] else "the frames are identical"
        print(f"frames  {len(left)}" + (f", {same}" if mean_square == 0 else ""))
        print(f"PSNR    {over_all:.2f} dB; of frames {np.median(peak):.2f} ({peak.min():.2f} to {peak.max():.2f})")
        print(f"SSIM    {alike.mean():.4f}; of frames {np.median(alike):.4f} ({alike.min():.4f} to {alike.max():.4f})")
    print(written, flush=True)


def finite(value: float) -> float | None:
    """A PSNR for JSON, which has no infinity: None where frames are equal."""
    return round(float(value), 3) if value != float("inf") else None
