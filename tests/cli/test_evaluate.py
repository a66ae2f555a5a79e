"""evaluate: every prompt through every method, against the dense video of the same seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fpsgen.bench import evaluate as evaluation
from fpsgen.bench import suite
from fpsgen.evaluate.metrics import psnr
from fpsgen.models.catalog.choice import choose
from fpsgen.pipeline.plan import plan
from fpsgen.settings.gather import Settings
from fpsgen.video import read_frames, read_recipe
from tests.tiny import build_tiny_pipeline

SMALL = ("--res", "64x32", "--frames", "5", "--steps", "3", "--schedule", "paper")
FOLDER = Path("outputs/evaluate")


@pytest.fixture
def evaluate(fpsgen, tiny_dir):
    Path("two.txt").write_text("a cat\na/dog\n")

    def call(*arguments: str) -> list[dict]:
        assert fpsgen("evaluate", tiny_dir, *SMALL, "--prompts", "two.txt", *arguments) == 0, fpsgen.err
        return suite.read_rows(FOLDER)

    return call


def test_rows_table_page_and_layout(fpsgen, evaluate):
    rows = evaluate("--compare", "bf16,fp8", "--seeds", "2")
    order = [(p, v) for p in ("a cat", "a cat", "a/dog", "a/dog") for v in ("dense", "fp8", "fps")]
    assert [(row["prompt"], row["variant"]) for row in rows] == order
    assert rows[3]["seed"] == rows[0]["seed"] + 1
    for row in rows:
        dense = next(r for r in rows if r["variant"] == "dense" and r["seed"] == row["seed"])
        frames, reference = (read_frames(r["video"])[0] for r in (row, dense))
        assert read_recipe(row["video"])["seed"] == row["seed"]
        if row["variant"] != "dense":  # the same noise, so nearly the same video (another seed: below 15)
            assert row["psnr_db"] > 30 and float(np.median(psnr(frames, reference))) > 30
            assert sum(error["steps"] for error in row["velocity"].values()) == 3
            assert all(error["mse"] > 0 and error["cosine"] > 0.9 for error in row["velocity"].values())
        assert row["shows"] is None  # not nano's world
    assert {tuple(row["velocity"]) for row in rows} == {(), ("early", "middle")}

    shown = [line for line in fpsgen.lines if line[:5].strip() in ("", "dense", "fp8", "fps")]
    assert len(shown) == 2 + 3 + 4 and max(map(len, shown)) <= 80  # the two tables
    page = Path(fpsgen.lines[-1]).read_text()
    assert page.count("<video") == 12 and not re.findall(r'(?:src|href)="(?!data:)', page) and "://" not in page
    names = {path.name for path in (FOLDER / "vbench" / "fps").iterdir()}
    assert {"a cat-0.mp4", "a cat-1.mp4"} < names and len(names) == 4
    prompts = json.loads((FOLDER / "vbench" / "fps.json").read_text())
    assert set(prompts) == names and sorted(prompts.values()) == ["a cat", "a cat", "a/dog", "a/dog"]


@pytest.mark.parametrize("option", ["--linear fp8", "--exact", "--schedule safe"])
def test_what_a_line_sets_and_a_comparison_would_pass_over_is_refused(fpsgen, tiny_dir, option):
    Path("two.txt").write_text(f"a cat\na dog {option}\n")
    fpsgen("evaluate", tiny_dir, *SMALL[:-2], "--prompts", "two.txt")
    fpsgen.refused(2, option.split()[0][2:])
    assert not suite.read_rows(FOLDER)


def test_a_suite_that_was_stopped_goes_on(fpsgen, evaluate, monkeypatch):
    rows = evaluate("--compare", "bf16")
    lines = (FOLDER / "rows.jsonl").read_text().splitlines(keepends=True)
    (FOLDER / "rows.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while it wrote the last
    made = []
    real = suite.render
    monkeypatch.setattr(
        suite, "render", lambda model, request, timing: made.append(request) or real(model, request, timing)
    )
    evaluate("--compare", "bf16")
    assert [request.prompt.text for request in made] == ["a/dog", "a/dog"]  # its reference once more, and itself
    again = suite.read_rows(FOLDER)
    same = ("variant", "psnr_db", "ssim", "velocity")
    assert [[row[key] for key in same] for row in again] == [[row[key] for key in same] for row in rows]
    made.clear()
    evaluate("--compare", "bf16")
    assert not made
    (FOLDER / "rows.jsonl").write_text("".join(lines[:1]))  # killed before the row of a video was written
    evaluate("--compare", "bf16")
    assert len(made) == 4  # the reference of the first prompt is needed once more


@pytest.mark.parametrize("left", ["rows and videos", "videos"])
def test_videos_of_other_settings_are_not_written_over(fpsgen, evaluate, tiny_dir, monkeypatch, left):
    """Nor those of a run that was stopped before it wrote their rows."""
    evaluate()
    if left == "videos":
        (FOLDER / "rows.jsonl").unlink()
    before = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    monkeypatch.setattr(suite, "load_model", None)  # it is said before the work
    fpsgen("evaluate", tiny_dir, *SMALL, "--prompts", "two.txt", "--guidance", "2")
    fpsgen.refused(7, "dense/000-a-cat-")
    assert {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()} == before


def test_a_row_says_what_it_was_made_with(fpsgen, evaluate):
    rows = evaluate("--cache", "first-block", "--cfg-until", "0.5", "--linear", "fp8", "--exact")
    said = [(row["linear"], row["cache"], row["cfg_until"], row["fused"]) for row in rows[:2]]
    assert said == [("bf16", "none", 1.0, False), ("fp8", "first-block", 0.5, False)]
    assert [line for line in fpsgen.lines if "cache" in line] == [
        "fps: linear fp8, cache first-block, cfg-until 0.5, exact"
    ]
    assert "first-block" in Path(fpsgen.lines[-1]).read_text().split("<tbody>")[1]


def test_another_model_can_be_the_reference(fpsgen, evaluate, tmp_path):
    teacher = build_tiny_pipeline(tmp_path / "teacher", seed=1)
    rows = evaluate("--compare", "bf16", "--teacher", str(teacher))
    assert [row["variant"] for row in rows] == ["dense", "bf16", "fps"] * 2
    assert all(row["teacher"] == "teacher" for row in rows)
    assert all(
        row["velocity"] and min(e["snr_db"] for e in row["velocity"].values()) < 15
        for row in rows
        if row["variant"] == "bf16"
    )


def test_a_teacher_has_no_lora(tmp_path, tiny_dir, monkeypatch):
    """The same folder with and without a LoRA file are two models, and the reference is the one without."""
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").write_bytes(b"x")
    choice = choose(str(tiny_dir))
    base = plan("a cat", Settings({"lora": "a.safetensors", "seed": 1}), choice).request
    seen = []
    monkeypatch.setattr(suite, "run", lambda models, *rest: seen.append(models) or iter(()))
    evaluation.run([base], choice, ("bf16",), tmp_path, None)
    evaluation.run([base], None, ("bf16",), tmp_path, None)
    assert not seen[0].one and seen[0].by_teacher(base).values()["lora"] == ""
    assert seen[1].one and seen[1].by_teacher(base).values()["lora"] == "a.safetensors"


def test_usage(fpsgen, tiny_dir):
    fpsgen("evaluate", tiny_dir, "-m", "nano")
    fpsgen.refused(2, "-m")
    fpsgen("evaluate", "nowhere/model")
    fpsgen.refused(5, "nowhere")
    fpsgen("evaluate", tiny_dir, "--prompts", "none.txt")
    fpsgen.refused(4, "none.txt")
    fpsgen("evaluate", tiny_dir, "--seeds", "0")
    fpsgen.refused(2, "--seeds")
