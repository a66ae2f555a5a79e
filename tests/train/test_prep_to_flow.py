"""Videos, prepared by one command, are trained on by another; a run may mix them with its teacher."""

from __future__ import annotations

import json

import pytest

from fpsgen.cli.app import run
from fpsgen.errors import OK
from fpsgen.report.training import read_log

from .conftest import SCHEDULE
from .prep.conftest import write_clip


@pytest.mark.slow
@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_from_videos_to_a_trained_folder(tiny_dir, tmp_path, distill):
    for number, name in enumerate("abc"):
        write_clip(tmp_path / "videos" / f"{name}.mp4", number, f"video {name}", frames=12)
    words = ["-m", str(tiny_dir), "--res", "64x64", "--frames", "9", "--device", "cpu", "--filter"]
    assert run(["train", "prep", str(tmp_path / "videos"), "-o", str(tmp_path / "data"), *words, "flow=off"]) == OK
    (tmp_path / "schedule.toml").write_text(SCHEDULE)
    values = {"name": "mine", "model": str(tiny_dir), "schedule": "schedule.toml", "data": "data", "flow": 0.5}
    values |= {"distill": distill, "prompts": ["a"] if distill else [], "width": 64, "height": 64, "frames": 9}
    values |= {"teacher_steps": 2, "steps": 4, "batch": 2, "dense_every": 0}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "run.toml").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    assert run(["train", str(tmp_path / "run.toml"), "-o", str(out), "--device", "cpu", "-q"]) == OK
    wanted = ["distill", "flow"] if distill else ["flow"]
    rows = read_log(out / "log.jsonl")
    assert [list(row["objectives"]) for row in rows] == [wanted] * 4
    if distill:
        losses = [sum(w * row["objectives"][n]["loss"] for n, w in (("distill", 1.0), ("flow", 0.5))) for row in rows]
        assert [row["loss"] for row in rows] == pytest.approx(losses)
    assert (out / "model" / "schedule.toml").exists()
