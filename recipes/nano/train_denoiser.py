"""Train the nano denoiser and its text encoder, dense or with FPSAttention in the forward pass.

    python -m recipes.nano.train_denoiser --vae DIR --out DIR --minutes 9.5
    python -m recipes.nano.train_denoiser --vae DIR --out DIR --minutes 4.75 --resume DIR --schedule FILE --lr 1e-3

Flow matching with logit-normal sigmas under shift 3, captions dropped for one in ten (paper, section 3: 0.1), EMA.
With a schedule, a step draws one of its sigma windows (half by mass, half evenly) and all sigmas within it, so that the
profile in force is the one that inference uses at those noise levels; gradients pass the casts straight through.
A quarter of the way in, the direction of motion on captions seen in training must beat chance, else the run stops.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' and transformers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from fpsgen.attention.schedule import Schedule
from fpsgen.evaluate.nano import captions, world
from fpsgen.evaluate.nano.meter import Meter, score
from fpsgen.train.sigmas import draw_sigmas, share
from recipes.nano import autoencoder, denoiser
from recipes.nano.latents import LatentPool
from recipes.nano.optim import Optimizers, schedule
from recipes.nano.sheet import contact_sheet

CAPTION_DROP = 0.1
CHANCE_DIRECTION = 40.0  # percent; guessing gives 25


def flow_loss(
    transformer, text_encoder, latents: Tensor, ids: Tensor, weights: Tensor, sigma: Tensor, on_gpu: bool
) -> Tensor:
    """Weighted mean squared error of the velocity, per sample [B]."""
    noise = torch.randn_like(latents)
    s = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * latents + s * noise
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=on_gpu):
        text = denoiser.embed(text_encoder, ids)
        velocity = transformer(
            hidden_states=noisy, timestep=sigma * 1000, encoder_hidden_states=text, return_dict=False
        )[0]
    squared = (velocity.float() - (noise - latents)).square()
    return (squared * weights).mean((1, 2, 3, 4)) / weights.mean((1, 2, 3, 4))


class Windows:
    """Draws the sigmas of a step: all of [0, 1], or one window of a schedule with the handle set to its profile."""

    def __init__(self, handle, plan: Schedule | None, rng: random.Random):
        self.handle, self.rng = handle, rng
        self.windows = [(low, high) for low, high, _ in plan.windows] if plan else [(0.0, 1.0)]
        shift = denoiser.FLOW_SHIFT
        mass = [share(high, shift) - share(low, shift) for low, high in self.windows]
        self.mass = [(m + 1 / len(mass)) / 2 for m in mass]  # few sigmas fall into the early window, many steps do

    def draw(self, count: int, device: torch.device):
        low, high = self.rng.choices(self.windows, self.mass)[0]
        context = self.handle.fixed_sigma((low + min(high, 1.0)) / 2) if self.handle else nullcontext()
        return context, draw_sigmas(count, denoiser.FLOW_SHIFT, low, high).to(device)


def measure(
    pipe, meter: Meter, scenes: list[world.Scene], texts: list[str], device: torch.device
) -> tuple[dict, Tensor]:
    on_gpu = device.type == "cuda"
    with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
        clips = denoiser.sample(pipe, texts, steps=20 if on_gpu else 2)
    readings = [r for some in clips.split(16) for r in meter(some.to(device))]
    return score(readings, scenes), clips


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline and the report")
    parser.add_argument("--minutes", type=float, default=9.5, help="wall time, compilation and check included")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps, if they end before the time (0: time)")
    parser.add_argument("--resume", type=Path, help="a pipeline folder to go on from")
    parser.add_argument("--schedule", type=Path, help="FPSAttention schedule (TOML) in the forward pass")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=24000)
    parser.add_argument("--fill", type=int, default=12000, help="clips encoded before the first step")
    args = parser.parse_args()
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    seed = round(time.time()) if args.resume else 0
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def log(*words: object) -> None:
        print(f"[{time.monotonic() - started:6.1f} s]", *words, flush=True)

    encoder = autoencoder.whole_clip(AutoencoderKLWan.from_pretrained(args.vae).to(device).eval().requires_grad_(False))
    tokenizer = denoiser.build_tokenizer()
    if args.resume:
        transformer = WanTransformer3DModel.from_pretrained(args.resume / "transformer", dtype=torch.float32)
        text_encoder = UMT5EncoderModel.from_pretrained(args.resume / "text_encoder", dtype=torch.float32)
    else:
        transformer, text_encoder = denoiser.build_transformer(), denoiser.build_text_encoder(len(tokenizer))
    transformer, text_encoder = transformer.to(device).float().train(), text_encoder.to(device).float().train()
    log("parameters", sum(p.numel() for m in (transformer, text_encoder) for p in m.parameters()))
    # samples are drawn with eager copies that hold the averaged weights: the compiled model keeps its one shape
    averaged = [copy.deepcopy(m).eval().requires_grad_(False) for m in (transformer, text_encoder)]
    handle, plan = None, None
    if args.schedule:
        from fpsgen.models.patch.apply import apply

        plan = Schedule.from_file(args.schedule)
        handle = apply(transformer, schedule=plan, strict=True)
        apply(averaged[0], schedule=plan, strict=True)
    if on_gpu:
        transformer.compile_repeated_blocks()

    pool = LatentPool(encoder, tokenizer, args.pool if on_gpu else 8, seed, render=32 if on_gpu else 4)
    while pool.encoded < min(args.fill, args.pool) and len(pool) < len(pool.latents):
        pool.add()
    log("pool", len(pool))
    null = denoiser.token_ids(tokenizer, [""]).to(device)
    adam = ("shared", "proj_out", "patch_embedding")
    optimizers = Optimizers([transformer, text_encoder], args.lr, adam, ema=0.9985)
    windows = Windows(handle, plan, random.Random(seed))
    meter = Meter(device)
    seen = [captions.random_example(random.Random(k)) for k in range(48 if on_gpu else 1)]
    decoder = AutoencoderKLWan.from_pretrained(args.vae).to(device).eval()
    pipe = denoiser.assemble(*averaged, tokenizer, decoder)
    batch = args.batch if on_gpu else 2

    def check() -> dict:
        with torch.no_grad():
            for p, e in zip((p for m in averaged for p in m.parameters()), optimizers.ema, strict=True):
                p.copy_(e)
        report, clips = measure(pipe, meter, [s for _, s in seen], [c for c, _ in seen], device)
        contact_sheet(list(clips[:14]), args.out / "seen.png", [c for c, _ in seen[:14]], scale=0.5)
        return report

    train_until = args.minutes * 60 - (25 if on_gpu else 60)
    first, losses, checked, rows = None, [], args.resume is not None, []
    while time.monotonic() - started < train_until and (not args.steps or optimizers.steps < args.steps):
        latents, ids, weights = pool.batch(batch)
        ids = torch.where(torch.rand(batch, 1, device=device) < CAPTION_DROP, null, ids)
        context, sigma = windows.draw(batch, device)
        with context:
            loss = flow_loss(transformer, text_encoder, latents, ids, weights, sigma, on_gpu).mean()
            loss.backward()
        if first is None:
            if on_gpu:
                torch.cuda.synchronize()
            first = time.monotonic() - started
            log("first step done, loss", round(loss.item(), 4))
        progress = (time.monotonic() - started - first) / max(1e-3, train_until - first)
        if args.steps:
            progress = max(progress, optimizers.steps / args.steps)
        optimizers.step(schedule(progress))
        losses.append(loss.detach())
        if optimizers.steps % 12 == 0:
            pool.add()
        if optimizers.steps % 500 == 0:
            mean = torch.stack(losses).mean().item()
            losses = []
            rate = optimizers.steps / (time.monotonic() - started - first)
            log(optimizers.steps, f"loss {mean:.4f}, {rate:.1f} steps/s, {pool.encoded} clips")
            rows.append({"step": optimizers.steps, "loss": round(mean, 4)})
            if not math.isfinite(mean):
                raise SystemExit("the loss is not finite")
        if on_gpu and not checked and progress > 0.25:
            checked = True
            report = check()
            log("check on seen captions", json.dumps(report))
            if report["direction"] <= CHANCE_DIRECTION:
                raise SystemExit(f"direction on seen captions is {report['direction']} %: motion is not being learned")
    log("trained", optimizers.steps, "steps")
    report = check()
    optimizers.load_ema()
    if handle:
        handle.remove()
    report |= {"steps": optimizers.steps, "batch": batch, "clips_encoded": pool.encoded, "loss": rows, "lr": args.lr}
    report["seconds"] = round(time.monotonic() - started)
    (args.out / "denoiser.json").write_text(json.dumps(report, indent=1) + "\n")
    for module in (transformer, text_encoder):
        module.to(torch.bfloat16)
    transformer.save_pretrained(args.out / "pipeline" / "transformer")
    text_encoder.save_pretrained(args.out / "pipeline" / "text_encoder")
    log(json.dumps({k: v for k, v in report.items() if k != "loss"}))


if __name__ == "__main__":
    main()
