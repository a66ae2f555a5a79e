"""Command lines, settings files, lines of prompt files, recipes and sidecars made at random: each ends as documented,
none in an internal error, and none leaves a file.
"""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from fpsgen import errors
from fpsgen.attention.presets import preset
from fpsgen.cli.app import run
from fpsgen.settings.table import SETTINGS

CODES = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
CODES -= {errors.INTERNAL, errors.INTERRUPTED, errors.TERMINATED}
WORDS = [
    "",
    "0",
    "-1",
    "1e999",
    "nan",
    "\u00b2",
    "1_0",
    "\ud800",
    "x" * 5000,
    "9" * 5000,
    "../x",
    "/",
    "//",
    "~",
    "a/b",
]
WORDS += [
    "a/b",
    "\u202e",
    "[",
    "{}",
    "true",
    "81",
    "33",
    "480p",
    "16:9",
    "0x0",
    "32x32",
    "nano",
    "auto",
    "cpu",
    "cuda:99",
]
WORDS += ["fps", "paper", "x.toml", "x.mp4", "x.png", "{slug}.mp4", "{nope}.mp4", "-", "--", "=", "%s", "\\", "'", '"']
WORDS += [
    "\u2603",
    "a b",
    "1,2",
    ",",
    "1,,2",
    "0.5,2",
    "9x9x9",
    "p.txt",
    "j.jsonl",
    "folder",
    "pipe",
    "none",
    "y" * 300,
]
VALUES: list[Any] = [
    0,
    -1,
    1,
    6,
    True,
    False,
    None,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x",
    "\x00",
    "\ud800",
]
VALUES += ["a\nb", "x" * 9000, [], [1], {}, {"a": 1}, [[[]]], 3.5, "3", "16:9", 10**19, -1e-9, 5000]
COMMANDS = ["generate", "batch", "bench", "bench kernel", "info", "replay", "compare", "models list", "models show", ""]
COMMANDS += ["models path", "models verify", "doctor --nonsense"]
RECIPE = {
    **{"schema": "fpsgen.recipe/1", "prompt": "a cat", "negative": "", "seed": 1, "noise": "cpu", "width": 256},
    **{"model": {"name": "nano", "source": "nano", "revision": "embedded"}, "height": 160, "frames": 33, "fps": 16},
    **{"steps": 2, "guidance": 4.0, "shift": 3.0, "max_sequence_length": 24, "strict": False, "device": "a GPU"},
    **{"method": "as scheduled", "schedule": {"name": "safe", "toml": preset("safe").to_toml()}, "dtype": "float32"},
    **{"vae_dtype": "float32", "versions": {"torch": "1"}, "scheduler": "UniPCMultistepScheduler"},
}


def command_line(draw: random.Random) -> list[str]:
    """Any command with some options and words, such that nothing can be made: a dry run, or a device that is absent."""
    options = [option for entry in SETTINGS.values() for option in (entry.option, entry.short) if option]
    command = draw.choice(COMMANDS).split()
    words = list(command)
    for _ in range(draw.randint(0, 4)):
        option = draw.random() < 0.5
        words += [draw.choice([*options, "--no-strict", "--prompts"])] if option else []
        words += [draw.choice(WORDS)] if not option or draw.random() < 0.8 else []
    return words + {"generate": ["--dry-run"], "batch": ["--dry-run"]}.get((command or [""])[0], ["--device", "cuda"])


def recipe(draw: random.Random) -> list[str]:
    """A recipe with one or two values changed, in a JSON file."""
    changed: dict[str, Any] = copy.deepcopy(RECIPE)
    for _ in range(draw.randint(1, 2)):
        name = draw.choice(list(changed))
        if draw.random() < 0.2:
            del changed[name]
        elif isinstance(changed[name], dict) and changed[name] and draw.random() < 0.6:
            changed[name][draw.choice(list(changed[name]))] = draw.choice(VALUES)
        else:
            changed[name] = draw.choice(VALUES)
        if draw.random() < 0.2:
            changed[draw.choice(["scaled_to", "eta", ""])] = draw.choice(VALUES)
    write("r.json", json.dumps({"recipe": changed, "report": draw.choice([*VALUES, {"stages_s": {"a": 1}}])}))
    return draw.choice([["replay", "r.json", "--device", "cuda"], ["info", "r.json"]])


def prompt_line(draw: random.Random) -> list[str]:
    """A line of a .jsonl file with any settings."""
    line = {"prompt": draw.choice(["a cat", *VALUES])}
    line |= {draw.choice(list(SETTINGS)): draw.choice(VALUES) for _ in range(draw.randint(0, 3))}
    write("l.jsonl", json.dumps(line) + "\n")
    return ["batch", "l.jsonl", "--dry-run"]


def settings_file(draw: random.Random) -> list[str]:
    """fpsgen.toml with any settings, or anything else."""
    lines = [f"{draw.choice(list(SETTINGS))} = {json.dumps(draw.choice(VALUES))}" for _ in range(draw.randint(0, 3))]
    write("fpsgen.toml", "\n".join(lines) if draw.random() < 0.9 else draw.choice(WORDS))
    return ["generate", "a cat", "--dry-run"]


def write(name: str, text: str) -> None:
    Path(name).write_bytes(text.encode("utf-8", "surrogatepass"))


def wrong(count: int, seed: int, capsys) -> list[str]:
    """Inputs of `count` that did not end as documented."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = draw.choice([command_line, recipe, prompt_line, settings_file])(draw)
        code = run(words)
        said = capsys.readouterr().err
        if code not in CODES or "internal error" in said or "Traceback" in said:
            found.append(f"{words}: {code} {said[-200:]}")
        Path("fpsgen.toml").unlink(missing_ok=True)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with files of every kind, without this machine's settings."""
    for name in [name for name in os.environ if name.startswith("FPSGEN_")]:
        monkeypatch.delenv(name)
    for name, value in (("XDG_CONFIG_HOME", tmp_path / "config"), ("HF_HOME", tmp_path / "hf")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    monkeypatch.chdir(work)
    write("p.txt", "a cat\n")
    write("j.jsonl", '{"prompt": "a"}\n')
    write("x.toml", "name = 1\n")
    os.mkfifo("pipe")
    return work


def left(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")} - {"l.jsonl", "r.json", "fpsgen.toml"}


def test_some_inputs(place, capsys):
    before = left(place)
    assert not wrong(60, 1, capsys)
    assert left(place) == before


def test_a_fault_would_be_seen(place, capsys, monkeypatch):
    from fpsgen.pipeline import plan

    monkeypatch.setattr(plan, "check_schedule", lambda name: 1 / 0)
    assert wrong(60, 1, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_inputs(place, capsys, row):
    before = left(place)
    found = wrong(10_000, 2, capsys)
    row(
        "generated inputs", tried=10_000, as_promised=10_000 - len(found), control="a planted fault", detail="exit code"
    )
    assert not found
    assert left(place) == before
