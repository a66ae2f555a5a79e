"""kill -9 at random moments, again and again: the run that goes on is the unbroken one to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_that_is_killed_at_random_is_the_unbroken_one(make_config, tmp_path):
    """TRAIN_KILLS says how many (20)."""
    kills = int(os.environ.get("TRAIN_KILLS", "20"))
    run = tmp_path / "run.json"
    run.write_text(make_config(steps=24, save_every=2, density_ramp=8, flow=0.5, dense_every=3).to_json())
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), str(run), str(tmp_path / "runs"), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout)
    print(row)
    assert row["kills"] == kills and row["runs"] >= 1 and row["equal"] == row["runs"]
    assert row["places"]["between steps"] >= kills / 4  # not all of them while it starts
