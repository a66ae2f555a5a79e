"""Tables of whole videos, from the rows that the commands write.

    python -m tools.speed_tables bench bench.jsonl...          figures/bench.json; nano's rows: figures/bench-nano.json
    python -m tools.speed_tables waterfall waterfall.jsonl...  figures/waterfall.json
    python -m tools.speed_tables whole --commit SHA "720p=a.json"...  figures/whole.json, from the JSON beside MP4s

The files of `fpsgen bench` and `fpsgen bench waterfall` each hold their own baseline. Forwards are half a step: all of
these run with guidance. A mean over the schedule is given where each profile of it has run. Rows of a bench take the
places of those of the same model, size, schedule, number of steps and baseline; the others stay.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpsgen.bench.plan import BASELINE
from fpsgen.files import write_text
from fpsgen.report.bench import keys_seen
from fpsgen.report.rows import SCHEMAS
from tools.command_line import parser_of

SHARES = {"early": 0.2, "middle": 0.6, "late": 0.2}  # of the steps at shift 5 (schedule "paper")
NAMES = {"nano": "nano", "wan2.1-1.3b": "Wan2.1-1.3B shape", "wan2.1-14b": "Wan2.1-14B shape"}
SLOW = 1.3  # a step that took so many times its profile's median also compiled, or reserved memory
BENCH = {
    "what": "Model",
    "how": "How",
    "steps": "Steps",
    "windows": "Tile: windows of early / middle / late",
    "step_median": "s / step, median",
    "step_range": "smallest-largest",
    "forwards": "s / forward: early / middle / late",
    "mean": "mean over the schedule",
    "share": "Attention",
    "kept": "Density",
    "times": "Denoising",
    "memory": "GPU memory",
}
QUALITY = {"psnr_text": "PSNR, dB", "ssim_text": "SSIM", "vmaf_text": "VMAF"}
WATERFALL = {
    "what": "Model",
    "stage": "Part",
    "denoise": "denoising, s",
    "times": "Faster",
    "attention": "attention, s",
    "rest": "all else, s",
    "kept": "Density",
    "vae": "VAE, s",
    "error": "SNR of velocities, dB",
}
WHOLE = {
    "what": "Shape",
    "loading": "import and load, s",
    "text": "text, s",
    "denoise": "denoising, s",
    "start": "of it starting up, s",
    "forwards": "s / forward: early / middle / late",
    "mean": "mean over the schedule",
    "vae": "VAE, s",
    "mux": "MP4, s",
    "total": "all, s",
    "memory": "GPU memory",
}


def bench(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the cells of BENCH and QUALITY."""
    return [row | {"video": row["video"] and Path(row["video"]).name} | _bench_cells(row) for row in rows]


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """new, and those of `old` that it does not replace."""

    def setting(row: dict[str, Any]) -> tuple[Any, ...]:
        schedule = row["schedule"].removesuffix(f"-{row['method']}")
        return row["model"] != "wan2.1-1.3b", row["height"], schedule, row["steps"], row.get("bf16_backend") == "fa3"

    replaced = {setting(row) for row in new}
    return sorted([*new, *(row for row in old if setting(row) not in replaced)], key=setting)


