"""What a run becomes: a folder or a LoRA file that carries its schedule, and that generate runs by it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusal import refuses
from safetensors import safe_open

from fpsgen.attention.schedule import Schedule
from fpsgen.cli.app import run as fpsgen
from fpsgen.errors import BAD_INPUT, DISK, OK, USAGE
from fpsgen.models.catalog.choice import choose
from fpsgen.models.patch.schedule_choice import checkpoint_schedule
from fpsgen.models.wan.load import load
from fpsgen.models.wan.lora_file import add_lora_file
from fpsgen.train.config import TrainConfig
from fpsgen.train.events import Silent
from fpsgen.train.run import train


def trained(config: TrainConfig, folder: Path) -> Path:
    train(config, folder, torch.device("cpu"), Silent(), Silent())
    return folder


@pytest.fixture(scope="module")
def lora_run(make_config, tmp_path_factory) -> Path:
    config = make_config(steps=4, lora_rank=4, lr=1e-2, ema=0.0, checkpointing=False)
    return trained(config, tmp_path_factory.mktemp("lora") / "run")


@pytest.fixture(scope="module")
def lora_file(lora_run) -> Path:
    assert fpsgen(["train", "export", str(lora_run), "--lora", "-q"]) == OK
    return next(lora_run.glob("lora-*.safetensors"))


def test_a_lora_file_carries_its_schedule_and_the_run(lora_file):
    with safe_open(lora_file, framework="pt") as file:
        about = json.loads(file.metadata()["fpsgen"])
        schedule = Schedule.from_toml(about["schedule"])
        assert schedule.trained and schedule.name == "tiny" and about["run"]["lora_rank"] == 4
        assert all(name.startswith("transformer.blocks.") for name in file.keys())  # noqa: SIM118


def test_a_lora_file_makes_the_model_of_the_exported_folder(lora_run, lora_file, tiny_dir):
    pipe, folder = load(tiny_dir), load(lora_run / "model")
    before = {name: p.clone() for name, p in pipe.transformer.named_parameters()}
    add_lora_file(pipe, lora_file)
    for name, p in folder.transformer.named_parameters():
        ours = pipe.transformer.get_parameter(name)
        torch.testing.assert_close(ours, p, atol=2e-3, rtol=2e-2)
    moved = [name for name, p in pipe.transformer.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) == 2 * 10  # ten linear layers in each of two blocks
    assert checkpoint_schedule(pipe) == checkpoint_schedule(folder)
    assert checkpoint_schedule(pipe.transformer) == checkpoint_schedule(folder)


def test_generate_runs_a_lora_by_its_schedule(lora_file, tiny_dir, tmp_path):
    out = tmp_path / "a.mp4"
    words = ["generate", "a", "-m", str(tiny_dir), "--lora", str(lora_file), "-o", str(out), "--device", "cpu", "-q"]
    assert fpsgen([*words, "--res", "64x64", "--frames", "9", "--steps", "2"]) == OK
    recipe = json.loads(out.with_suffix(".json").read_text())["recipe"]
    assert "trained = true" in recipe["schedule"]["toml"] and recipe["lora"] == str(lora_file)
    assert recipe["lora_sha256"] == hashlib.sha256(lora_file.read_bytes()).hexdigest()


def test_what_others_get_says_nothing_of_this_machine(lora_run, lora_file, tiny_dir):
    card = (lora_run / "model" / "README.md").read_text()
    with safe_open(lora_file, framework="pt") as file:
        about = file.metadata()["fpsgen"]
    assert json.loads(about)["run"]["model"] == tiny_dir.name and f"\n{tiny_dir.name}, trained" in card
    for text in (card, about):
        assert str(tiny_dir.parent) not in text and str(lora_run.parent) not in text


def test_others_may_read_what_a_run_leaves(lora_run, lora_file):
    """By the umask, as all new files: safetensors writes for the owner alone, and the source's modes are copied."""
    for path in lora_run.rglob("*"):
        usual = lora_run / "run.json" if path.is_file() else lora_run
        assert path.name == ".lock" or path.stat().st_mode == usual.stat().st_mode, path


@pytest.mark.parametrize(("source", "base"), [("Wan-AI/Some-Model", True), ("nano", False)])
def test_a_card_begins_with_what_the_hub_reads(make_config, tiny_dir, source, base):
    import yaml

    from fpsgen.train import export

    choice = choose(str(tiny_dir))
    choice = replace(choice, spec=replace(choice.spec, source=source, licence="Apache-2.0"))
    card = export._card(choice, make_config(), {"before": {"late": 1.0}, "after": {"late": 0.5}})
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["pipeline_tag"] == "text-to-video" and head["license"] == "apache-2.0"
    assert head.get("base_model") == (source if base else None)
    assert "| late | 1 | 0.5 |" in card


def test_a_file_that_is_no_lora_of_the_model_is_refused(tiny_dir, tmp_path, lora_file):
    from safetensors.torch import save_file

    broken, other = tmp_path / "broken.safetensors", tmp_path / "other.safetensors"
    broken.write_bytes(b"none")
    save_file({"unknown.weight": torch.zeros(2, 2)}, other)
    for path in (broken, other):
        with refuses(BAD_INPUT, path.name):
            add_lora_file(load(tiny_dir), path)
    assert fpsgen(["generate", "a", "--lora", str(tmp_path / "none.safetensors")]) == BAD_INPUT


def test_a_run_in_the_middle_is_exported_with_a_row_for_the_registry(make_config, tmp_path, capsys, tiny_dir):
    from fpsgen.models.catalog.registry import shipped
    from fpsgen.models.catalog.user_rows import read_user_rows

    folder, config = tmp_path / "run", make_config(steps=4)
    trained(config, folder)
    (folder / "report.json").unlink()
    assert fpsgen(["train", "export", str(folder), "-o", str(tmp_path / "out"), "--json"]) == OK
    row = json.loads(capsys.readouterr().out)["results"][0]
    assert row["step"] == 4 and load(tmp_path / "out")
    assert fpsgen(["train", "export", str(folder), "-o", str(tmp_path / "out")]) == DISK
    assert fpsgen(["train", "export", str(folder), "--lora"]) == USAGE
    assert fpsgen(["train", "export", str(tmp_path)]) == BAD_INPUT
    models = tmp_path / "models.toml"
    models.write_text(row["row"])
    found = read_user_rows(models, shipped())
    assert found[0]["trained_schedule"] and found[0]["source"] == str(tmp_path / "out")
