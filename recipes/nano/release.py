"""Put the trained parts together as a diffusers pipeline folder with its schedule: what `weights/nano` holds.

    python -m recipes.nano.release --vae DIR --pipeline DIR --out weights/nano [--schedule FILE]

The folder loads with stock diffusers (`WanPipeline.from_pretrained`). Transformer and text encoder are stored in bf16,
the autoencoder in fp16 (it runs in fp32). The whole folder must stay at or under 16 MB.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' and transformers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from fpsgen.attention.schedule import Schedule
from fpsgen.evaluate.nano import captions, world
from fpsgen.files import write_text
from fpsgen.models.catalog.folder import VOCABULARY
from fpsgen.models.catalog.manifest import write_manifest
from recipes.nano import denoiser

LIMIT = 16_000_000


def release(vae: Path, pipeline: Path, out: Path, schedule: Schedule | None) -> int:
    """Write the folder anew; returns its size in bytes. Raises ValueError above the limit."""
    transformer = WanTransformer3DModel.from_pretrained(pipeline / "transformer", dtype=torch.float32).bfloat16()
    text_encoder = UMT5EncoderModel.from_pretrained(pipeline / "text_encoder", dtype=torch.bfloat16)
    autoencoder = AutoencoderKLWan.from_pretrained(vae, torch_dtype=torch.float32).half()
    pipe = denoiser.assemble(transformer, text_encoder, denoiser.build_tokenizer(), autoencoder)
    if out.exists():
        shutil.rmtree(out)
    pipe.save_pretrained(out)
    if schedule is not None:
        (out / "schedule.toml").write_text(schedule.to_toml(), encoding="utf-8")
    for config in out.rglob("*config.json"):
        lines = [line for line in config.read_text().splitlines() if '"_name_or_path"' not in line]
        config.write_text("\n".join(lines) + "\n")
    write_vocabulary(out)
    write_manifest(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{out} has {size} bytes, over {LIMIT}")
    return size


def write_vocabulary(out: Path) -> Path:
    """Write what the model draws and every word that its captions hold, in the words of `captions.plain`."""
    table = {
        "subjects": list(world.SUBJECTS),
        "colours": list(world.COLOURS),
        "motions": [captions.VERBS[motion][0][0] for motion in world.MOTIONS],
        "backgrounds": [captions.PLACES[place][0] for place in captions.PLACES],
        "words": captions.vocabulary(),
    }
    return write_text(json.dumps(table, indent=1) + "\n", out / VOCABULARY, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--schedule", type=Path)
    args = parser.parse_args()
    schedule = Schedule.from_file(args.schedule) if args.schedule else None
    print(f"{args.out}: {release(args.vae, args.pipeline, args.out, schedule):,} bytes")


if __name__ == "__main__":
    main()
