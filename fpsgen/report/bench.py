"""Rows of `fpsgen bench` as a person reads them: cells, lines of text, Markdown. Reads rows alone."""

from __future__ import annotations

from typing import Any

from fpsgen.attention.methods import METHODS
from fpsgen.report.lines import columns, options, versions
from fpsgen.text import plural, show

EQUAL_DB = 100.0  # an XPSNR of equal videos, see evaluate/ffmpeg_metrics.py
COLUMNS = {
    "method": "Method",
    "schedule": "Schedule",
    "step": "s / step",
    "denoise": "Denoise, s",
    "total": "Total, s",
    "speedup": "Speed-up",
    "share": "Attention",
    "density": "Density",
    "memory": "Peak memory",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "vmaf": "VMAF",
    "xpsnr": "XPSNR, dB",
    "stlpips": "ST-LPIPS",
    "flicker": "Flicker",
    "options": "With",
}
SMALL = "nano"
TERMINAL = {
    "method": "",
    "median": "s/step",
    "denoise": "denoise",
    "speedup": "speed-up",
    "share": "attn",
    "density": "density",
    "memory": "memory",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "vmaf": "VMAF",
}


def cells(row: dict[str, Any]) -> dict[str, str]:
    """The texts of a row; "-" where there is no figure."""
    memory, step = row["peak_memory"]["cuda_bytes"], row["step_s"]
    same_files = row.get("xpsnr_db") == EQUAL_DB
    return {
        "method": row["method"] + (" (baseline)" if is_baseline(row) else ""),
        "schedule": row["schedule"],
        "options": options(row),
        "median": f"{step['median']:.3f}",
        "step": f"{step['median']:.3f} ({step['min']:.3f}-{step['max']:.3f})",
        "denoise": f"{row['stages_s']['denoise']['median']:.2f}",
        "total": f"{row['total_s']['median']:.2f}",
        "speedup": f"{row['speedup_denoise']:.2f}x",
        "share": _text(row["attention_share"], "{:.0%}"),
        "density": _text(row["density"], "{:.0%}"),
        "memory": "-" if memory is None else f"{memory / 1e9:.1f} GB",
        "psnr": "equal" if row["psnr_db"] is None and row["ssim"] == 1 else _text(row["psnr_db"], "{:.1f}"),
        "ssim": _text(row["ssim"], "{:.3f}"),
        "vmaf": _text(row.get("vmaf"), "{:.0f}"),
        "xpsnr": "equal" if same_files else _text(row.get("xpsnr_db"), "{:.1f}"),
        "stlpips": _text(row.get("stlpips"), "{:.3f}"),
        "flicker": _text(row.get("flicker"), "{:.2f}"),
    }


PROFILE_COLUMNS = ("Method", "Profile", "Steps", "Runs as", "Kernel", "Density", "Tile", "Window", "s / step")
BANDS = (
    # arXiv 2506.04648, table 1: least and best of six methods
    "For comparison, published PSNR of Wan2.1-1.3B at 480p against bf16 of the same seed: 17.7 dB (SpargeAttn) to "
    "21.4 dB (FPSAttention, trained)",
    # TensorRT-LLM, pull request 12947
    "Others use LPIPS (AlexNet), which is not measured here: below 0.30 the video is taken as the same, up to 0.55 the "
    "scene is; ST-LPIPS is another measure, to which these limits do not apply",
)


def profile_cells(row: dict[str, Any]) -> list[list[str]]:
    """What ran, a line for each profile of the row's schedule."""
    return [
        [
            row["method"],
            entry["profile"],
            str(entry["steps"]),
            entry["method"],
            entry["kernel"],
            _text(entry["density"], "{:.1%}"),
            *keys_seen(entry),
            f"{entry['step_s']['median']:.3f}",
        ]
        for entry in row.get("profiles", ())
    ]


def keys_seen(entry: dict[str, Any]) -> tuple[str, str]:
    """Tile and window of a profile of a row, where its method has such."""
    method = METHODS.get(entry["method"])
    tile, window = (" x ".join(map(str, entry.get(key) or ())) or "-" for key in ("tile", "window"))
    if method is not None and not method.tiled:
        return "-", "all"
    return tile, "all" if method and method.dense else "chosen" if method and method.online else window


def bands(rows: list[dict[str, Any]]) -> list[str]:
    """What others call near and far, where the rows have a quality."""
    return list(BANDS) if any(row["psnr_db"] is not None for row in rows) else []


def is_baseline(row: dict[str, Any]) -> bool:
    return row["method"] == row["baseline"]


