"""What training buys on nano: every arm with three seeds, in pieces that fit a time limit and go on where they stopped.

    python -m recipes.nano.proof --out DIR [--minutes 9] [--base weights/nano]      exit code 3: call it again
    python -m recipes.nano.proof --out DIR --table

Arms: dense; fp8, sta and fps without training; fps distilled (all weights, LoRA), with flow matching; fps with one
window for all steps at the density that the schedule has on average, without training and distilled. All start from one
set of weights. A row has: the error of the velocity on held-out trajectories of the dense teacher and the flow loss on
held-out clips, by profile; PSNR and SSIM to the dense video of the same noise and what meter.py reads, on prompts that
training never saw; the validation error at each checkpoint. Rows lie in DIR/rows/.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen.assets import weights_dir
from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import Schedule
from fpsgen.evaluate.metrics import ssim
from fpsgen.evaluate.nano import captions, world
from fpsgen.evaluate.nano.meter import Meter, score
from fpsgen.evaluate.nano.prompts import unseen
from fpsgen.files import write_text
from fpsgen.models.catalog.choice import choose
from fpsgen.models.patch.apply import apply
from fpsgen.models.patch.schedule_choice import ScheduleWarning
from fpsgen.models.wan.load import load
from fpsgen.pipeline.recipe import versions
from fpsgen.report.training import read_log
from fpsgen.train import checkpoint
from fpsgen.train.clips import open_folder
from fpsgen.train.config import TrainConfig, preset
from fpsgen.train.data import Pairs
from fpsgen.train.events import Silent
from fpsgen.train.export import export_folder
from fpsgen.train.log import LOG
from fpsgen.train.objective import Source, velocity_error
from fpsgen.train.prep.encode import Encoder
from fpsgen.train.prep.shards import DATA, Shards
from fpsgen.train.run import train
from fpsgen.train.teacher import prepare_pairs
from recipes.nano import denoiser
from recipes.nano.evaluate import psnr

STEP_AWARE = preset("nano-demo").parsed_schedule()
FIXED = Schedule(
    "nano-fixed", (Profile("all", "fps", tile=(3, 10, 2), window=(1, 0, 7)),), ((0.0, 1.0, "all"),)
)  # 7 of 24 tiles: what 20 steps of STEP_AWARE keep on average


@dataclass(frozen=True)
class Arm:
    """schedule, method: how it runs. train: settings of its training, None without."""

    schedule: Schedule = STEP_AWARE
    method: str | None = None
    train: dict[str, Any] | None = None


ARMS = {
    "dense": Arm(method="bf16"),
    "fp8": Arm(method="fp8"),
    "sta": Arm(method="sta"),
    "fps": Arm(),
    "fps, one window": Arm(FIXED),
    "fps distilled": Arm(train={}),
    "fps distilled, LoRA": Arm(train={"lora_rank": 16, "lr": 1e-3}),
    "fps distilled, one window": Arm(FIXED, train={}),
    "fps, flow matching": Arm(train={"distill": 0.0, "flow": 1.0}),
}


@dataclass(frozen=True)
class Size:
    """How much is done: prompts of the teacher, clips for flow matching, optimizer steps, prompts of the evaluation."""

    prompts: int = 64
    held_out: int = 8
    clips: int = 512
    steps: int = 1000
    batch: int = 8
    sampled: int = 48
    denoising: int = 20


FULL, TINY = Size(), Size(2, 1, 6, 2, 1, 1, 2)


class Proof:
    """The pieces of work in a folder; each is done once. Raises FpsgenError as training does."""

    def __init__(self, out: Path, base: Path, size: Size, commit: str) -> None:
        self.out, self.base, self.size, self.commit = out, base, size, commit
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.scenes = unseen(size.sampled)
        (out / "rows").mkdir(parents=True, exist_ok=True)

    def row_path(self, arm: str, seed: int) -> Path:
        return self.out / "rows" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"

    def done(self, arm: str, seed: int) -> bool:
        """Whether a piece has its row, and the dense one its clips, with which others are compared."""
        return self.row_path(arm, seed).exists() and (arm != "dense" or self.clips_path(seed).exists())

    def clips_path(self, seed: int) -> Path:
        return self.out / f"dense-{seed}.npy"

    def piece(self, arm: str, seed: int) -> dict[str, Any]:
        """Train, if the arm is trained, measure, and write the row."""
        chosen, config = ARMS[arm], self.config(arm, seed)
        self.data()
        self.pairs(seed)
        folder, seconds = self.base, 0.0
        if chosen.train is not None:
            run = self.out / "runs" / f"{self.row_path(arm, seed).stem}"
            run.mkdir(parents=True, exist_ok=True)
            if config.uses_teacher and not (run / "pairs").exists():
                (run / "pairs").symlink_to((self.out / f"pairs-{seed}" / "pairs").resolve())
            folder = train(config, run, self.device, Silent(), Silent()).model
            seconds = sum(row["seconds"] for row in read_log(run / LOG))
        pipe = load(folder, self.device, self.dtype)
        with apply(pipe, schedule=chosen.schedule, method=chosen.method, strict=True) as handle:
            validation = self.validation(pipe.transformer, handle, chosen.schedule, seed)
            handle.clear_report()
            clips = denoiser.sample(pipe, self.texts, self.size.denoising, seed=1000 + 10_000 * seed)
            steps = handle.report()["steps"]
        row = {"kind": "proof", "arm": arm, "seed": seed, "schedule": chosen.schedule.name, "validation": validation}
        row |= {"density": statistics.fmean(step["density"] for step in steps), "train_seconds": round(seconds, 1)}
        row |= self.quality(clips, seed, arm) | {"curve": self.curve(arm, seed) if chosen.train is not None else []}
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        row |= {"size": vars(self.size), "device": name, "versions": versions(), "commit": self.commit}
        write_text(json.dumps(row, indent=1) + "\n", self.row_path(arm, seed), overwrite=True)
        for path in (self.out / "runs" / self.row_path(arm, seed).stem).glob("step-*"):
            shutil.rmtree(path)
        return row

    @property
    def texts(self) -> list[str]:
        return [captions.plain(scene) for scene in self.scenes]

    def config(self, arm: str, seed: int) -> TrainConfig:
        size, rng = self.size, random.Random(7)
        prompts = tuple(captions.random_example(rng)[0] for _ in range(size.prompts)) + tuple(
            captions.plain(scene) for scene in unseen(size.held_out, seed=2)
        )
        common = {"model": str(self.base), "schedule": ARMS[arm].schedule.to_toml(), "steps": size.steps, "seed": seed}
        common |= {"prompts": prompts, "held_out": size.held_out, "batch": size.batch, "lr": 3e-4, "ema": 0.98}
        common |= {"teacher_steps": size.denoising, "save_every": max(1, size.steps // 10), "keep": 20, "name": "proof"}
        common |= {"data": str((self.out / "data").resolve())} if (ARMS[arm].train or {}).get("flow") else {}
        return replace(preset("nano-demo"), **common | (ARMS[arm].train or {}))

    def pairs(self, seed: int) -> None:
        prepare_pairs(self.config("fps distilled", seed), self.out / f"pairs-{seed}", self.device, Silent())

    def data(self) -> None:
        """Clips of the world for flow matching, an eighth of them held out."""
        folder = self.out / "data"
        if (folder / DATA).exists():
            return
        folder.mkdir(exist_ok=True)
        pipe, choice = load(self.base, self.device, self.dtype), choose(str(self.base))
        encoder, rng = Encoder(pipe, choice.spec.max_sequence_length), random.Random(11)
        shards = Shards(folder, 1 << 20)
        renderer = world.Renderer(self.device, 11)
        names = []
        for number in range(self.size.clips):
            text, scene = captions.random_example(rng)
            names.append(f"clip {number}")
            if shards.done(names[-1]):
                continue
            video, _ = renderer.render([scene])
            frames = ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
            row = {"source": names[-1], "caption": text, "clips": 1, "held_out": number % 8 == 7 or number == 5}
            shards.add(encoder.latents(frames), encoder.text(text), row)
        header = {"model": choice.spec.name, "width": world.WIDTH, "height": world.HEIGHT, "frames": world.FRAMES}
        shards.finish(
            names, header | {"fps": 16, "videos": len(names), "dropped": {}, "digest": "world"}, encoder.text("")
        )

    @torch.no_grad()
    def validation(self, transformer: Any, handle: Any, schedule: Schedule, seed: int) -> dict[str, dict[str, float]]:
        """distill: error of the velocity over its mean square; flow: the flow loss; by profile, on held-out samples."""
        config = self.config("fps distilled", seed)
        shards = sorted((self.out / f"pairs-{seed}" / "pairs").glob("*.safetensors"))[-config.held_out :]
        size = (config.width, config.height, config.frames)
        _, clips = open_folder(self.out / "data", size, transformer.config, schedule, config.shift)
        sources: dict[str, Source] = {"distill": Pairs(shards, schedule), "flow": clips}
        found: dict[str, dict[str, float]] = {}
        for name, source in sources.items():
            for profile in source.profiles:
                errors, powers = [], []
                for batch in source.every(profile, 1, 32):
                    errors.append(float(velocity_error(transformer, handle, batch, self.dtype)))
                    powers.append(float(batch.velocity.square().mean()))
                if errors:
                    over = statistics.fmean(powers) if name == "distill" else 1.0
                    found.setdefault(name, {})[profile] = statistics.fmean(errors) / over
        return found

    def quality(self, clips: torch.Tensor, seed: int, arm: str) -> dict[str, Any]:
        """PSNR, SSIM to the dense clips of the same noise, and what the meter reads, in percent."""
        kept = self.clips_path(seed)
        if arm == "dense":
            np.save(kept, clips.numpy())
        meter = Meter(self.device)
        readings = [reading for some in clips.split(16) for reading in meter(some.to(self.device))]
        found: dict[str, Any] = {"score": score(readings, self.scenes), "psnr_db": None, "ssim": None}
        if arm != "dense":
            dense = torch.from_numpy(np.load(kept))
            found["psnr_db"] = round(psnr(clips, dense).median().item(), 3)
            frames = [
                ((x[:, :, ::8].float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).numpy()
                for x in (clips, dense)
            ]
            alike = [ssim(ours, theirs).mean() for ours, theirs in zip(*frames, strict=True)]
            found["ssim"] = round(float(np.mean(alike)), 4)
        return found

    def curve(self, arm: str, seed: int) -> list[dict[str, Any]]:
        """Validation errors at each checkpoint, by its averaged weights."""
        chosen, config = ARMS[arm], self.config(arm, seed)
        run, found = self.out / "runs" / self.row_path(arm, seed).stem, []
        for path in sorted(run.glob("step-*")):
            tensors = checkpoint.read(path)
            if tensors is None:
                continue
            step, weights, _ = tensors
            folder = run / "curve"
            export_folder(choose(str(self.base)), config, weights["average"], folder, {"before": {}, "after": {}})
            transformer = load(folder, self.device, self.dtype).transformer
            with apply(transformer, schedule=chosen.schedule, strict=True) as handle:
                found.append({"step": step} | self.validation(transformer, handle, chosen.schedule, seed))
            shutil.rmtree(folder)
        return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: mean and spread (largest - smallest) over the seeds."""
    lines = [
        "| arm | seeds | density | velocity error | flow loss | PSNR, dB | SSIM | all right, % |",
        "|---" * 8 + "|",
    ]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        values = [
            [statistics.fmean(row["validation"]["distill"].values()) for row in own],
            [statistics.fmean(row["validation"]["flow"].values()) for row in own],
            [row["psnr_db"] for row in own],
            [row["ssim"] for row in own],
            [row["score"]["all"] for row in own],
        ]
        cells = [_spread(some) for some in values]
        lines.append(f"| {arm} | {len(own)} | {own[0]['density']:.2f} | {' | '.join(cells)} |")
    return lines


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.4g} ({max(known) - min(known):.2g})" if known else "-"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=weights_dir() / "nano")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="", help="some of them, separated by semicolons")
    parser.add_argument("--tiny", action="store_true", help="the smallest form, to try it on a CPU")
    parser.add_argument("--table", action="store_true", help="show what there is, and write proof.json")
    parser.add_argument("--commit", default="")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ScheduleWarning)  # weights that meet a schedule they do not know are the question
    started, longest = time.monotonic(), 0.0
    if chosen.table:
        rows = [json.loads(path.read_text()) for path in sorted((chosen.out / "rows").glob("*.json"))]
        write_text(json.dumps({"rows": rows}, indent=1) + "\n", chosen.out / "proof.json", overwrite=True)
        print("\n".join(table(rows)))
        return 0
    proof = Proof(chosen.out, chosen.base, TINY if chosen.tiny else FULL, chosen.commit)
    arms = chosen.arms.split("; ") if chosen.arms else list(ARMS)
    todo = [(arm, seed) for seed in range(chosen.seeds) for arm in arms if not proof.done(arm, seed)]
    for number, (arm, seed) in enumerate(todo):
        if time.monotonic() - started + longest > 60 * chosen.minutes:
            print(f"{len(todo) - number} pieces are left", flush=True)
            return 3
        began = time.monotonic()
        row = proof.piece(arm, seed)
        longest = max(longest, time.monotonic() - began)
        what = {key: row[key] for key in ("density", "psnr_db", "ssim", "train_seconds")}
        print(f"{arm}, seed {seed}: {time.monotonic() - began:.0f} s {json.dumps(what)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
