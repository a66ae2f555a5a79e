"""Run a diffusers pipeline with FPSAttention, and take it away again: python examples/patch_a_pipeline.py [FOLDER]

FOLDER: a Wan2.1 pipeline; without one the embedded model, which needs no GPU. Writes cat.mp4.
"""

import sys

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import fpsgen
from fpsgen.assets import weights_dir

pipe = WanPipeline.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else weights_dir() / "nano")
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
with fpsgen.apply(pipe) as handle:
    made = pipe("a cat surfing", width=256, height=160, num_frames=33, num_inference_steps=8, guidance_scale=4.0)
    print(handle)  # profile, kernel and density of every step
# the block is left: from here on, the pipeline is as diffusers made it
print(export_to_video(made.frames[0], "cat.mp4", fps=16))
