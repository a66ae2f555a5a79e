"""Make the embedded model from nothing: world, autoencoder, dense denoiser, FPSAttention fine-tuning, measurement.

    python -m recipes.nano --out DIR

Five stages of under ten minutes each on one H100, about 23 minutes in all. A stage whose result stands in DIR is
skipped, so the same command goes on where it was cut off. DIR/nano is the finished model, DIR/report/nano.json its
figures. Training is timed by the clock, so two runs give models of equal quality, not of equal bits. A stage that
misses its gate ends the run with what it measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

SCHEDULE = Path(__file__).with_name("schedule.toml")
# not worth shipping below these, on prompts never seen, in percent
FLOOR = {"colour": 80.0, "subject": 60.0, "direction": 70.0}


def stages(out: Path) -> list[tuple[str, Path, list[str]]]:
    """(name, file that stands when it is done, module and arguments), in order."""
    vae = out / "autoencoder" / "vae"
    dense, tuned = out / "dense", out / "tuned"
    report = out / "report" / "nano.json"
    train = ["train_denoiser", "--vae", str(vae), "--out"]
    paper = ["--schedule", str(SCHEDULE)]
    release = ["release", "--vae", str(vae), "--pipeline"]
    return [
        ("autoencoder", vae / "config.json", ["train_autoencoder", "--out", str(vae.parent), "--minutes", "5"]),
        ("dense denoiser", dense / "pipeline" / "text_encoder" / "config.json", [*train, str(dense), "--minutes", "9"]),
        (
            "dense model",
            out / "base" / "model_index.json",
            [*release, str(dense / "pipeline"), "--out", str(out / "base")],
        ),
        (
            "fine-tuning with fps",
            tuned / "pipeline" / "text_encoder" / "config.json",
            [
                *train,
                str(tuned),
                *["--minutes", "4.75", "--lr", "1e-3", "--fill", "6000", "--resume"],
                str(dense / "pipeline"),
                *paper,
            ],
        ),
        (
            "nano",
            out / "nano" / "schedule.toml",
            [*release, str(tuned / "pipeline"), "--out", str(out / "nano"), *paper],
        ),
        (
            "measurement",
            report,
            ["evaluate", "--model", str(out / "nano"), "--base", str(out / "base"), "--out", str(report.parent)],
        ),
    ]


def gate(out: Path) -> list[str]:
    """What is below a floor in the reports that stand so far."""
    faults = []
    autoencoder = out / "autoencoder" / "autoencoder.json"
    if autoencoder.is_file() and not json.loads(autoencoder.read_text())["passes"]:
        faults.append(f"the autoencoder misses its gate: see {autoencoder}")
    report = out / "report" / "nano.json"
    if report.is_file():
        shipped = next(row for row in json.loads(report.read_text())["rows"] if row["run"] == "fps")
        faults += [f"{axis} {shipped[axis]} % < {low} %" for axis, low in FLOOR.items() if shipped[axis] < low]
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.nano", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    out = parser.parse_args().out
    for name, done, (module, *arguments) in stages(out):
        if done.is_file():
            print(f"{name}: stands", flush=True)
            continue
        print(f"{name}: python -m recipes.nano.{module} {' '.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"recipes.nano.{module}", *arguments]).returncode
        faults = gate(out)
        if code or faults:
            print("; ".join(faults) or f"{name} ended with code {code}", file=sys.stderr)
            return 1
    print(out / "nano")
    return 0


if __name__ == "__main__":
    sys.exit(main())
