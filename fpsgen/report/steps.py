"""Rows of `fpsgen bench steps` as text and as a chart."""

from __future__ import annotations

from typing import Any

from fpsgen.attention.methods import METHODS
from fpsgen.report import charts
from fpsgen.report.lines import columns

SIZE = "max-width:640px;font:13px system-ui,sans-serif;background:#fff;--line:#bbb"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per method and profile: mean SNR, least cosine, steps."""
    shown = [["", "profile", "steps", "density", "SNR, dB", "cosine, least"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for profile in dict.fromkeys(row["profile"] for row in own):
            part = [row for row in own if row["profile"] == profile]
            density = part[0]["density"]
            snr = sum(row["snr_db"] for row in part) / len(part)
            cosine = min(row["cosine"] for row in part)
            kept = "-" if density is None else f"{density:.0%}"
            shown.append([method, profile, str(len(part)), kept, f"{snr:.1f}", f"{cosine:.4f}"])
    return columns(shown)


def chart(rows: list[dict[str, Any]]) -> str:
    """SNR of the velocity by denoising step, one curve per method, as an SVG document."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    curves = [(name, METHODS[name].colour, [r["snr_db"] for r in rows if r["method"] == name]) for name in methods]
    body = charts.lines(curves, "denoising step", "SNR of the velocity, dB")
    names = "".join(
        f'<text x="{60 + 70 * i}" y="32" fill="{colour}">{name}</text>' for i, (name, colour, _) in enumerate(curves)
    )
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" style="{SIZE}"'
    return body.replace("<svg", opening, 1).replace("</svg>", f"{names}</svg>", 1) + "\n"
