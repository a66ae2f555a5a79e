"""Command lines, settings files, lines of prompt files, recipes and sidecars made at random: each ends as documented,
none in an internal error, and none leaves a file.
"""

from __future__ import annotations

import copy
import io
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

INPUTS = {"l.jsonl", "r.json", "fpsgen.toml", "t.toml", "b.jsonl", "b.html", "r.png"}
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
    "\x1b[31m",
]
NAMES = ["{slug}/{n}.mp4", "{n:05d}.mp4", "{0}.mp4", "{}.mp4", "{slug", "{{slug}}.mp4", "../{slug}.mp4", "{seed!r}.mp4"]
NAMES += ["{slug}/../../x.mp4", "{prompt.__class__}.mp4", "{slug}" * 40 + ".mp4", "~/{slug}.mp4", "con.mp4", ".mp4"]
NAMES += ["..mp4", "a.mp4/b.mp4", "x.MP4", "x.mp4 ", "http://h/x.mp4", "/dev/null", "folder/", "p.txt/x.mp4", "x.json"]
WORDS += NAMES
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
VALUES += [
    "\x1b[31m",
    "a\nb",
    "x" * 9000,
    "x" * 300,
    [],
    [1],
    {},
    {"a": 1},
    [[[]]],
    3.5,
    "3",
    "16:9",
    10**19,
    -1e-9,
    5000,
]
COMMANDS = ["generate", "batch", "bench", "bench kernel", "info", "replay", "compare", "models list", "models show", ""]
COMMANDS += ["models path", "models verify", "doctor --nonsense", "models pull", "models rm", "report", "train"]
COMMANDS += ["train prep", "train export", "evaluate", "bench waterfall", "bench steps"]
RECIPE = {
    **{"schema": "fpsgen.recipe/1", "prompt": "a cat", "negative": "", "seed": 1, "noise": "cpu", "width": 256},
    **{"model": {"name": "nano", "source": "nano", "revision": "embedded"}, "height": 160, "frames": 33, "fps": 16},
    **{"steps": 2, "guidance": 4.0, "shift": 3.0, "max_sequence_length": 24, "strict": False, "device": "a GPU"},
    **{"method": "as scheduled", "schedule": {"name": "safe", "toml": preset("safe").to_toml()}, "dtype": "float32"},
    **{"vae_dtype": "float32", "versions": {"torch": "1"}, "scheduler": "UniPCMultistepScheduler"},
}

_TIME = {"median": 1.0, "min": 0.9, "max": 1.1, "n": 3}
ROW = {
    **{"schema": "fpsgen.bench/2", "method": "fps", "baseline": "bf16", "device": "GPU", "created": "2026"},
    **{"model": "m", "prompt": "a", "schedule": "paper", "versions": {"torch": "2"}, "commit": "abc", "seed": 1},
    **{"random_weights": False, "width": 64, "height": 48, "frames": 5, "tokens": 96, "steps": 2, "guidance": 5.0},
    **{"stages_s": {"text": _TIME, "denoise": _TIME, "vae": _TIME}, "step_s": _TIME, "steps_s": [0.5, 0.5]},
    **{"total_s": _TIME, "attention_share": 0.5, "density": 0.25, "kernels": {"k": 1}, "vmaf": 80.0},
    **{"peak_memory": {"cuda_bytes": 1}, "speedup_denoise": 2.0, "psnr_db": 20.0, "ssim": 0.9, "xpsnr_db": 33.0},
    **{"flicker": 1.5, "video": None, "command": "fpsgen bench"},
}


def command_line(draw: random.Random) -> list[str]:
    """Any command with some options and words, such that nothing can be made: a dry run, or a device that is absent."""
    options = [option for entry in SETTINGS.values() for option in (entry.option, entry.short) if option]
    command = draw.choice(COMMANDS).split()
    dry = command in (["generate"], ["batch"])
    # a dry run is asked for at once: at the end it would be the text of --negative at times, and a video would be made
    words = [*command, "--dry-run"] if dry else list(command)
    words += ["-o", draw.choice(NAMES)] if dry and draw.random() < 0.3 else []
    for _ in range(draw.randint(0, 4)):
        option = draw.random() < 0.5
        words += [draw.choice([*options, "--no-strict", "--prompts"])] if option else []
        words += [draw.choice(WORDS)] if not option or draw.random() < 0.8 else []
    return words if dry else [*words, "--device", "cuda"]


