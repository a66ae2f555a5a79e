"""A file of prompts becomes videos: checked whole, made once, gone on with after any kind of end."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fpsgen.errors import NUMERIC, FpsgenError
from fpsgen.video import count_frames, read_recipe

SMALL = ("--res", "32x32", "--frames", "5", "--steps", "1", "--guidance", "1", "--method", "bf16")


@pytest.fixture
def tiny(fpsgen, tiny_dir):
    """`fpsgen batch` with the tiny model and a small size."""

    def call(*arguments: str) -> int:
        return fpsgen("batch", *arguments, "-m", tiny_dir, *SMALL)

    return call


def recipe_of(path: str | Path) -> dict:
    recipe = read_recipe(path)
    assert recipe is not None
    return recipe


def write(*lines: str, name: str = "p.txt") -> str:
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def test_makes_every_line_once_and_skips_what_is_done(fpsgen, tiny, monkeypatch):
    loads = []
    from fpsgen.pipeline import loaded_model

    real = loaded_model.load_model
    monkeypatch.setattr(loaded_model, "load_model", lambda *a, **k: loads.append(1) or real(*a, **k))
    file = write("\ufeffa cat", "", "# a comment", "a dog\r", "a cat")
    assert tiny(file) == 0, fpsgen.err
    paths = [Path(line) for line in fpsgen.lines]
    assert len(paths) == len(set(paths)) == 3 and loads == [1]
    assert [recipe_of(path)["prompt"] for path in paths] == ["a cat", "a dog", "a cat"]
    assert len({recipe_of(path)["seed"] for path in paths}) == 3  # equal prompts get different seeds
    assert all(count_frames(path) == 5 and path.with_suffix(".json").is_file() for path in paths)
    assert "3 made" in fpsgen.err and "ETA" in fpsgen.err and "3/3" in fpsgen.err
    times = [path.stat().st_mtime_ns for path in paths]

    assert tiny(file) == 0
    assert fpsgen.lines == [str(path) for path in paths] and "3 done before" in fpsgen.err and loads == [1]
    write("a dog", "a bird")  # the order does not matter, and one line is new
    assert tiny(file) == 0 and "1 made, 1 done before" in fpsgen.err
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_a_changed_option_is_another_video(fpsgen, tiny, tiny_dir):
    assert tiny(write("a cat")) == 0
    first = fpsgen.lines
    assert fpsgen("batch", "p.txt", "-m", tiny_dir, *SMALL, "--steps", "2") == 0
    assert fpsgen.lines != first and "1 made" in fpsgen.err and Path(first[0]).is_file()


def test_what_is_broken_is_made_again_beside(fpsgen, tiny):
    assert tiny(write("a cat")) == 0
    path = Path(fpsgen.lines[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert tiny("p.txt") == 0 and "1 made" in fpsgen.err
    assert fpsgen.lines == [str(path.with_stem(path.stem + "-2"))]
    assert path.read_bytes() == whole[: len(whole) // 2]  # never overwritten
    assert tiny("p.txt") == 0 and "1 done before" in fpsgen.err


def test_a_video_that_the_ledger_missed_counts_if_it_is_whole(fpsgen, tiny):
    assert tiny(write("a cat")) == 0
    path = Path(fpsgen.lines[0])
    ledger = path.parent / ".fpsgen-batch.jsonl"
    ledger.write_text(ledger.read_text()[:-20])  # cut short by a kill
    assert tiny("p.txt") == 0 and "1 done before" in fpsgen.err and fpsgen.lines == [str(path)]
    path.write_bytes(path.read_bytes()[:-400])
    assert tiny("p.txt") == 0 and "1 made" in fpsgen.err


def test_overwrite_makes_all_again(fpsgen, tiny):
    assert tiny(write("a cat")) == 0
    path = Path(fpsgen.lines[0])
    before = path.stat().st_mtime_ns
    assert tiny("p.txt", "--overwrite") == 0 and fpsgen.lines == [str(path)]
    assert path.stat().st_mtime_ns > before


def test_lines_of_json_set_their_own(fpsgen, tiny):
    file = write(
        '{"prompt": "a cat", "seed": 5, "output": "cat.mp4"}',
        "",
        '{"prompt": "a dog", "frames": 9, "steps": 2, "guidance": 2.5, "negative": "blur"}',
        name="p.jsonl",
    )
    assert tiny(file, "-o", "there", "--seed", "3") == 0, fpsgen.err
    cat, dog = (Path(line) for line in fpsgen.lines)
    assert cat == Path("there/cat.mp4") and recipe_of(cat)["seed"] == 5
    recipe = recipe_of(dog)
    got = [recipe[key] for key in ("seed", "frames", "steps", "guidance", "negative")]
    assert got == [3, 9, 2, 2.5, "blur"] and dog.parent == Path("there")
    write('{"prompt": "a cat", "seed": 6, "output": "cat.mp4"}', name="p.jsonl")
    tiny(file, "-o", "there")
    fpsgen.refused(7, "line 1", "cat.mp4", "--overwrite")
    assert recipe_of(cat)["seed"] == 5


BAD = [
    ('{"prompt": "a", "stepz": 3}', 4, "line 2", "stepz", "steps"),
    ('{"prompt": "a", "steps": 0}', 4, "line 2", "steps", "'0'"),
    ('{"prompt": "a", "steps": [1]}', 4, "line 2", "single value"),
    ('{"seed": 1}', 4, "line 2", "no prompt"),
    ('{"prompt": " "}', 4, "line 2", "empty"),
    ('{"prompt": "a", "schedule": "nope"}', 4, "line 2", "nope"),
    ('{"prompt": "a", "output": "a.avi"}', 4, "line 2", ".mp4"),
    ("[1]", 4, "line 2", "object"),
    ('{"prompt": "a"', 4, "line 2", "JSON"),
]


@pytest.mark.parametrize(("line", "code", "words"), [(line, code, words) for line, code, *words in BAD])
def test_the_whole_file_is_checked_first(fpsgen, tiny, line, code, words):
    file = write('{"prompt": "a cat"}', line, '{"prompt": "ok"}', name="p.jsonl")
    tiny(file)
    fpsgen.refused(code, "p.jsonl", *words)
    assert not fpsgen.out and not Path("outputs").exists()


def test_files_that_are_none(fpsgen, tiny):
    for content, name, words in (
        (b"", "p.txt", "no prompt"),
        (b"# only\n\n", "p.txt", "no prompt"),
        (b"a\n\xff\xfe\n", "p.txt", "line 2"),
        (b"a", "p.csv", ".jsonl"),
    ):
        Path(name).write_bytes(content)
        tiny(name)
        fpsgen.refused(4, words)
    tiny("missing.txt")
    fpsgen.refused(4, "missing.txt")
    tiny(write("a cat", "a cat"), "--seed", "1")
    fpsgen.refused(4, "lines 1 and 2", "seeds")
    tiny("p.txt", "-o", "one.mp4")
    fpsgen.refused(2, "folder")


@pytest.mark.parametrize(
    "command",
    [
        "batch p.txt -m nano",
        "evaluate nano --prompts p.txt",
        "bench -m nano",
        "bench steps -m nano",
        "bench waterfall -m nano",
        "bench kernel --shape 1x2x2 --seconds 0.01",
        "train --preset nano-demo",
        "train prep --preset nano-demo",
    ],
)
@pytest.mark.parametrize("name", ["p.txt", "one.mp4"])
def test_a_file_where_a_folder_should_be_is_refused_alike(fpsgen, command, name):
    write("a cat")
    Path("one.mp4").write_text("x")
    if (command[:5], name) != ("batch", "one.mp4"):  # which names one video
        fpsgen(*command.split(), "-o", name)
        fpsgen.refused(7, f"{name} is not a folder", "another place with -o")
        assert sorted(path.name for path in Path().iterdir()) == ["one.mp4", "p.txt"]


def test_one_failure_stops_nobody_else(fpsgen, tiny, monkeypatch):
    from fpsgen.pipeline import run as generate

    real = generate.run

    def run(request, *rest):
        if request.prompt.text == "a dog":
            raise FpsgenError("the frames are constant", "change the seed", NUMERIC)
        if request.prompt.text == "a bug":
            raise ZeroDivisionError("planted")
        return real(request, *rest)

    monkeypatch.setattr(generate, "run", run)
    assert tiny(write("a dog", "a cat", "a bug"), "--json") == 3
    results = fpsgen.json["results"]
    assert [r["status"] for r in results] == ["failed", "made", "failed"]
    assert results[0]["error"]["code"] == NUMERIC and "ZeroDivisionError: planted" in results[2]["error"]["message"]
    assert Path(results[1]["path"]).is_file() and "line 1, 3" in fpsgen.err
    monkeypatch.setattr(generate, "run", real)
    assert tiny("p.txt") == 0 and "2 made, 1 done before" in fpsgen.err


def test_an_interrupt_keeps_what_is_done(fpsgen, tiny, monkeypatch):
    from fpsgen.pipeline import run as generate

    real = generate.run

    def run(request, *rest):
        if request.prompt.text == "a dog":
            raise KeyboardInterrupt
        return real(request, *rest)

    monkeypatch.setattr(generate, "run", run)
    assert tiny(write("a cat", "a dog", "a bird")) == 130
    assert len(fpsgen.lines) == 1 and "2 of 3 videos to go" in fpsgen.err and "same command" in fpsgen.err
    assert sorted(p.suffix for p in Path("outputs").glob("[!.]*")) == [".json", ".mp4"]


def test_two_runs_do_not_share_a_folder(fpsgen, tiny):
    Path("outputs").mkdir()
    with open("outputs/.fpsgen-batch.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tiny(write("a cat"))
        fpsgen.refused(11, "outputs", "-o")
        assert "goes on" not in fpsgen.err
    assert tiny("p.txt") == 0


def test_models_are_loaded_one_after_the_other(fpsgen, tiny, tiny_dir, tmp_path, monkeypatch):
    from fpsgen.pipeline import loaded_model

    other = tmp_path / "other"
    shutil.copytree(tiny_dir, other)
    loads = []
    real = loaded_model.load_model
    monkeypatch.setattr(loaded_model, "load_model", lambda r, *a: loads.append(r.model.folder.name) or real(r, *a))
    lines = [
        json.dumps({"prompt": p, **({"model": str(other)} if i else {})}) for p, i in (("a", 0), ("b", 1), ("c", 0))
    ]
    assert tiny(write(*lines, name="p.jsonl")) == 0, fpsgen.err
    assert loads == [tiny_dir.name, "other"] and len(fpsgen.lines) == 3


def test_generate_takes_a_file_too(fpsgen, tiny_dir):
    write("a cat")
    assert fpsgen("generate", "--prompts", "p.txt", "-m", tiny_dir, *SMALL, "-q") == 0
    assert len(fpsgen.lines) == 1 and fpsgen.err == ""
    assert fpsgen("batch", "p.txt", "-m", tiny_dir, *SMALL) == 0 and "1 done before" in fpsgen.err
    fpsgen("generate", "a cat", "--prompts", "p.txt")
    fpsgen.refused(2, "--prompts")
    for option, value in (("--capture", "caught"), ("--capture-layers", "0"), ("--capture-steps", "0")):
        fpsgen("generate", "--prompts", "p.txt", "-m", tiny_dir, *SMALL, option, value)
        fpsgen.refused(2, f"{option} ", "--prompts")  # not left out in silence


def test_dry_run_makes_nothing(fpsgen, tiny):
    assert tiny(write("a cat", "a dog"), "--dry-run") == 0
    assert len(fpsgen.lines) == 2 and all("to make" in line for line in fpsgen.lines)
    assert not Path("outputs").exists()
    assert tiny("p.txt", "--dry-run", "--json") == 0 and fpsgen.json["results"][1]["line"] == 2


def test_dry_run_says_what_the_run_would(fpsgen, tiny):
    file = write('{"prompt": "a cat", "output": "cat.mp4"}', '{"prompt": "a dog"}', name="p.jsonl")
    assert tiny(file) == 0
    ledger = Path("outputs/.fpsgen-batch.jsonl")
    ledger.write_text("".join(row for row in ledger.read_text().splitlines(True) if '"bytes"' not in row))
    state = sorted((path, path.stat().st_mtime_ns) for path in Path("outputs").iterdir())
    assert tiny(file, "--dry-run") == 0 and [line.split()[1] for line in fpsgen.lines] == ["done", "done"]
    assert state == sorted((path, path.stat().st_mtime_ns) for path in Path("outputs").iterdir())
    assert tiny(file) == 0 and "2 done before" in fpsgen.err
    write('{"prompt": "a bird", "output": "cat.mp4"}', name="p.jsonl")
    for more in ([], ["--dry-run"]):
        assert tiny(file, *more) == 7
        fpsgen.refused(7, "line 1", "cat.mp4", "--overwrite")
        assert not fpsgen.out and "goes on" not in fpsgen.err  # it never does
    assert tiny(file, "--device", "cuda", "--overwrite", "--dry-run") == 0 and "no CUDA device" in fpsgen.err


def test_what_stops_a_batch_midway_has_to_be_mended(fpsgen, tiny, monkeypatch):
    from fpsgen.pipeline import run as generate

    def run(*given):
        raise FpsgenError("the disk is full", "free space", 7)

    monkeypatch.setattr(generate, "run", run)
    tiny(write("a cat"))
    fpsgen.refused(7, "disk is full")
    assert "1 of 1 video to go; the same command goes on, once this is mended" in fpsgen.err


@pytest.mark.parametrize("text", ["a cat\n# no\n", '\n{"prompt": "a cat"}\n'])
def test_standard_input(tmp_path, text):
    command = [sys.executable, "-m", "fpsgen", "batch", "-", "-m", "nano", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "a-cat" in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


def test_the_samples_can_be_used(fpsgen):
    from fpsgen.assets import prompts_dir

    for name in ("nano.txt", "nano.jsonl", "wan.txt"):
        assert fpsgen("batch", prompts_dir() / name, "-m", "nano", "--dry-run") == 0, fpsgen.err
        assert len(fpsgen.lines) >= 4


def test_checking_a_long_file_is_quick(fpsgen, tiny):
    start = time.monotonic()
    assert tiny(write(*(f"prompt {i}" for i in range(1000))), "--dry-run", "--json") == 0
    assert time.monotonic() - start < 10 and len(fpsgen.json["results"]) == 1000
