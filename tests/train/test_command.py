"""`fpsgen train` as a command: what it refuses, and a run from a file to a video of the trained folder."""

from __future__ import annotations

import json

import pytest

from fpsgen.cli.app import run
from fpsgen.errors import OK, USAGE

from .conftest import SCHEDULE


@pytest.mark.parametrize("words", [[], ["run.toml", "--preset", "nano-demo"], ["--preset", "nano"]])
def test_usage_is_judged_first(words, capsys):
    assert run(["train", *words]) == USAGE
    assert not capsys.readouterr().out


def test_a_run_from_a_file_to_a_video(tiny_dir, tmp_path, capsys):
    (tmp_path / "schedule.toml").write_text(SCHEDULE)
    values = {"name": "mine", "model": str(tiny_dir), "schedule": "schedule.toml", "prompts": ["a", "b"], "held_out": 1}
    values |= {"width": 64, "height": 64, "frames": 9, "teacher_steps": 3, "steps": 2}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "run.toml").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "out"
    assert run(["train", str(tmp_path / "run.toml"), "-o", str(folder), "--device", "cpu"]) == OK
    said = capsys.readouterr()
    assert said.out == f"{folder / 'model'}\n"
    assert (folder / "sample.mp4").stat().st_size > 0
    recipe = json.loads((folder / "sample.json").read_text())["recipe"]
    assert recipe["prompt"] == "b" and "mine" in json.dumps(recipe)