def waterfall(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One file's rows with the cells of WATERFALL."""
    found = []
    for row in rows:
        denoise = row["denoise_s"]["median"]
        attention = row["attention_s"]["median"]
        cells = {"what": f"{_what(row)}, {row['steps']} steps", "denoise": f"{denoise:.2f}"}
        cells |= {"times": f"{row['faster_denoise']:.2f}x", "kept": _share(row["density"])}
        cells |= {"attention": _number(attention), "rest": _number(denoise - attention)}
        snr = (row["error"] or {}).get("snr_db")
        cells |= {"vae": _number(row["vae_s"]), "error": "" if snr is None else f"{snr:.1f}"}
        found.append(row | cells)
    return found


def whole(name: str, sidecar: dict[str, Any], commit: str) -> dict[str, Any]:
    """A generation's recipe and report as a row with the cells of WHOLE. A recipe does not know the commit."""
    recipe, report = sidecar["recipe"], sidecar["report"]
    stages, steps = report["stages_s"], report["steps_s"]
    profiles = [step["profile"] for step in report["attention"]["steps"]]
    medians = {p: statistics.median(_of(steps, profiles, p)) for p in dict.fromkeys(profiles)}
    late = [s - medians[p] for s, p in zip(steps, profiles, strict=True) if s > SLOW * medians[p]]
    forwards = {p: s / 2 for p, s in medians.items()} if len(steps) > 1 else {}
    cells = {key: f"{stages[key]:.1f}" for key in ("text", "denoise", "vae", "mux")}
    loading = [stages[key] for key in ("import", "load") if key in stages]  # none for a later video of a batch
    cells |= {"what": name, "loading": f"{sum(loading):.1f}" if loading else "", "total": f"{report['total_s']:.1f}"}
    cells |= {"start": f"{sum(late):.1f}" if forwards else ""} | _forwards(forwards)
    cells["memory"] = f"{report['peak_memory']['cuda_bytes'] / 1e9:.1f} GB"
    origin = {"created": report["created"], "device": recipe["device"], "versions": recipe["versions"]}
    return origin | {"commit": commit, "stages_s": stages, "steps_s": steps} | cells


def _bench_cells(row: dict[str, Any]) -> dict[str, str]:
    step = row["step_s"]
    if row["method"] == BASELINE and not row["fused"]:
        backend = row.get("bf16_backend")
        how = "diffusers as it comes" + (f", attention by {backend}" if backend not in (None, "auto") else "")
    else:
        how = f"{row['method']}, {row['schedule'].removesuffix('-' + row['method'])}, linear {row['linear']}"
    cells = {"what": _what(row), "how": how, "step_median": f"{step['median']:.3f}"}
    cells |= {"step_range": f"{step['min']:.3f}-{step['max']:.3f}"}
    cells |= _forwards({p["profile"]: p["step_s"]["median"] / 2 for p in row["profiles"]})
    cells |= {"share": _share(row["attention_share"]), "kept": _share(row["density"])}
    alone = row.get("baseline") == row["method"] != BASELINE  # nothing ran beside it
    cells |= {"times": "" if alone else f"{row['speedup_denoise']:.2f}x", "windows": windows(row["profiles"])}
    memory = row["peak_memory"]["cuda_bytes"]
    cells |= {"memory": "" if memory is None else f"{memory / 1e9:.1f} GB"}
    for key, value, digits in (("psnr", row["psnr_db"], 1), ("ssim", row["ssim"], 3), ("vmaf", row.get("vmaf"), 1)):
        cells[f"{key}_text"] = "" if value is None else f"{value:.{digits}f}"
    return cells


def windows(profiles: list[dict[str, Any]]) -> str:
    """Tile and windows of the profiles that have some. profiles: of a row."""
    seen = {entry["profile"]: keys_seen(entry) for entry in profiles if entry["density"] != 1}
    if not any(window != "-" for _, window in seen.values()):
        return ""
    tiles = " or ".join(dict.fromkeys(tile for tile, _ in seen.values()))
    if {window for _, window in seen.values()} == {"chosen"}:
        return f"{tiles}: chosen"
    return f"{tiles}: " + " / ".join(seen[name][1] if name in seen else "-" for name in SHARES)


def _what(row: dict[str, Any]) -> str:
    return f"{NAMES.get(row['model'], row['model'])}, {min(row['width'], row['height'])}p"


def _forwards(seconds: dict[str, float]) -> dict[str, str]:
    """seconds: of a forward, by profile."""
    if not set(seconds) & set(SHARES):
        return {"forwards": " / ".join(f"{s:.3f}" for s in seconds.values()), "mean": ""}
    mean = f"{sum(SHARES[p] * seconds[p] for p in SHARES):.3f}" if set(SHARES) <= set(seconds) else ""
    return {"forwards": " / ".join(f"{seconds[p]:.3f}" if p in seconds else "-" for p in SHARES), "mean": mean}


def _of(steps: Iterable[float], profiles: Iterable[str], profile: str) -> list[float]:
    return [s for s, p in zip(steps, profiles, strict=True) if p == profile]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def main(arguments: list[str] | None = None) -> int:
    """Write the tables; the exit code."""
    parser = parser_of("speed_tables", __doc__)
    parser.add_argument("kind", choices=("bench", "waterfall", "whole"))
    parser.add_argument("files", nargs="+", help="of rows; for whole: WHAT=FILE")
    parser.add_argument("--commit", default="", help="of the code that ran, for whole")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of the tables")
    options = parser.parse_args(arguments)
    if options.kind == "whole":
        named = [name.rsplit("=", 1) for name in options.files]
        tables = {"whole": (WHOLE, [whole(what, _json(Path(path)), options.commit) for what, path in named])}
    else:
        files = [[json.loads(line) for line in Path(path).read_text("utf-8").splitlines()] for path in options.files]
        if options.kind == "waterfall":
            tables = {"waterfall": (WATERFALL, [row for rows in files for row in waterfall(rows)])}
        else:
            rows = [row for rows in files for row in bench(rows)]
            of_nano = [row for row in rows if row["model"] == "nano"]
            others = [row for row in rows if row["model"] != "nano"]
            tables = {"bench": (BENCH, others), "bench-nano": (BENCH | QUALITY, of_nano)}
    for name, (columns, rows) in tables.items():
        if rows:
            path = options.figures / f"{name}.json"
            if name == "bench":
                old = [_again(row) for row in _json(path)["rows"]] if path.is_file() else []
                rows = [dict.fromkeys(columns, "") | row for row in merged(old, rows)]
            text = json.dumps({"columns": columns, "rows": rows}, indent=1) + "\n"
            write_text(text, path, overwrite=True)
    return 0


def _again(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table with the cells that it has today."""
    return bench([row])[0] if row["schema"] in SCHEMAS else row | {"windows": windows(row["profiles"])}


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
