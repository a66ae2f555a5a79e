"""What training buys on nano: every arm with three seeds, in pieces that fit a time limit and go on where they stopped.

    python -m recipes.nano.proof --out DIR --prepare
    python -m recipes.nano.proof --out DIR [--seed 0] [--minutes 9]     exit code 3: call it again
    python -m recipes.nano.proof --out DIR --table

The released weights were trained sparse, so their dense attention is no teacher. --prepare fine-tunes them with dense
attention first: all arms start from these weights, the "dense" row and the teacher are theirs. Seeds may then run side
by side, a process each.

Arms: dense; fp8, sta and fps without training; fps with one window for all steps at the density that the schedule has
on average; fps distilled (all weights, LoRA, one window); fps with flow matching, and dense attention with the
same steps on the same clips. And what keeps fps from dense attention: all keys in the profile "early", wider windows,
five times the steps. A row has: the error of the velocity on held-out trajectories of the dense teacher and
the flow loss on held-out clips, by profile; PSNR and SSIM to the dense video of the same noise and what meter.py reads,
on prompts that training never saw; validation errors at each checkpoint, and losses. Rows lie in DIR/rows/.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen.assets import weights_dir
from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import Schedule
from fpsgen.errors import FpsgenError
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
from fpsgen.train.export import trained_transformer
from fpsgen.train.log import LOG
from fpsgen.train.objective import Source, velocity_error
from fpsgen.train.prep.encode import Encoder
from fpsgen.train.prep.shards import DATA, Shards
from fpsgen.train.run import train
from fpsgen.train.teacher import prepare_pairs
from recipes.nano import autoencoder, denoiser, proof_report
from recipes.nano.evaluate import psnr
from recipes.nano.latents import LatentPool
from recipes.nano.release import release

STEP_AWARE = preset("nano-demo").parsed_schedule()
FIXED = Schedule(
    "nano-fixed", (Profile("all", "fps", tile=(3, 10, 2), window=(1, 0, 7)),), ((0.0, 1.0, "all"),)
)  # 7 of 24 tiles: what 20 steps of STEP_AWARE keep on average
EARLY_DENSE = replace(
    STEP_AWARE,
    name="nano-early-dense",
    profiles=tuple(replace(p, window="all") if p.name == "early" else p for p in STEP_AWARE.profiles),
)
WIDER_WINDOWS = {"early": (0, 0, 3), "middle": (0, 0, 5), "late": (0, 0, 3)}  # 9, 15 and 9 of 24 tiles
WIDER = replace(
    STEP_AWARE,
    name="nano-wider",
    profiles=tuple(replace(p, window=WIDER_WINDOWS[p.name]) for p in STEP_AWARE.profiles),
)


@dataclass(frozen=True)
class Arm:
    """schedule, method: how it runs. train: settings of its training, None without. longer: times the usual steps."""

    schedule: Schedule = STEP_AWARE
    method: str | None = None
    train: dict[str, Any] | None = None
    longer: int = 1


DENSE = STEP_AWARE.with_method("bf16")
FLOW = {"distill": 0.0, "flow": 1.0}
ARMS = {  # in the order of their pieces: a run that is cut off leaves the first ones of each seed
    "dense": Arm(method="bf16"),
    "fps": Arm(),
    "fps distilled": Arm(train={}),
    "fps, flow matching": Arm(train=FLOW),
    "fps distilled, LoRA": Arm(train={"lora_rank": 16, "lr": 2e-3}),
    "sta": Arm(method="sta"),
    "fp8": Arm(method="fp8"),
    "fps, one window": Arm(FIXED),
    "fps distilled, one window": Arm(FIXED, train={}),
    "dense, flow matching": Arm(DENSE, train=FLOW),
    "fps, early dense": Arm(EARLY_DENSE),
    "fps distilled, early dense": Arm(EARLY_DENSE, train={}),
    "fps, wider windows": Arm(WIDER),
    "fps distilled, wider windows": Arm(WIDER, train={}),
    "fps distilled, 5x steps": Arm(train={}, longer=5),
}


@dataclass(frozen=True)
class Size:
    """How much is done: steps of the dense fine-tuning, prompts of the teacher, clips for flow matching, optimizer
    steps of an arm and their samples, prompts of the evaluation, its denoising steps.
    """

    base_steps: int = 3000
    prompts: int = 96
    held_out: int = 16
    clips: int = 1024
    steps: int = 400
    batch: int = 16
    sampled: int = 48
    denoising: int = 20


SEEDS = (0, 1, 2)
FULL, TINY = Size(), Size(1, 2, 1, 16, 2, 1, 1, 2)
TOGETHER = 32  # clips, prompts or samples in one forward where nothing is trained


class Proof:
    """The pieces of work in a folder; each is done once. Raises FpsgenError as training does."""

    def __init__(self, out: Path, size: Size, commit: str) -> None:
        self.out, self.base, self.size, self.commit = out, out / "base", size, commit
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.scenes = unseen(size.sampled)
        self._held_out: dict[int, dict[str, Source]] = {}
        (out / "rows").mkdir(parents=True, exist_ok=True)

    def prepare(self, minutes: float) -> None:
        """What all seeds share: the weights fine-tuned with dense attention (in this time at most), and the clips."""
        trained, released = self.out / "dense", weights_dir() / "nano"
        if not (trained / "denoiser.json").exists() or not (trained / "pipeline" / "text_encoder").exists():
            line = [sys.executable, "-m", "recipes.nano.train_denoiser", "--vae", str(released / "vae")]
            line += ["--out", str(trained), "--resume", str(released), "--lr", "1e-3", "--batch", "32"]
            line += ["--steps", str(self.size.base_steps), "--minutes", str(minutes)]
            line += ["--pool", str(2 * self.size.clips), "--fill", str(self.size.clips)]
            subprocess.run(line, check=True)
        if not (self.base / "manifest.json").exists():
            release(released / "vae", trained / "pipeline", self.base, None)
        self.data()

    def row_path(self, arm: str, seed: int) -> Path:
        return self.out / "rows" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"

    def done(self, arm: str, seed: int) -> bool:
        """Whether a piece has its row of this size, and the dense one its clips, with which others are compared."""
        path = self.row_path(arm, seed)
        same = path.exists() and json.loads(path.read_text())["size"] == vars(self.size)
        return same and (arm != "dense" or self.clips_path(seed).exists())

    def clips_path(self, seed: int) -> Path:
        return self.out / f"dense-{seed}.npy"

    def piece(self, arm: str, seed: int) -> dict[str, Any]:
        """Train, if the arm is trained, measure, and write the row."""
        chosen, config = ARMS[arm], self.config(arm, seed)
        self.pairs(seed)
        folder, run, trained = self.base, self.out / "runs" / self.row_path(arm, seed).stem, {}
        if chosen.train is not None:
            run.mkdir(parents=True, exist_ok=True)
            if config.uses_teacher and not (run / "pairs").exists():
                (run / "pairs").symlink_to((self.out / f"pairs-{seed}" / "pairs").resolve())
            folder = train(config, run, self.device, Silent(), Silent()).model
            log = read_log(run / LOG)
            trained = {"train_seconds": round(sum(row["seconds"] for row in log), 1), "losses": losses(log)}
            trained["curve"] = self.curve(arm, seed, run)
        pipe = load(folder, self.device, self.dtype)
        with apply(pipe, schedule=chosen.schedule, method=chosen.method, strict=True) as handle:
            validation = self.validation(pipe.transformer, handle, seed)
            handle.clear_report()
            clips = denoiser.sample(pipe, self.texts, self.size.denoising, seed=1000 + 10_000 * seed, batch=48)
            steps = handle.report()["steps"]
        row = {"kind": "proof", "arm": arm, "seed": seed, "schedule": chosen.schedule.name, "validation": validation}
        row |= {"density": statistics.fmean(step["density"] for step in steps)}
        row |= self.quality(clips, seed, arm) | trained
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        row |= {"size": vars(self.size), "device": name, "versions": versions(), "commit": self.commit}
        write_text(json.dumps(row) + "\n", self.row_path(arm, seed), overwrite=True)
        for path in run.glob("step-*"):
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
        steps = size.steps * ARMS[arm].longer
        common = {"model": str(self.base), "schedule": ARMS[arm].schedule.to_toml(), "steps": steps, "seed": seed}
        common |= {"prompts": prompts, "held_out": size.held_out, "batch": size.batch, "lr": 5e-4, "ema": 0.98}
        common |= {"teacher_steps": size.denoising, "save_every": max(1, steps // 4), "keep": 9, "name": "proof"}
        common |= {"dense_every": 20}
        common |= {"data": str((self.out / "data").resolve())} if (ARMS[arm].train or {}).get("flow") else {}
        return replace(preset("nano-demo"), **common | (ARMS[arm].train or {}))

    def pairs(self, seed: int) -> list[Path]:
        """The teacher's shards, the held-out ones last; made where they are not there."""
        config, folder = self.config("fps distilled", seed), self.out / f"pairs-{seed}"
        found = sorted((folder / "pairs").glob("*.safetensors"))
        if len(found) == len(config.prompts):
            return found
        return prepare_pairs(config, folder, self.device, Silent(), TOGETHER)

    @torch.no_grad()
    def data(self) -> None:
        """Clips of the world for flow matching, an eighth of them held out, as `fpsgen train prep` would leave them."""
        folder = self.out / "data"
        if (folder / DATA).exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        pipe, choice = load(self.base, self.device, self.dtype), choose(str(self.base))
        null = Encoder(pipe, choice.spec.max_sequence_length).text("")
        pool = LatentPool(
            autoencoder.whole_clip(pipe.vae), pipe.tokenizer, self.size.clips, 11, min(TOGETHER, self.size.clips)
        )
        shards, names = Shards(folder, 1 << 20), [f"clip {number}" for number in range(self.size.clips)]
        while pool.encoded < self.size.clips:
            pool.add()
        for first in range(0, self.size.clips, TOGETHER):
            ids = pool.ids[first : first + TOGETHER]
            words = denoiser.embed(pipe.text_encoder, ids).bfloat16().cpu()
            latents = pool.latents[first : first + TOGETHER].half().cpu()
            for number, caption in enumerate(pipe.tokenizer.batch_decode(ids, skip_special_tokens=True), first):
                row = {"source": names[number], "caption": caption, "clips": 1, "held_out": number % 8 == 7}
                shards.add(latents[number - first], words[number - first], row)
        header = {"model": choice.spec.name, "width": world.WIDTH, "height": world.HEIGHT, "frames": world.FRAMES}
        shards.finish(names, header | {"fps": 16, "videos": len(names), "dropped": {}, "digest": "world"}, null)

    def held_out(self, model: Any, seed: int) -> dict[str, Source]:
        """Samples that no arm is trained on. model: config of the transformer."""
        if seed not in self._held_out:
            config = self.config("fps distilled", seed)
            size = (config.width, config.height, config.frames)
            _, clips = open_folder(self.out / "data", size, model, STEP_AWARE, config.shift)
            pairs = Pairs(self.pairs(seed)[-config.held_out :], STEP_AWARE)
            self._held_out[seed] = {"distill": pairs, "flow": clips}
        return self._held_out[seed]

    @torch.no_grad()
    def validation(self, transformer: Any, handle: Any, seed: int) -> dict[str, dict[str, float]]:
        """distill: error of the velocity over its mean square; flow: the flow loss. On held-out samples, by the profile
        of the step-aware schedule at their noise levels, whatever runs there.
        """
        found: dict[str, dict[str, float]] = {}
        for name, source in self.held_out(transformer.config, seed).items():
            for profile in source.profiles:
                error = power = count = 0.0
                for batch in source.every(profile, TOGETHER, 2 * TOGETHER):
                    samples = len(batch.latents)
                    error += samples * float(velocity_error(transformer, handle, batch, self.dtype))
                    power += samples * float(batch.velocity.square().mean())
                    count += samples
                if count:
                    found.setdefault(name, {})[profile] = error / (power if name == "distill" else count)
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

    def curve(self, arm: str, seed: int, run: Path) -> list[dict[str, Any]]:
        """Validation errors at each checkpoint, by its averaged weights."""
        config, found = self.config(arm, seed), []
        transformer = load(self.base, self.device, self.dtype).transformer
        for path in sorted(run.glob("step-*")):
            tensors = checkpoint.read(path)
            if tensors is None:
                continue
            step, weights, _ = tensors
            transformer.load_state_dict(trained_transformer(self.base, config, weights["average"]).state_dict())
            with apply(transformer, schedule=ARMS[arm].schedule, strict=True) as handle:
                found.append({"step": step} | self.validation(transformer, handle, seed))
        return found


