"""`fpsgen train` as a command: what it refuses, and a run from a file to a video of the trained folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fpsgen.bench.suite import read_rows
from fpsgen.cli.app import run
from fpsgen.errors import OK, USAGE

from .conftest import SCHEDULE


@pytest.mark.parametrize(
    "words",
    [[], ["run.toml", "--preset", "nano-demo"], ["--preset", "nano"], ["--preset", "nano-demo", "--device", "gpu"]],
)
def test_usage_is_judged_first(words, capsys):
    assert run(["train", *words]) == USAGE
    assert not capsys.readouterr().out


def test_a_run_from_a_file_to_a_video(tiny_dir, tmp_path, capsys):
    (tmp_path / "schedule.toml").write_text(SCHEDULE)
    values = {"name": "mine", "model": str(tiny_dir), "schedule": "schedule.toml", "prompts": ["a", "b"], "held_out": 1}
    values |= {"width": 64, "height": 64, "frames": 9, "teacher_steps": 3, "steps": 2}
    values |= {"lr": 0.01, "warmup": 1, "ema": 0.0}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "run.toml").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "out"
    assert run(["train", str(tmp_path / "run.toml"), "-o", str(folder), "--device", "cpu"]) == OK
    said = capsys.readouterr()
    assert said.out == f"{folder / 'model'}\n"
    found = read_rows(folder / "evaluation")
    rows = {row["variant"]: row for row in found}
    assert (
        len(found) == 3
        and list(rows) == ["dense", "untrained", "trained"]
        and {row["prompt"] for row in rows.values()} == {"b"}
    )
    assert rows["dense"]["density"] == 1 and rows["untrained"]["density"] == rows["trained"]["density"] < 1
    assert rows["trained"]["schedule"] == "mine" and rows["untrained"]["schedule"] == "tiny"
    errors = [rows[name]["velocity"]["late"]["mse"] for name in ("untrained", "trained")]
    assert errors[0] != errors[1]
    assert all(Path(row["video"]).stat().st_size > 0 for row in rows.values())
    assert (folder / "evaluation" / "index.html").is_file()
    assert all(name in said.err for name in ("untrained", "trained"))


def test_the_first_word_is_a_run_or_a_command_of_the_group(monkeypatch, tmp_path):
    """A run's file may have any name; options may stand behind it."""
    import typer

    from fpsgen.cli import train
    from fpsgen.train import config as runs

    called = []
    group = typer.main.get_command(train.app)
    group.add_command(typer.main.get_command(_command(lambda folder: called.append(folder))), "prepare")
    group.main(["prepare", "videos"], standalone_mode=False)
    assert called == ["videos"]
    monkeypatch.setattr(runs, "read_config", lambda path: called.append(str(path)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        group.main(["prepared.toml", "-o", str(tmp_path)], standalone_mode=False)
    assert called[-1] == "prepared.toml"


def _command(body):
    import typer

    app = typer.Typer()

    @app.command()
    def prepare(folder: str) -> None:
        body(folder)

    return app


def test_validation_videos_come_while_it_runs(tiny_dir, tmp_path, monkeypatch):
    """The schedule's own, of the averaged weights; training goes on as without them."""
    from fpsgen.report.training import read_log

    (tmp_path / "schedule.toml").write_text(SCHEDULE)
    values = {"name": "mine", "model": str(tiny_dir), "schedule": "schedule.toml", "prompts": ["a", "b"], "held_out": 1}
    values |= {"width": 64, "height": 64, "frames": 9, "teacher_steps": 2, "steps": 3, "dense_every": 2}
    found = {}
    for every in (0, 1):
        lines = [f"{key} = {json.dumps(value)}" for key, value in (values | {"sample_every": every}).items()]
        (tmp_path / "run.toml").write_text("\n".join(lines) + "\n")
        folder = tmp_path / f"every-{every}"
        assert run(["train", str(tmp_path / "run.toml"), "-o", str(folder), "--device", "cpu", "-q"]) == OK
        found[every] = [(row["loss"], row["grad_norm"]) for row in read_log(folder / "log.jsonl")]
    assert sorted(path.name for path in folder.glob("step-*.mp4")) == ["step-0000001.mp4", "step-0000002.mp4"]
    recipe = json.loads((folder / "step-0000001.json").read_text())["recipe"]
    assert recipe["schedule"]["name"] == "tiny" and "trained = false" in recipe["schedule"]["toml"]
    assert found[0] == found[1]
    assert (folder / "page.html").read_text().count("<video") >= 2
