"""One self-contained HTML page from rows of `fpsgen bench`. It fetches nothing: pictures and videos are inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fpsgen.attention.methods import OURS
from fpsgen.report import charts
from fpsgen.report.bench import (
    COLUMNS,
    PROFILE_COLUMNS,
    bands,
    cells,
    is_baseline,
    made_with,
    marks,
    notes,
    origin_numbers,
    origins,
    profile_cells,
)
from fpsgen.report.lines import with_figures
from fpsgen.report.template import embedded, fill


def page(rows: list[dict[str, Any]]) -> str:
    """The page. rows: of one bench or of several, baselines first; MP4s are read from their "video", if they exist.

    Raises FpsgenError BAD_INPUT where a row names a file that is no video: what it holds would go out with the page.
    """
    numbers = origin_numbers(rows)
    several = len(set(numbers)) > 1
    mark = dict(zip(map(id, rows), marks(rows), strict=True))
    texts = [cells(row) for row in rows]
    shown = [key for key in with_figures(COLUMNS, texts) if key != "options"]  # these are long: notes say them
    videos = [
        (row["method"] + mark[id(row)] + _peak(row), Path(row["video"]))
        for row in rows
        if row["video"] and os.path.isfile(row["video"])
    ]
    benches: list[list[dict[str, Any]]] = [[] for _ in set(numbers)]
    for row, number in zip(rows, numbers, strict=True):
        benches[number - 1].append(row)

    def line(texts: list[str], setting: object) -> list[str]:
        """With its setting behind the method, where there are several."""
        return [texts[0], *[str(setting)] * several, *texts[1:]]

    return fill(
        "page.html",
        title=" / ".join(dict.fromkeys(row["method"] for row in rows)),
        origins=[
            {"text": text, "command": own[0].get("command", "")}
            for text, own in zip(origins(rows), benches, strict=True)
        ],
        notes=[*notes(rows), *made_with(rows)],
        heads=line([COLUMNS[key] for key in shown], "Setting"),
        rows=[
            {"ours": row["method"] == OURS, "cells": line([own[key] for key in shown], n)}
            for row, own, n in zip(rows, texts, numbers, strict=True)
        ],
        profile_heads=line(list(PROFILE_COLUMNS), "Setting"),
        profiles=[line(texts, n) for row, n in zip(rows, numbers, strict=True) for texts in profile_cells(row)],
        bands=bands(rows),
        benches=[{"bars": _bars(own), "steps": _steps(own), "legend": _legend(own)} for own in benches],
        scatter=_scatter(rows, mark),
        videos=[{"name": name, "data": embedded(path)} for name, path in videos],
    )


def _legend(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"name": name, "colour": charts.colour_of(name)} for name in dict.fromkeys(row["method"] for row in rows)]


def _peak(row: dict[str, Any]) -> str:
    return "" if row["psnr_db"] is None else f", {row['psnr_db']:.1f} dB"


def _steps(rows: list[dict[str, Any]]) -> str:
    known = [(row["method"], charts.colour_of(row["method"]), row["steps_s"]) for row in rows if row.get("steps_s")]
    return charts.lines(known, "denoising step", "seconds")


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


def _scatter(rows: list[dict[str, Any]], mark: dict[int, str]) -> str:
    """mark: behind a row's name, by id."""
    points = [
        charts.Point(
            row["method"] + mark[id(row)], row["speedup_denoise"], row["psnr_db"], charts.colour_of(row["method"])
        )
        for row in rows
        if row["psnr_db"] is not None
    ]
    return "" if len(points) < 2 else charts.scatter(points, "speed-up of denoising", "PSNR to the baseline, dB")
