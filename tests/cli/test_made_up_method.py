"""A new method is one file and one entry: generate, a schedule, bench, report and page take it without any change."""

from __future__ import annotations

import json
from pathlib import Path

SMALL = ("--res", "32x32", "--frames", "5", "--steps", "2", "--seed", "3")


def test_generate_and_its_report_know_a_new_method(fpsgen, tiny_dir, made_up_method):
    assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "--method", made_up_method.name, "--json") == 0, (
        fpsgen.err
    )
    attention = fpsgen.json["results"][0]["report"]["attention"]
    assert {step["method"] for step in attention["steps"]} == {made_up_method.name}
    assert all(0 < step["density"] <= 1 for step in attention["steps"])  # what the lists held


def test_bench_steps_reads_the_density_of_a_new_method(fpsgen, tiny_dir, made_up_method):
    assert fpsgen("bench", "steps", "-m", tiny_dir, *SMALL, "--compare", made_up_method.name, "--json") == 0, fpsgen.err
    rows = [row for row in fpsgen.json["results"] if row["method"] == made_up_method.name]
    assert len(rows) == 2 and all(0 < row["density"] <= 1 for row in rows)


def test_a_schedule_names_a_new_method(fpsgen, tiny_dir, made_up_method):
    Path("mine.toml").write_text(
        'name = "mine"\n[[windows]]\nlow = 0.0\nhigh = 1.0\nprofile = "all"\n'
        f'[[profiles]]\nname = "all"\nmethod = "{made_up_method.name}"\n'
    )
    assert fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "--schedule", "mine.toml", "--json") == 0, fpsgen.err
    assert {step["method"] for step in fpsgen.json["results"][0]["report"]["attention"]["steps"]} == {
        made_up_method.name
    }


def test_bench_page_and_report_know_a_new_method(fpsgen, tiny_dir, made_up_method):
    compare = ("--compare", f"bf16,{made_up_method.name}", "--schedule", "paper")
    assert fpsgen("bench", "-m", tiny_dir, *SMALL, *compare) == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/bench.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["bf16", made_up_method.name, "fps"] and rows[1]["density"] is not None
    assert made_up_method.colour in Path(fpsgen.lines[-1]).read_text()
    for more in ([], ["--overwrite"]):
        fpsgen("report", "outputs/bench/bench.jsonl", "-o", "outputs", *more)
        fpsgen.refused(7, "outputs is a folder", "another name")
    assert fpsgen("report", "outputs/bench/bench.jsonl", "-o", "both.html") == 0, fpsgen.err
    assert made_up_method.name in fpsgen.out and made_up_method.colour in Path("both.html").read_text()
