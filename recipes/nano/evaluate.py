"""Measure nano on prompts that training never saw, dense and with FPSAttention, and write a row and a contact sheet.

    python -m recipes.nano.evaluate --model weights/nano --out DIR [--base DIR] [--prompts 216]

Every prompt is the plain form of a held-out (subject, colour, motion); fpsgen/evaluate/nano/meter.py reads the clips.
Runs: the released weights by their schedule (fps) and dense (bf16), PSNR of the first against the second at equal
seeds; with --base also the dense weights they came from, dense and under the schedule they never saw. Seeds are the
same in all runs. What is written as nano.json fills the table of docs/figures.md.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import diffusers
import torch
from torch import Tensor

import fpsgen
from fpsgen.attention.schedule import Schedule
from fpsgen.evaluate.metrics import decibels
from fpsgen.evaluate.nano import captions
from fpsgen.evaluate.nano.meter import Meter, score
from fpsgen.evaluate.nano.prompts import unseen
from fpsgen.models.patch.apply import apply
from fpsgen.models.patch.schedule_choice import ScheduleWarning
from fpsgen.models.wan.load import load
from recipes.nano import denoiser
from recipes.nano.sheet import contact_sheet

# what README shows of a row; percent of the prompts, dB
COLUMNS = {
    "run": "nano",
    "prompts": "Unseen prompts",
    "colour": "Colour, %",
    "subject": "Subject, %",
    "motion": "Motion, %",
    "direction": "Direction, %",
    "background": "Background, %",
    "all": "All right, %",
    "density": "Density",
    "psnr_vs_dense": "PSNR to dense, dB",
}
DEMO = (
    "a cat surfing",
    "a red ball bouncing over grass",
    "a blue star circling in a night sky",
    "a green fish swimming left",
    "a pink bird flying right over the sea",
    "a purple triangle growing on a beige background",
)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """dB per clip for clips [B, 3, T, H, W] in [-1, 1]."""
    error = torch.stack([(x.float() - y.float()).square().mean() for x, y in zip(a, b, strict=True)])
    return torch.from_numpy(decibels(error.clamp_min(1e-10).cpu(), 2.0)).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="pipeline folder of the dense weights that the model came from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=216)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--commit", default="", help="commit of the code that is measured")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warnings.simplefilter("ignore", ScheduleWarning)  # the mismatch of weights and schedule is what is measured
    scenes = unseen(args.prompts)
    texts = [captions.plain(scene) for scene in scenes]
    meter = Meter(device)
    plan = Schedule.from_file(args.model / "schedule.toml")
    clips: dict[str, Tensor] = {}
    rows: dict[str, dict] = {}
    runs = [("fps", args.model, None), ("dense", args.model, "bf16")]
    if args.base:
        runs += [("base dense", args.base, "bf16"), ("base fps, untrained", args.base, None)]
    for name, folder, method in runs:
        pipe = load(folder, device)
        handle = apply(pipe, schedule=plan, method=method, strict=True)
        started = time.monotonic()
        clips[name] = denoiser.sample(pipe, texts, args.steps, args.guidance, seed=1000)
        seconds = time.monotonic() - started
        readings = [r for some in clips[name].split(16) for r in meter(some.to(device))]
        steps = handle.report()["steps"]
        rows[name] = score(readings, scenes) | {
            "density": round(sum(step["density"] for step in steps) / len(steps), 4),
            "kernels": handle.report()["kernels"],
            "seconds": round(seconds, 1),
        }
        print(name, json.dumps(rows[name]), flush=True)
        if name == "fps":
            demo = denoiser.sample(pipe, list(DEMO), args.steps, args.guidance, seed=1)
            contact_sheet(list(demo), args.out / "nano.png", list(DEMO), scale=0.6)
            contact_sheet(list(clips[name][:24]), args.out / "unseen.png", texts[:24], scale=0.4)
            wrong = [k for k, r in enumerate(readings) if not all(r.agrees(scenes[k]).values())][:16]
            if wrong:
                contact_sheet(
                    [clips[name][k] for k in wrong], args.out / "wrong.png", [texts[k] for k in wrong], scale=0.4
                )
    for name in clips:
        if name not in ("dense", "base dense"):
            against = psnr(clips[name], clips["base dense" if name.startswith("base") else "dense"])
            rows[name]["psnr_vs_dense"] = round(against.median().item(), 2)
            rows[name]["psnr_vs_dense_quartiles"] = [
                round(q, 2) for q in against.quantile(torch.tensor([0.25, 0.75])).tolist()
            ]
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "fpsgen": fpsgen.__version__}
    origin = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "versions": versions,
        "commit": args.commit,
        "prompts": args.prompts,
        "steps": args.steps,
        "guidance": args.guidance,
        "schedule": plan.name,
    }
    table = {"columns": COLUMNS, "rows": [{"run": name, "psnr_vs_dense": None} | rows[name] | origin for name in rows]}
    (args.out / "nano.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
