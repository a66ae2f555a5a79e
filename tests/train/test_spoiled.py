"""A run's folder that something has changed: the run goes on, or names the file in two lines. It never waits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.train.events import Silent
from fpsgen.train.run import train

JUNK = (
    b"",
    b"\xff\xfe{",
    b"[]",
    b"{}",
    b'{"step": 1}',
    b"[" * 100_000,
    b'{"early": "x"}',
    b'{"early": [1]}',
    b"9" * 5000,
)
SHARD = "pairs/00000.safetensors"


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config(make_config), folder, torch.device("cpu"), Silent(), Silent())
    return folder


def config(make_config):
    return make_config(prompts=("a", "b"), held_out=1, teacher_steps=2, steps=2, batch=1, save_every=1)


def again(make_config, finished: Path, folder: Path, name: str, spoil) -> int:
    """The code that the same run ends with once `spoil` has had the file; 0 where it goes on."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "model")
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    spoil(path, data)
    try:
        train(config(make_config), folder, torch.device("cpu"), Silent(), Silent())
    except FpsgenError as error:
        assert str(folder) in error.message and "\n" not in error.message + error.remedy, error
        return error.code
    return 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name", ["log.jsonl", "before.json", "run.json", "inputs.json", SHARD, "step-0000002/checkpoint.json"]
)
def test_pipes_are_not_waited_for(make_config, finished, tmp_path, name):
    code = again(make_config, finished, tmp_path / "run", name, lambda path, data: os.mkfifo(path))
    assert code == (0 if name.startswith("step") else BAD_INPUT)  # the checkpoint before it counts


@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", ["log.jsonl", "before.json"])
def test_texts_that_are_none(make_config, finished, tmp_path, name):
    allowed = {"log.jsonl": 0, "before.json": BAD_INPUT}[name]
    for number, junk in enumerate(JUNK):
        spoil = lambda path, data, junk=junk: path.write_bytes(junk)  # noqa: E731
        assert again(make_config, finished, tmp_path / str(number), name, spoil) == allowed, junk[:20]


def test_a_checkpoint_without_its_settings_is_of_another_run(make_config, finished, tmp_path):
    def spoil(path: Path, data: bytes) -> None:
        path.write_bytes(data.replace(b'"config"', b'"other"'))

    assert again(make_config, finished, tmp_path / "run", "step-0000002/checkpoint.json", spoil) == BAD_INPUT
