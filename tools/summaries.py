"""Tables made of rows that other tables have: figures/headline.json (README) and figures/paper.json.

`python -m tools.summaries` writes them from the other files of figures/; with --check it changes nothing and fails
where they differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.command_line import parser_of

# kernel and end to end, over BF16: arXiv 2506.04648, table 1 (14B, 720p, one H20)
PAPER = {"fp8": (1.84, 1.26), "sta": (5.15, 3.60), "fps": (7.09, 4.96)}
DENSITY = 0.2  # mean of the preset "paper"
BASELINES = {"fa3": "fa3-bf16", "cudnn": "sdpa-cudnn"}
COLUMNS = {
    "method": "Method",
    "paper_kernel": "Paper, attention, H20",
    "fa3": "Here, over FlashAttention-3 bf16",
    "cudnn": "Here, over cuDNN bf16",
    "density": "Density here",
    "paper_whole": "Paper, end to end, 14B 720p",
    "wan2.1-14b": "Here, denoising, 14B 720p",
    "wan2.1-1.3b": "Here, denoising, 1.3B 720p",
}
SHAPES = ("wan2.1-14b", "wan2.1-1.3b")
ORIGIN = ("commit", "device", "versions")
SIZE = {"width": 1280, "height": 720}
ATTENTION = {"shape": "720p", "heads": 12, "batch": 1, "tiles": "fit"}

Rows = list[dict[str, Any]]


def headline(kernel: Rows, bench: Rows, whole: Rows, backward: Rows) -> dict[str, Any]:
    """README's table, from rows of those files. Raises ValueError where one was not measured."""
    found = []
    for what, model, schedule in (
        ("Denoising, Wan2.1-14B at 720p", "wan2.1-14b", "paper"),
        ("Denoising, Wan2.1-1.3B at 720p", "wan2.1-1.3b", "paper"),
        ("The same by `safe`, for weights without that training", "wan2.1-1.3b", "safe"),
    ):
        row = _last(bench, SIZE, model=model, method="fps", schedule=schedule, baseline="bf16")
        text = f"**{row['speedup_denoise']:.1f} times** as fast, at a density of {row['density']:.0%}"
        found.append({"what": what, "fpsgen": text} | _origin(row))
    row = _last(whole, what="Wan2.1-14B 720p, 50 steps")
    text = f"**{float(row['total']):.0f} s** in a fresh process, {float(row['loading']):.0f} of them import and load"
    what = "A whole video of Wan2.1-14B, 720p, 50 steps, prompt to MP4"
    found.append({"what": what, "fpsgen": text} | _origin(row))
    dense = _last(kernel, ATTENTION, method="fa3-fp8")
    row = min((r for r in kernel if _is(r, ATTENTION, method="fps")), key=lambda r: r["density"])
    text = (
        f"**{row['attend_tflops']:.0f} TFLOP/s**; FlashAttention-3's dense FP8 kernel has {dense['attend_tflops']:.0f}"
    )
    found.append({"what": f"Attention kernel in FP8, 720p, at {row['density']:.1%}", "fpsgen": text} | _origin(row))
    row = min((r for r in backward if _is(r, shape="720p", precision="FP8")), key=lambda r: r["density"])
    text = f"**{row['times_cudnn']:.1f} times** as fast as dense cuDNN"
    found.append({"what": f"Attention with its gradient, 720p, at {row['kept']}", "fpsgen": text} | _origin(row))
    return {"columns": {"what": "What", "fpsgen": "fpsgen"}, "rows": found}


def _last(rows: Rows, *shared: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    found = [row for row in rows if _is(row, *shared, **wanted)]
    if not found:
        raise ValueError(f"no row of {wanted}")
    return found[-1]


def _is(row: dict[str, Any], *shared: dict[str, Any], **wanted: Any) -> bool:
    return all(row.get(key) == value for each in (*shared, wanted) for key, value in each.items())


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    """Where a row comes from, by the versions that all kinds of rows name."""
    return {key: row[key] for key in ORIGIN} | {"versions": {key: row["versions"][key] for key in ("torch", "triton")}}


def paper(kernel: Rows, bench: Rows) -> dict[str, Any]:
    """The paper's table 1 beside what is measured here. A figure that was not measured is empty.

    Ours: 720p; the kernel at the density nearest to what FPSAttention's speed-ups imply, over both bf16 baselines of
    the same process; end to end is denoising of both shapes with random weights and the schedule "paper", over
    diffusers with PyTorch's attention (cuDNN).
    """
    rows = [row for row in kernel if _is(row, ATTENTION)]
    whole = {(row["model"], row["method"]): row for row in bench if _as_the_paper(row)}
    found = []
    for method, (paper_kernel, paper_whole) in PAPER.items():
        own = [row for row in rows if row["method"] == method]
        nearest = min(own, key=lambda row: abs(row["density"] - DENSITY))
        line: dict[str, Any] = {"method": method, "paper_kernel": f"{paper_kernel:.2f}x"}
        line |= {"paper_whole": f"{paper_whole:.2f}x", "density": f"{nearest['density']:.1%}"}
        used = [nearest]
        for name, baseline in BASELINES.items():
            base = next((row for row in rows if row["method"] == baseline), None)
            line[name] = "" if base is None else f"{base['median_ms'] / nearest['median_ms']:.2f}x"
        for model in SHAPES:
            row = whole.get((model, method))
            used += [row] if row else []
            line[model] = f"{row['speedup_denoise']:.2f}x at {row['density']:.0%}" if row else "not measured"
        commits = list(dict.fromkeys(row["commit"] for row in used))
        found.append(line | {key: nearest[key] for key in ORIGIN} | {"commit": commits})
    return {"columns": COLUMNS, "rows": found}


def _as_the_paper(row: dict[str, Any]) -> bool:
    """One bench at 720p by the schedule "paper"; `speedup_denoise` is over the baseline of its own process."""
    return (
        (row["height"], row.get("baseline")) == (720, "bf16")
        and row["schedule"].partition("-")[0] == "paper"
        and row.get("speedup_denoise") is not None
        and row.get("bf16_backend") != "fa3"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write or check the tables of a checkout; the exit code."""
    parser = parser_of("summaries", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file is out of date")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of the rows")
    options = parser.parse_args(arguments)
    stale = 0
    for name, (make, sources) in TABLES.items():
        rows = [json.loads((options.figures / f"{s}.json").read_text(encoding="utf-8"))["rows"] for s in sources]
        path, text = options.figures / f"{name}.json", json.dumps(make(*rows), indent=1) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            print(f"{path} is out of date: run python -m tools.summaries", file=sys.stderr)
            stale = 1
        else:
            path.write_text(text, encoding="utf-8")
    return stale


TABLES: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "headline": (headline, ("kernel", "bench", "whole", "backward")),
    "paper": (paper, ("kernel", "bench")),
}


if __name__ == "__main__":
    sys.exit(main())
