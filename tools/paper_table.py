"""figures/paper.json: the paper's table 1 (arXiv 2506.04648, 14B, 720p, one H20) beside what is measured here.

`python -m tools.paper_table` writes it from figures/kernel.json and figures/bench.json; with --check it changes nothing
and fails where it differs. Ours: 720p; the kernel at the density nearest to what FPSAttention's speed-ups imply, over
both bf16 baselines of the same process; end to end is denoising of both shapes with random weights and the schedule
"paper", over diffusers with PyTorch's attention (cuDNN).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# kernel and end to end, over BF16
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


def table(kernel: list[dict[str, Any]], bench: list[dict[str, Any]]) -> dict[str, Any]:
    """What figures/paper.json holds; kernel, bench: rows of those files. A figure that was not measured is empty."""
    rows = [row for row in kernel if (row["shape"], row["heads"], row["batch"], row["tiles"]) == ("720p", 12, 1, "fit")]
    whole = {(row["model"], row["method"]): row for row in bench if _as_the_paper(row)}
    found = []
    for method, (paper_kernel, paper_whole) in PAPER.items():
        own = [row for row in rows if row["method"] == method]
        nearest = min(own, key=lambda row: abs(row["density"] - DENSITY))
        line: dict[str, Any] = {"method": method, "paper_kernel": f"{paper_kernel:.2f}x"}
        line |= {"paper_whole": f"{paper_whole:.2f}x", "density": f"{nearest['density']:.1%}"}
        for name, baseline in BASELINES.items():
            base = next((row for row in rows if row["method"] == baseline), None)
            line[name] = "" if base is None else f"{base['median_ms'] / nearest['median_ms']:.2f}x"
        for model in SHAPES:
            row = whole.get((model, method))
            line[model] = f"{row['speedup_denoise']:.2f}x at {row['density']:.0%}" if row else "not measured"
        found.append(line | {key: nearest[key] for key in ORIGIN})
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
    """Write or check the table of a checkout; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.paper_table", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the file is out of date")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of the rows")
    options = parser.parse_args(arguments)
    kernel, bench = (
        json.loads((options.figures / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        for name in ("kernel", "bench")
    )
    path = options.figures / "paper.json"
    text = json.dumps(table(kernel, bench), indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    if options.check:
        print(f"{path} is out of date: run python -m tools.paper_table", file=sys.stderr)
        return 1
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
