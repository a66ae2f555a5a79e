"""A folder with random weights makes a video by the command that users type."""

import dataclasses
import subprocess
import sys

from fpsgen.models.catalog.registry import find_spec
from fpsgen.video import count_frames
from tools.random_model import write_random_model

TEXT = {"vocab_size": 98, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
VAE = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def test_it_is_a_model_that_generates(tmp_path):
    shape = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 1}
    spec = dataclasses.replace(find_spec("wan2.1-1.3b"), transformer=shape)
    write_random_model(spec, tmp_path / "model", TEXT, VAE)
    command = [sys.executable, "-m", "fpsgen", "generate", "a cat", "-m", "model", "--res", "64x48", "--frames", "5"]
    done = subprocess.run([*command, "--steps", "1", "-o", "a.mp4"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert count_frames(tmp_path / "a.mp4") == 5
