"""The rows of proof.py as a table and as charts, in the form of figures/.

    python -m recipes.nano.proof_report DIR/proof.json --figures figures

DIR/proof.json is what `proof --table` writes. Writes proof.json, proof-error.svg (held-out velocity error of the
distilled arms by step) and proof-flow.svg (flow loss in training, sparse beside dense: the paper's figure 5), and
prints the table. Spread is the largest value less the smallest one over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from fpsgen.files import write_text
from fpsgen.report import charts
from fpsgen.report.lines import columns

COLUMNS = {
    "arm": "Arm",
    "seeds": "Seeds",
    "density": "Density",
    "error": "Velocity error",
    "flow": "Flow loss",
    "psnr": "PSNR to dense, dB",
    "ssim": "SSIM",
    "right": "As prompted, %",
}
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e")
# arms whose schedules are trained in others
UNTRAINED = ("fps", "fps, one window", "fps, early dense", "fps, wider windows")
BINS = 10  # points of a curve of losses
Row = dict[str, Any]


def summary(rows: Sequence[Row]) -> list[Row]:
    """A line for each arm, in the order of the rows. Raises ValueError where rows are of different sizes."""
    if len({json.dumps(row["size"], sort_keys=True) for row in rows}) > 1:
        raise ValueError("the rows are of runs of different sizes")
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        entry = {"arm": arm, "seeds": len(own), "density": round(own[0]["density"], 3)}
        entry |= {
            "error": _spread([statistics.fmean(row["validation"]["distill"].values()) for row in own], "{:.3g}"),
            "flow": _spread([statistics.fmean(row["validation"]["flow"].values()) for row in own], "{:.4f}"),
            "psnr": _spread([row["psnr_db"] for row in own], "{:.2f}"),
            "ssim": _spread([row["ssim"] for row in own], "{:.3f}"),
            "right": _spread([row["score"]["all"] for row in own], "{:.1f}"),
        }
        found.append(entry | {key: own[0][key] for key in ("commit", "device", "versions")})
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """For a terminal."""
    lines = [[str(entry[key]) for key in COLUMNS] for entry in summary(rows)]
    return columns([list(COLUMNS.values()), *lines])


def error_chart(rows: Sequence[Row]) -> str:
    """Velocity error on held-out pairs of the teacher by step, mean over profiles and seeds; "" without such arms."""
    untrained = {row["schedule"]: row["validation"]["distill"] for row in rows if row["arm"] in UNTRAINED}
    curves = []
    for arm in _trained(rows, "distilled"):
        own = [row for row in rows if row["arm"] == arm]
        points = [untrained[own[0]["schedule"]]] if own[0]["schedule"] in untrained else []
        means = [statistics.fmean(point.values()) for point in points]
        for step in sorted({entry["step"] for row in own for entry in row["curve"]}):
            at_step = [entry["distill"] for row in own for entry in row["curve"] if entry["step"] == step]
            means.append(statistics.fmean(statistics.fmean(errors.values()) for errors in at_step))
        curves.append((arm, means))
    return _chart(rows, curves, "velocity error")


def flow_chart(rows: Sequence[Row]) -> str:
    """Flow loss of training by step, mean over profiles and seeds; "" without arms trained by it."""
    curves = []
    for arm in _trained(rows, "flow matching"):
        parts = [part for row in rows if row["arm"] == arm for part in row["losses"]]
        last = max(part["step"] for part in parts)
        means = []
        for number in range(BINS):
            low, high = last * number / BINS, last * (number + 1) / BINS
            within: dict[str, list[float]] = {}
            for part in parts:
                if low < part["step"] <= high:
                    within.setdefault(part["profile"], []).append(part["loss"])
            if within:
                means.append(statistics.fmean(statistics.fmean(losses) for losses in within.values()))
        curves.append((arm, means))
    return _chart(rows, curves, "flow loss")


def figure(rows: Sequence[Row]) -> Row:
    """What tools.figures takes: a line for each arm with its origin, and the rows of all seeds."""
    return {"columns": COLUMNS, "rows": summary(rows), "seeds": list(rows)}


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """proof.json and the charts."""
    write_text(json.dumps(figure(rows)) + "\n", folder / "proof.json", overwrite=True)
    for name, chart in (("error", error_chart(rows)), ("flow", flow_chart(rows))):
        if chart:
            write_text(chart, folder / f"proof-{name}.svg", overwrite=True)


def _trained(rows: Sequence[Row], kind: str) -> list[str]:
    """Arms with curves over the steps that most arms have, and so over one axis."""
    own = [row for row in rows if kind in row["arm"] and row.get("losses")]
    return list(dict.fromkeys(row["arm"] for row in own if row["losses"][-1]["step"] <= row["size"]["steps"]))


def _chart(rows: Sequence[Row], curves: Sequence[tuple[str, list[float]]], label: str) -> str:
    drawn = [(name, colour, values) for (name, values), colour in zip(curves, cycle(COLOURS), strict=False)]
    body = charts.lines(drawn, "step", label, max((row["size"]["steps"] for row in rows), default=1))
    return charts.document(body, [(name, colour) for name, colour, _ in drawn]) if body else ""


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{form.format(statistics.fmean(known))} ({max(known) - min(known):.2g})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--figures", type=Path, required=True, help="folder that the files go to")
    chosen = parser.parse_args(arguments)
    rows = json.loads(chosen.rows.read_text(encoding="utf-8"))["seeds"]
    print("\n".join(table(rows)))
    write_report(rows, chosen.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
