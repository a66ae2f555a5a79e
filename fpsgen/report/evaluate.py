"""Rows of `fpsgen evaluate` summed up: one line for each variant, as figures, as text and as a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpsgen.attention.methods import OURS
from fpsgen.attention.schedule import AS_SCHEDULED
from fpsgen.report import charts
from fpsgen.report.lines import columns, options, versions, with_figures
from fpsgen.report.template import embedded, fill
from fpsgen.text import plural

MEDIANS = ("psnr_db", "ssim", "vmaf", "xpsnr_db", "stlpips", "flicker", "denoise_s")
AXES = ("subject", "colour", "motion", "background")
COLUMNS = {
    "variant": "",
    "videos": "Videos",
    "density": "Density",
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "vmaf": "VMAF",
    "xpsnr_db": "XPSNR, dB",
    "stlpips": "ST-LPIPS",
    "flicker": "Flicker",
    "mse": "Velocity MSE",
    "right": "As prompted",
    "denoise_s": "Denoise, s",
    "options": "With",
}
TERMINAL = {
    "variant": "",
    "videos": "videos",
    "density": "density",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "vmaf": "VMAF",
    "mse": "velocity",
    "right": "prompted",
    "denoise_s": "denoise",
}  # what 80 columns hold
FORMS = {"ssim": "{:.3f}", "stlpips": "{:.3f}", "flicker": "{:.2f}", "denoise_s": "{:.2f}", "vmaf": "{:.0f}"}
SHOWN_PROMPTS = 4  # videos of so many prompts are inside the page


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each variant, in order. Medians over its videos: psnr_db (with quartiles) ... None without a value.
    mse, snr_db, cosine: means of the velocity over compared steps, also for each profile (velocity). shows: percent of
    clips that agree with their prompts, by axis and in all; None where no prompt can be read back.
    """
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        entry: dict[str, Any] = {key: own[0][key] for key in ("variant", "method", "schedule", "linear")}
        entry["options"] = options(own[0])
        entry |= {"videos": len(own), "density": _mean([row["density"] for row in own])}
        for key in MEDIANS:
            known = [row[key] for row in own if row[key] is not None]
            entry[key] = round(statistics.median(known), 4) if known else None
        known = [row["psnr_db"] for row in own if row["psnr_db"] is not None]
        quartiles = statistics.quantiles(known, n=4, method="inclusive") if len(known) > 1 else None
        entry["psnr_db_quartiles"] = quartiles and [round(quartiles[0], 2), round(quartiles[2], 2)]
        velocity = {}
        for profile in dict.fromkeys(profile for row in own for profile in row["velocity"]):
            velocity[profile] = _weighted([row["velocity"][profile] for row in own if profile in row["velocity"]])
        entry |= {"velocity": velocity} | dict.fromkeys(("mse", "snr_db", "cosine"))
        if velocity:
            whole = _weighted(list(velocity.values()))
            entry |= {key: whole[key] for key in ("mse", "snr_db", "cosine")}
        found.append(entry | {"shows": _shares([row["shows"] for row in own if row["shows"] is not None])})
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For a terminal: what was evaluated, a line for each variant, velocities by profile."""
    entries = summarize(rows)
    body = [list(TERMINAL.values()), *([texts[key] for key in TERMINAL] for texts in map(_cells, entries))]
    made_with = [f"{entry['variant']}: {entry['options']}" for entry in entries if entry["options"] != "-"]
    lines = [_setting(rows), *notes(rows), *made_with, *columns(body)]
    profiles = [
        [entry["variant"], profile, f"{error['mse']:.3g}", f"{error['snr_db']:.1f}", f"{error['cosine']:.4f}"]
        for entry in entries
        for profile, error in entry["velocity"].items()
    ]
    return lines + (columns([["", "profile", "velocity MSE", "SNR, dB", "cosine"], *profiles]) if profiles else [])


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page. Videos of the first prompts are read from their files, if they exist."""
    entries = summarize(rows)
    cells = [_cells(entry) for entry in entries]
    shown = with_figures(COLUMNS, cells)
    prompts = list(dict.fromkeys((row["prompt"], row["seed"]) for row in rows))
    groups = []
    for prompt, seed in prompts[:SHOWN_PROMPTS]:
        own = [row for row in rows if (row["prompt"], row["seed"]) == (prompt, seed) and Path(row["video"]).is_file()]
        videos = [{"name": _caption(row), "data": embedded(Path(row["video"]))} for row in own]
        groups.append({"prompt": f"{prompt} (seed {seed})", "videos": videos})
    points = [
        charts.Point(entry["variant"], 100 * entry["density"], entry["psnr_db"], _colour(entry))
        for entry in entries
        if entry["psnr_db"] is not None and entry["density"] is not None
    ]
    return fill(
        "evaluate.html",
        title=", ".join(entry["variant"] for entry in entries),
        setting=_setting(rows),
        command=rows[0]["command"],
        notes=notes(rows),
        heads=[COLUMNS[key] for key in shown],
        rows=[[texts[key] for key in shown] for texts in cells],
        profiles=[
            [entry["variant"], profile, error["steps"], f"{error['mse']:.3g}", f"{error['snr_db']:.1f}"]
            for entry in entries
            for profile, error in entry["velocity"].items()
        ],
        axes=[
            [entry["variant"], *(f"{entry['shows'][axis]:.0f}" for axis in (*AXES, "all"))]
            for entry in entries
            if entry["shows"]
        ],
        scatter=charts.scatter(points, "density, %", "PSNR to the reference, dB") if len(points) > 1 else "",
        groups=groups,
        rest=len(prompts) - len(groups),
    )


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know beside the figures."""
    found = [f"Reference (dense): {rows[0]['teacher']} by dense bf16 attention, same seeds; medians over videos"]
    if rows[0]["device"].startswith("CPU"):
        found.append("Measured on a CPU; a GPU has other kernels and other times")
    if any(row["stlpips"] is not None for row in rows):
        found.append("ST-LPIPS tolerates shifts and is not LPIPS: limits and tables of LPIPS do not apply to it")
    return found


def _colour(entry: dict[str, Any]) -> str:
    return charts.colour_of(OURS if entry["method"] == AS_SCHEDULED else entry["method"])


def _setting(rows: Sequence[dict[str, Any]]) -> str:
    row = rows[0]
    size = f"{row['model']}, {row['width']}x{row['height']}, {plural(row['frames'], 'frame')}"
    sampling = f"{plural(row['steps'], 'step')}, guidance {row['guidance']:g}"
    return f"{size}, {sampling}; {row['device']}, {versions(row)}, commit {row['commit'] or 'unknown'}"


def _caption(row: dict[str, Any]) -> str:
    peak = "" if row["psnr_db"] is None else f", {row['psnr_db']:.1f} dB"
    wrong = [] if row["shows"] is None else [axis for axis in AXES if not row["shows"][axis]]
    return row["variant"] + peak + (f", wrong: {', '.join(wrong)}" if wrong else "")


def _cells(entry: dict[str, Any]) -> dict[str, str]:
    """The texts of an entry, by column; "-" where there is no figure."""
    texts = {"variant": entry["variant"], "options": entry["options"], "videos": str(entry["videos"])}
    texts["density"] = "-" if entry["density"] is None else f"{entry['density']:.0%}"
    texts["mse"] = "-" if entry["mse"] is None else f"{entry['mse']:.3g}"
    texts["right"] = "-" if entry["shows"] is None else f"{entry['shows']['all']:.0f}%"
    for key in MEDIANS:
        texts[key] = "-" if entry[key] is None else FORMS.get(key, "{:.1f}").format(entry[key])
    if entry["psnr_db"] is None and entry["ssim"] == 1:
        texts["psnr_db"] = "equal"
    return texts


def _weighted(errors: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over all compared steps, with their number."""
    steps = sum(error["steps"] for error in errors)
    means = {
        key: float(f"{sum(error['steps'] * error[key] for error in errors) / steps:.6g}")
        for key in ("mse", "snr_db", "cosine")
    }
    return {"steps": steps, **means}


def _shares(agreements: Sequence[dict[str, bool]]) -> dict[str, float] | None:
    if not agreements:
        return None
    shares = {axis: 100 * sum(each[axis] for each in agreements) / len(agreements) for axis in AXES}
    shares["all"] = 100 * sum(all(each.values()) for each in agreements) / len(agreements)
    return {axis: round(share, 1) for axis, share in shares.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), 4) if known else None
