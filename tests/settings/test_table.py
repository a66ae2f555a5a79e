"""The table of settings: a new option is one entry, and each entry is right about what it decides."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from fpsgen.batch.jobs import job_key
from fpsgen.pipeline.plan import plan
from fpsgen.settings.gather import Settings
from fpsgen.settings.table import SETTINGS
from fpsgen.video import read_recipe

ROOT = Path(__file__).resolve().parents[2]
MADE_UP = """
import sys
from fpsgen.settings import parsers
from fpsgen.settings.setting import ANYWHERE, Setting
from fpsgen.settings.table import SETTINGS
SETTINGS["eta"] = Setting("eta", parsers.real(0, 1), "A made-up one.", "Quality", "0.5", metavar="X", default=0.25,
    commands=("generate", "batch"), layers=ANYWHERE, recipe=True, key=True, complete=("0.5", "0.75"))
from fpsgen.cli.app import run
sys.exit(run(sys.argv[1:]))
"""
SMALL = ("--res", "32x32", "--frames", "5", "--steps", "1", "--guidance", "1", "--method", "bf16", "--seed", "7")


@pytest.fixture
def made_up(tmp_path, tiny_dir):
    """fpsgen with an option more, in an empty folder."""

    def call(*arguments: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FPSGEN_")}
        clean |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "none"), "FPSGEN_MODEL": str(tiny_dir)}
        command = [sys.executable, "-c", MADE_UP, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean | environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done

    return call


def test_an_entry_is_an_option_in_every_layer(made_up, tmp_path):
    assert "--eta" in made_up("generate", "--help").stdout

    def settled(*arguments: str, **environ: str) -> tuple[float, str]:
        made = made_up("generate", "a cat", *SMALL, "--dry-run", "--json", *arguments, **environ)
        result = json.loads(made.stdout)["results"][0]
        return result["settings"]["eta"], result["origins"]["eta"]

    assert settled() == (0.25, "default")
    assert settled("--eta", "0.5", FPSGEN_ETA="0.6") == (0.5, "flag")
    assert settled(FPSGEN_ETA="0.6") == (0.6, "environment")
    (tmp_path / "fpsgen.toml").write_text("eta = 0.7\n")
    assert settled() == (0.7, "./fpsgen.toml")
    assert any(
        line.startswith("eta ") and "0.7" in line for line in made_up("generate", "a", "--dry-run").stdout.split("\n")
    )
    assert "--eta '2'" in made_up("generate", "a", "--eta", "2", code=2).stderr
    assert "FPSGEN_ETA" in made_up("generate", "a", code=2, FPSGEN_ETA="x").stderr
    words = {"_FPSGEN_COMPLETE": "complete_bash", "COMP_WORDS": "fpsgen generate --eta ", "COMP_CWORD": "3"}
    assert made_up(**words).stdout.split() == ["0.5", "0.75"]


def test_an_entry_reaches_recipe_replay_and_job_key(made_up, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "eta": 0.5}\n{"prompt": "a cat"}\n')
    paths = made_up("batch", "p.jsonl", *SMALL, "--eta", "1").stdout.split()
    assert len(paths) == 2  # two jobs that differ in nothing else
    recipes = [read_recipe(tmp_path / path) for path in paths]
    assert [recipe and recipe["eta"] for recipe in recipes] == [0.5, 1]
    again = made_up("replay", paths[0], "-o", "again.mp4").stdout.strip()
    assert (read_recipe(tmp_path / again) or {})["eta"] == 0.5


@pytest.fixture
def request_for(tmp_path, tiny_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(**changes):
        asked = {"model": str(tiny_dir), "res": (64, 48), "seed": 7} | changes
        return plan("a cat", Settings(asked)).request

    return make


OTHER = {  # a value of each setting that differs from what request_for and the tiny model's defaults say
    "model": "nano",
    "res": (32, 32),
    "frames": 5,
    "seconds": 1.0,
    "fps": 3,
    "steps": 3,
    "guidance": 7.5,
    "shift": 9.0,
    "negative": "a dog",
    "seed": 8,
    "method": "bf16",
    "method_impl": "reference",
    "bf16_backend": "math",
    "schedule": "balanced",
    "strict": True,
    "linear": "fp8",
    "lora": __file__,
    "cache": "first-block",
    "cfg_until": 0.5,
    "exact": True,
    "compile": "off",
    "output": "elsewhere/",
    "overwrite": True,
    "metadata": False,
    "device": "cuda",
    "dtype": "bf16",
}


ALIKE = {"strict", "output", "overwrite", "metadata", "device"}  # the same video, or none


@pytest.mark.parametrize("name", list(OTHER))
def test_the_key_of_a_job_is_all_that_decides_the_video(request_for, name):
    """Leaving shift, say, out of the key would take two videos for one."""
    first, other = request_for(), request_for(**{name: OTHER[name]})
    assert (job_key(first) != job_key(other)) == (name not in ALIKE)


def test_every_setting_that_a_file_may_set_is_tried_above():
    assert {name for name, entry in SETTINGS.items() if "line" in entry.layers} - {"aspect"} <= set(OTHER)


def test_the_prompt_decides_too(request_for):
    first = request_for()
    assert job_key(first) != job_key(first.replace(prompt={"text": "a dog"}))


def test_a_schedule_file_counts_by_what_it_holds(request_for, tmp_path):
    from fpsgen.attention.presets import preset

    file = tmp_path / "own.toml"
    keys = []
    for name in ("safe", "paper"):
        file.write_text(preset(name).to_toml())
        keys.append(job_key(request_for(schedule=str(file))))
    assert keys[0] != keys[1]


def test_requests_are_frozen_and_travel(request_for):
    request = request_for(schedule="paper")
    assert pickle.loads(pickle.dumps(request)) == request
    with pytest.raises(FrozenInstanceError):
        request.video.width = 3
    assert request.replace(sampling={"steps": 9}).sampling.steps == 9 != request.sampling.steps
    assert pickle.loads(pickle.dumps(Settings({"steps": 3}))).steps == 3


def test_switches_can_be_unset_by_a_flag(tmp_path, monkeypatch):
    from fpsgen.cli.options import takes_settings
    from fpsgen.settings.gather import gather

    found = []
    command = takes_settings("generate")(lambda given: found.append(gather(given, {}, tmp_path, tmp_path / "none")))
    (tmp_path / "fpsgen.toml").write_text("strict = true\nmetadata = false\n")
    command()
    command(strict=False, metadata=True)
    assert [(s.strict, s.metadata) for s in found] == [(True, False), (False, True)]