def setting(row: dict[str, Any]) -> str:
    """What was measured, on one line. Random weights have a random prompt."""
    model = f"{row['model']}, " + ("random weights" if row["random_weights"] else f'"{show(row["prompt"])}"')
    size = f"{row['width']}x{row['height']}, {plural(row['frames'], 'frame')}, {row['tokens']} tokens"
    steps = plural(row["steps"], "step")
    return f"{model}, {size}, {steps}, guidance {row['guidance']:g}, seed {row['seed']}"


def where(row: dict[str, Any]) -> str:
    """Where it was measured, on one line."""
    commit = f", commit {row['commit']}" if row["commit"] else ""
    return f"{row['device']}, {versions(row)}{commit}, {row['created']}"


def origins(rows: list[dict[str, Any]]) -> list[str]:
    """What was measured and where, for each bench once, in the order in which `origin_numbers` counts them from 1."""
    return list(dict.fromkeys(map(_origin, rows)))


def origin_numbers(rows: list[dict[str, Any]]) -> list[int]:
    """The bench that each row is of."""
    known = {text: number for number, text in enumerate(origins(rows), 1)}
    return [known[_origin(row)] for row in rows]


def marks(rows: list[dict[str, Any]]) -> list[str]:
    """What tells the benches of rows apart behind a name: " (1)", " (2)"; nothing where there is one bench."""
    numbers = origin_numbers(rows)
    return [f" ({number})" if len(set(numbers)) > 1 else "" for number in numbers]


def _origin(row: dict[str, Any]) -> str:
    return f"{setting(row)}. {where(row)}"


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What a reader must know beside the figures."""
    found = []
    on_cpu = any(row["device"].startswith("CPU") for row in rows)
    if on_cpu:
        kernels = ", ".join(dict.fromkeys(name for row in rows for name in row["kernels"]))
        found.append(f"Measured on a CPU (kernels: {kernels}); a GPU has other kernels and other times")
    if any(row["random_weights"] for row in rows):
        found.append("Random weights: only speed and memory were measured, there is no video")
    if any(row["model"] == SMALL and not row["random_weights"] for row in rows):
        found.append("nano is too small to gain much speed, and rounding alone can change what its videos show")
    if any(row.get("fused") for row in rows) and not all(row.get("fused") for row in rows):
        ours = "our VAE decoder" if on_cpu else "fused passes and our VAE decoder"  # none are fused on a CPU
        found.append(f"bf16 is diffusers as it comes; the other methods also have {ours}")
    backends = dict.fromkeys(row.get("bf16_backend") for row in rows if is_baseline(row))  # rows of 0.1 name none
    found += [f"The dense attention of bf16 is that of {name}" for name in backends if name not in (None, "auto")]
    return found


def made_with(rows: list[dict[str, Any]]) -> list[str]:
    """What rows have beside their schedule, a line for each; with its setting where there are several."""
    found = [(f"{row['method']}{mark}", options(row)) for row, mark in zip(rows, marks(rows), strict=True)]
    return [f"{name}: {text}" for name, text in found if text != "-"]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The table for a terminal, under what was measured and where, and what the sparse rows ran."""
    shown = [cells(row) | {"method": row["method"]} for row in rows]
    body = columns([list(TERMINAL.values()), *([line[key] for key in TERMINAL] for line in shown)])
    return [setting(rows[0]), where(rows[0]), *notes(rows), *bands(rows), *_sparse(rows), *made_with(rows), *body]


def _sparse(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each profile that leaves keys out: a speed-up means little without it."""
    found = []
    for row in rows:
        for profile in profile_cells(row):
            cell = dict(zip(PROFILE_COLUMNS, profile, strict=True))
            if cell["Density"] != "100.0%":
                what = f"{row['schedule']}, {cell['Profile']}: {plural(int(cell['Steps']), 'step')}"
                found.append(f"{what}, density {cell['Density']}, tile {cell['Tile']}, window {cell['Window']}")
    return list(dict.fromkeys(found))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of rows from any number of benches, each setting and machine named once under it."""
    head = "| " + " | ".join(COLUMNS.values()) + " | Setting |"
    body = [head, "|" + " --- |" * (len(COLUMNS) + 1)]
    numbers = origin_numbers(rows)
    body += [_line([*(cells(row)[key] for key in COLUMNS), str(n)]) for row, n in zip(rows, numbers, strict=True)]
    listed = [f"{number}. {text}." for number, text in enumerate(origins(rows), 1)]
    lines = [*body, "", *listed, *(f"\n{text}." for text in bands(rows))]
    ran = [[*line, str(n)] for row, n in zip(rows, numbers, strict=True) for line in profile_cells(row)]
    if ran:
        heads = [*PROFILE_COLUMNS, "Setting"]
        lines += ["", _line(heads), "|" + " --- |" * len(heads), *map(_line, ran)]
    return "\n".join(lines) + "\n"


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