def losses(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses of training in forty parts of a run, by profile: mean over the steps of a part; dense: of the same weights
    with dense attention and, beside it, the loss on the same samples, where that was measured.
    """
    found: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    length = max(1, len(log) // 40)
    for row in log:
        (part,) = row["objectives"].values()
        values = found[-(-row["step"] // length) * length, part["profile"]]
        values["loss"].append(part["loss"])
        if "dense_loss" in part:
            values["dense_loss"].append(part["dense_loss"])
            values["beside_dense_loss"].append(part["loss"])
    return [
        {"step": step, "profile": profile}
        | {name: float(f"{statistics.fmean(some):.5g}") for name, some in values.items()}
        for (step, profile), values in found.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true", help="make what the seeds share, and end")
    parser.add_argument("--base-minutes", type=float, default=2.5, help="of the dense fine-tuning at most")
    parser.add_argument("--base-steps", type=int, default=FULL.base_steps)
    parser.add_argument("--steps", type=int, default=FULL.steps, help="optimizer steps of a trained arm")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="this one alone")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true", help="the smallest form, to try it on a CPU")
    parser.add_argument("--table", action="store_true", help="show what there is, and write proof.json")
    parser.add_argument("--commit", default="")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ScheduleWarning)  # weights that meet a schedule they do not know are the question
    started, longest, failed = time.monotonic(), 0.0, False
    size = TINY if chosen.tiny else replace(FULL, base_steps=chosen.base_steps, steps=chosen.steps)
    if chosen.table:
        order = list(ARMS)
        rows = [json.loads(path.read_text()) for path in (chosen.out / "rows").glob("*.json")]
        rows = [row for row in rows if row["size"] == vars(size)]
        rows.sort(key=lambda row: (order.index(row["arm"]), row["seed"]))
        print("\n".join(proof_report.table(rows)))
        proof_report.write_report(rows, chosen.out)
        return 0
    proof = Proof(chosen.out, size, chosen.commit)
    proof.prepare(chosen.base_minutes)
    print(f"prepared: {time.monotonic() - started:.0f} s", flush=True)
    seeds = () if chosen.prepare else SEEDS if chosen.seed is None else (chosen.seed,)
    todo = [(arm, seed) for seed in seeds for arm in ARMS if not proof.done(arm, seed)]
    for number, (arm, seed) in enumerate(todo):
        if time.monotonic() - started + longest > 60 * chosen.minutes:
            print(f"{len(todo) - number} pieces are left", flush=True)
            return 3
        began = time.monotonic()
        try:
            row = proof.piece(arm, seed)
        except FpsgenError as error:  # other arms can still be measured
            print(f"{arm}, seed {seed}: {error.message}", flush=True)
            failed = True
            continue
        longest = max(longest, time.monotonic() - began)
        what = {key: row.get(key) for key in ("density", "psnr_db", "ssim", "train_seconds")}
        what["all"] = row["score"]["all"]
        print(f"{arm}, seed {seed}: {time.monotonic() - began:.0f} s {json.dumps(what)}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
