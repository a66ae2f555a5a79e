"""Rows of `fpsgen bench waterfall` as text and as a picture."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from fpsgen.report.charts import DOCUMENT
from fpsgen.report.lines import columns

WIDTH, ROW, LEFT, RIGHT = 640, 30, 170, 150
ATTENTION, REST, VAE = ("self-attention", "#16a34a"), ("rest of denoising", "#86c99b"), ("VAE", "#bbbbbb")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line a stage: seconds, speed-up of denoising and of all, SNR of the velocity. 80 columns hold it."""
    shown = [["seconds", "denoise", "attention", "VAE", "faster", "in all", "SNR, dB"]]
    for row in rows:
        error = row["error"]
        shown.append(
            [
                row["stage"],
                f"{row['denoise_s']['median']:.2f}",
                f"{row['attention_s']['median']:.2f}",
                "-" if row["vae_s"] is None else f"{row['vae_s']:.2f}",
                f"{row['faster_denoise']:.2f}x",
                f"{row['faster_total']:.2f}x",
                "-" if error is None else f"{error['snr_db']:.1f}",
            ]
        )
    return columns(shown)


def chart(rows: Sequence[dict[str, Any]]) -> str:
    """A bar for each stage: attention, the rest of denoising, decoding. An SVG document."""
    longest = max(row["denoise_s"]["median"] + (row["vae_s"] or 0) for row in rows)
    scale = (WIDTH - LEFT - RIGHT) / longest
    decoded = any(row["vae_s"] is not None for row in rows)
    parts, kinds = [], (ATTENTION, REST, VAE) if decoded else (ATTENTION, REST)
    for number, row in enumerate(rows):
        top, left = 8 + number * ROW, float(LEFT)
        denoise = row["denoise_s"]["median"]
        attention = row["attention_s"]["median"]
        parts.append(f'<text x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{html.escape(row["stage"])}</text>')
        lengths = [attention, denoise - attention, *[row["vae_s"] or 0.0] * decoded]
        for seconds, (name, colour) in zip(lengths, kinds, strict=True):
            width = max(0.0, seconds * scale)
            title = f"<title>{name}: {seconds:.2f} s</title>"
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="20" fill="{colour}">{title}</rect>'
            )
            left += width
        error = "" if row["error"] is None else f", {row['error']['snr_db']:.0f} dB"
        parts.append(f'<text x="{left + 6:.1f}" y="{top + 15}">{row["faster_total"]:.2f}x{error}</text>')
    foot = 8 + len(rows) * ROW
    for number, (name, colour) in enumerate(kinds):
        x = 8 + 155 * number
        parts.append(f'<rect x="{x}" y="{foot + 4}" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="{foot + 14}">{name}</text>')
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {foot + 24}" role="img" style="{DOCUMENT}"'
    return f'{opening} aria-label="seconds by stage">{"".join(parts)}</svg>\n'
