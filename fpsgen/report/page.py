"""One self-contained HTML page from rows of `fpsgen bench`. It fetches nothing: pictures and videos are inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fpsgen.report import charts
from fpsgen.report.bench import (
    COLUMNS,
    PROFILE_COLUMNS,
    bands,
    cells,
    is_baseline,
    notes,
    profile_cells,
    setting,
    where,
)
from fpsgen.report.template import embedded, fill

OURS = "fps"


def page(rows: list[dict[str, Any]]) -> str:
    """The page. rows: of one bench or of several, baselines first; MP4s are read from their "video", if they exist.

    Raises FpsgenError BAD_INPUT where a row names a file that is no video: what it holds would go out with the page.
    """
    first = rows[0]
    shown = [key for key in COLUMNS if any(cells(row)[key] != "-" for row in rows)]
    videos = [(_label(row, rows), Path(row["video"])) for row in rows if row["video"] and os.path.isfile(row["video"])]
    return fill(
        "page.html",
        title=" / ".join(dict.fromkeys(row["method"] for row in rows)),
        prompt=first["prompt"],
        origins=list(dict.fromkeys(text for row in rows for text in (setting(row), where(row)))),
        command=first.get("command", ""),
        notes=notes(rows),
        heads=[COLUMNS[key] for key in shown],
        rows=[{"ours": row["method"] == OURS, "cells": [cells(row)[key] for key in shown]} for row in rows],
        profile_heads=PROFILE_COLUMNS,
        profiles=[line for row in rows for line in profile_cells(row)],
        bands=bands(rows),
        bars=_bars(rows),
        scatter=_scatter(rows),
        steps=charts.lines(
            [(row["method"], charts.colour_of(row["method"]), row["steps_s"]) for row in rows if row.get("steps_s")],
            "denoising step",
            "seconds",
        ),
        keys=[
            {"name": name, "colour": charts.colour_of(name)} for name in dict.fromkeys(row["method"] for row in rows)
        ],
        videos=[{"name": name, "data": embedded(path)} for name, path in videos],
    )


def _label(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The method and its PSNR, with the device where the rows come from several."""
    several = len({other["device"] for other in rows}) > 1
    peak = "" if row["psnr_db"] is None else f", {row['psnr_db']:.1f} dB"
    return (f"{row['method']}, {row['device']}" if several else row["method"]) + peak


def _bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    longest = max(_seconds(row) for row in rows)
    bars = []
    for row in rows:
        stages = {name: spread["median"] for name, spread in row["stages_s"].items()}
        inside = stages["denoise"] * (row["attention_share"] or 0)
        parts = [("self-attention", inside), ("rest of denoising", stages["denoise"] - inside)]
        parts += [(name, seconds) for name, seconds in stages.items() if name != "denoise"]
        bars.append(
            {
                "name": row["method"],
                "text": f"denoising {stages['denoise']:.2f} s, {row['speedup_denoise']:.2f}x"
                + ("" if is_baseline(row) else f" over {row['baseline']}"),
                "parts": [
                    {
                        "width": round(100 * seconds / longest, 2),
                        "colour": charts.colour_of(row["method"]) if index < 2 else charts.OTHER_COLOUR,
                        "title": f"{name}: {seconds:.2f} s",
                    }
                    for index, (name, seconds) in enumerate(parts)
                    if seconds > 0
                ],
            }
        )
    return bars


def _seconds(row: dict[str, Any]) -> float:
    return sum(spread["median"] for spread in row["stages_s"].values())


def _scatter(rows: list[dict[str, Any]]) -> str:
    known = [row for row in rows if row["psnr_db"] is not None]
    points = [
        charts.Point(row["method"], row["speedup_denoise"], row["psnr_db"], charts.colour_of(row["method"]))
        for row in known
    ]
    return "" if len(points) < 2 else charts.scatter(points, "speed-up of denoising", "PSNR to the baseline, dB")
