"""Rows of `fpsgen bench steps` as text, as a chart, and as a table of the documents:
`python -m fpsgen.report.steps steps.jsonl > figures/steps-nano.json`.
"""

from __future__ import annotations

import json
from typing import Any

from fpsgen.attention.methods import METHODS
from fpsgen.report import charts
from fpsgen.report.lines import columns
from fpsgen.report.rows import rows_of_command_line

COLUMNS = {
    "method": "Method",
    "profile": "Profile",
    "steps": "Steps",
    "density": "Density",
    "snr": "SNR, dB, mean",
    "cosine": "Cosine, least",
}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each method and profile: its steps, density, mean SNR and least cosine, as texts."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for profile in dict.fromkeys(row["profile"] for row in own):
            part = [row for row in own if row["profile"] == profile]
            density = part[0]["density"]
            entry = {"method": method, "profile": profile, "steps": str(len(part))}
            entry["density"] = "-" if density is None else f"{density:.0%}"
            entry["snr"] = f"{sum(row['snr_db'] for row in part) / len(part):.1f}"
            found.append(entry | {"cosine": f"{min(row['cosine'] for row in part):.4f}"})
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each method and profile."""
    head = ["", "profile", "steps", "density", "SNR, dB", "cosine, least"]
    return columns([head, *([entry[key] for key in COLUMNS] for entry in summary(rows))])


def figure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What tools.figures takes: the same, each line with its origin, and the rows of all steps."""
    origin = {key: rows[0][key] for key in ("commit", "device", "versions", "model", "command")}
    return {"columns": COLUMNS, "rows": [entry | origin for entry in summary(rows)], "steps": rows}


def chart(rows: list[dict[str, Any]]) -> str:
    """SNR of the velocity by denoising step, one curve per method, as an SVG document."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    curves = [(name, METHODS[name].colour, [r["snr_db"] for r in rows if r["method"] == name]) for name in methods]
    body = charts.lines(curves, "denoising step", "SNR of the velocity, dB")
    return charts.document(body, [(name, colour) for name, colour, _ in curves])


if __name__ == "__main__":
    print(json.dumps(figure(rows_of_command_line("steps", __doc__)), indent=1))