def changed_recipe(draw: random.Random) -> dict[str, Any]:
    """A recipe with one or two values changed."""
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
    return changed


def picture(draw: random.Random) -> list[str]:
    """A recipe in a PNG, its text cut or doubled at times."""
    import imageio.v3 as iio
    import numpy as np
    from PIL.PngImagePlugin import PngInfo

    text = json.dumps(changed_recipe(draw))
    if draw.random() < 0.2:
        text = draw.choice(
            [text[: draw.randint(0, len(text))], text + text, "[" * 100_000, "9" * 5000, '{"schema": NaN}']
        )
    texts = PngInfo()
    texts.add_itxt("comment", text)
    data = iio.imwrite("<bytes>", np.zeros((16, 16, 3), np.uint8), extension=".png", plugin="pillow", pnginfo=texts)
    if draw.random() < 0.2:
        place = draw.randint(0, len(data))
        data = draw.choice([data[:place], data[:place] + bytes([draw.randint(0, 255)]) + data[place + 1 :]])
    Path("r.png").write_bytes(data)
    return draw.choice(
        [["replay", "r.png", "--device", "cuda", "-o", "y.png"], ["info", "r.png"], ["info", "r.png", "--json"]]
    )


def recipe(draw: random.Random) -> list[str]:
    """A recipe with one or two values changed, in a JSON file."""
    changed = changed_recipe(draw)
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


def training_run(draw: random.Random) -> list[str]:
    """A training run's file with one to three values changed, on a device that is absent."""
    lines = {"name": '"a"', "model": '"nano"', "schedule": '"safe"', "prompts": '["a", "b"]', "held_out": "1"}
    lines |= {"width": "256", "height": "160", "frames": "33", "steps": "2"}
    more = ["lr", "ema", "warmup", "batch", "clip", "flow", "lora_rank", "checkpointing", "keep", "seed", "x", ""]
    for _ in range(draw.randint(1, 3)):
        name = draw.choice([*lines, *more])
        lines[name] = json.dumps(draw.choice([*VALUES, ["a"], "x.toml", "pipe", "folder", "../x", "p.txt"]))
        if draw.random() < 0.2:
            del lines[name]
    write("t.toml", "\n".join(f"{name} = {value}" for name, value in lines.items()))
    return ["train", "t.toml", "--device", "cuda", "-o", draw.choice(["t", *WORDS])]


def bench_rows(draw: random.Random) -> list[str]:
    """Rows of a bench with one to three values changed, wherever they stand."""
    rows = [copy.deepcopy(ROW) for _ in range(draw.randint(1, 2))]
    for _ in range(draw.randint(1, 3)):
        table: Any = draw.choice(rows)
        while True:
            key = draw.choice([*table, "commit", "video", "command", ""])
            inner = table.get(key)
            if not isinstance(inner, dict) or not inner or draw.random() < 0.3:
                break
            table = inner
        if draw.random() < 0.2:
            table.pop(key, None)
        else:
            table[key] = draw.choice(VALUES)
    write("b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return ["report", "b.jsonl", "-o", "b.html", "--overwrite"]


def write(name: str, text: str) -> None:
    Path(name).write_bytes(text.encode("utf-8", "surrogatepass"))


def wrong(count: int, seed: int, capsys) -> list[str]:
    """Inputs of `count` that did not end as documented."""
    draw = random.Random(seed)
    found = []
    kinds = [command_line, command_line, recipe, picture, prompt_line, settings_file, training_run, bench_rows]
    for _ in range(count):
        words = draw.choice(kinds)(draw)
        code = run(words)
        shown, said = capsys.readouterr()
        traceback = "Traceback" in said and "--debug" not in words
        if code not in CODES or "internal error" in said or traceback or "\x1b" in shown + said:
            found.append(f"{words}: {code} {said[-200:]}")
        Path("fpsgen.toml").unlink(missing_ok=True)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch, own_folder):
    """A folder with files of every kind, without this machine's settings."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    (own_folder / "folder").mkdir()
    write("p.txt", "a cat\n")
    write("j.jsonl", '{"prompt": "a"}\n')
    write("x.toml", "name = 1\n")
    os.mkfifo("pipe")
    return own_folder


def left(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")} - INPUTS


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
        "generated command lines, settings, recipes, runs and rows",
        tried=10_000,
        as_promised=10_000 - len(found),
        control="a check that divides by zero is seen among 60 of them",
        detail="a documented exit code each, no traceback, no control character shown",
    )
    assert not found
    assert left(place) == before
