"""Several processes of one run, by torchrun on the CPU: the same numbers as one process, and checkpoints that either
goes on from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fpsgen.report.training import read_log
from fpsgen.train.log import LOG

from .conftest import SCHEDULE


def write_run(folder: Path, model: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "schedule.toml").write_text(SCHEDULE)
    values = {"name": "shared", "model": str(model), "schedule": "schedule.toml", "prompts": ["a", "b", "c"]}
    values |= {"held_out": 1, "width": 64, "height": 64, "frames": 9, "teacher_steps": 3, "guidance": 3.0}
    values |= {
        "steps": 4,
        "batch": 2,
        "lr": 1e-3,
        "warmup": 1,
        "ema": 0.5,
        "save_every": 2,
        "keep": 5,
        "dense_every": 2,
    }
    path = folder / "run.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (values | changes).items()))
    return path


def train(run: Path, out: Path, count: int) -> None:
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=0", "--standalone"]
    command = [sys.executable, *(start if count > 1 else []), "-m", "fpsgen", "train", str(run), "-o", str(out)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, timeout=280, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder / LOG)]


LORA = {"lora_rank": 4, "flow": 0.5, "checkpointing": False}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"sample_every": 2}, LORA, {"linear": "fp8"}], ids=["full", "lora", "fp8"])
def test_two_processes_train_what_one_does(tiny_dir, tmp_path, changes):
    run = write_run(tmp_path / "run", tiny_dir, **changes)
    for count in (1, 2):
        train(run, tmp_path / f"of-{count}", count)
    one, two = (losses(tmp_path / f"of-{count}") for count in (1, 2))
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)
    for count in (1, 2):
        videos = [path.name for path in (tmp_path / f"of-{count}").glob("step-*.mp4")]
        assert videos == (["step-0000002.mp4"] if "sample_every" in changes else [])
    from safetensors.torch import load_file

    for kind in ("weights", "average", "exp_avg"):
        a, b = (load_file(tmp_path / f"of-{count}" / "step-0000004" / f"{kind}.safetensors") for count in (1, 2))
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(tiny_dir, tmp_path):
    run, out = write_run(tmp_path / "run", tiny_dir), tmp_path / "out"
    train(run, out, 2)
    whole = losses(out)
    for path in (out / "step-0000004", out / "model"):
        subprocess.run(["rm", "-r", str(path)], check=True)
    train(run, out, 1)
    assert losses(out)[:2] == whole[:2] and losses(out) == pytest.approx(whole, rel=1e-4)
