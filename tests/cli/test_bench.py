"""bench: the same noise through every method, rows that say where they come from, a page that needs nothing else."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fpsgen.attention.methods import METHODS
from fpsgen.bench import kernel as kernel_bench
from fpsgen.bench.plan import methods_to_run
from fpsgen.errors import USAGE
from fpsgen.evaluate.metrics import psnr
from fpsgen.files import make_folder, used_alone
from fpsgen.pipeline import run as generate
from fpsgen.video import read_frames, read_recipe

SMALL = ("--res", "32x32", "--frames", "5", "--steps", "3", "--seed", "3", "--schedule", "paper", "--linear", "bf16")


@pytest.fixture
def bench(fpsgen, tiny_dir):
    def call(*arguments: str) -> list[dict]:
        assert fpsgen("bench", "-m", tiny_dir, *SMALL, *arguments) == 0, fpsgen.err
        return [json.loads(line) for line in Path("outputs/bench/bench.jsonl").read_text().splitlines()]

    return call


def test_rows_page_and_table(fpsgen, bench):
    rows = bench("--compare", "fp8,bf16,sta", "--repeats", "2")
    assert [row["method"] for row in rows] == ["bf16", "fp8", "sta", "fps"]  # the baseline first, ours last
    for row in rows:
        assert row["baseline"] == "bf16" and row["strict"] and row["repeats"] == 2 and row["steps"] == 3
        assert row["step_s"]["n"] == 6 and row["step_s"]["min"] <= row["step_s"]["median"] <= row["step_s"]["max"]
        assert {"text", "denoise", "vae"} <= set(row["stages_s"]) and row["attention_s"]["n"] == 2
        assert 0 < row["attention_share"] < 1 and row["device"].startswith("CPU") and row["versions"]["torch"]
        ratio = rows[0]["stages_s"]["denoise"]["median"] / row["stages_s"]["denoise"]["median"]
        assert row["speedup_denoise"] == pytest.approx(ratio, rel=0.02)
        assert sum(profile["steps"] for profile in row["profiles"]) == 3
        assert all("times" not in profile for profile in row["profiles"])
    assert rows[0]["kernels"] == {"sdpa": 12} and "cpu" in rows[1]["kernels"]
    assert rows[0]["density"] == rows[1]["density"] == 1 and rows[2]["density"] == rows[3]["density"]
    assert rows[0]["psnr_db"] is None and all(5 < rows[i]["psnr_db"] < 100 for i in (1, 3))
    assert rows[2]["psnr_db"] is None and rows[2]["ssim"] == 1  # one tile: sta keeps everything, so the same video

    videos = [read_frames(row["video"])[0] for row in rows]
    assert all(read_recipe(row["video"])["seed"] == 3 for row in rows)
    assert (
        np.median(psnr(videos[3], videos[0])) > 35
    )  # the same noise, so nearly the same video (another seed: below 15)
    assert (
        all(0 <= row["vmaf"] <= 100 and row["xpsnr_db"] > 10 for row in (rows[1], rows[3])) and rows[0]["vmaf"] is None
    )
    assert all(len(row["steps_s"]) == 3 and row["flicker"] > 0 for row in rows)

    page = Path(fpsgen.lines[-1]).read_text()
    assert page.count("<video") == 6 and page.count('src="data:video/mp4;base64,') == 4 and page.count("<svg") == 2
    assert f"{rows[3]['speedup_denoise']:.2f}x" in page and "fpsgen bench" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "://" not in page  # nothing leaves the page
    assert "on a CPU" in page and any("on a CPU" in line for line in fpsgen.lines)
    assert all(len(line) <= 80 for line in fpsgen.lines if line[:4] in ("    ", "bf16", "fp8 ", "sta ", "fps "))
    again = bench("--compare", "bf16")
    assert len(again) == 6 and Path(again[-1]["video"]).parent != Path(rows[0]["video"]).parent  # appended, beside


def test_the_baseline_is_really_the_other_method(bench, monkeypatch):
    """A bench that ran the same method twice would show no difference."""
    asked = []
    real = generate.apply

    def apply(pipe, schedule=None, method=None, strict=False, **more):
        asked.append((method, strict))
        return real(pipe, schedule=schedule, method=method, strict=strict, **more)

    monkeypatch.setattr(generate, "apply", apply)
    bench("--compare", "bf16", "--repeats", "4")
    assert asked[:2] == [("bf16", True), (None, True)]  # warm-up
    order = asked[2:]
    assert sorted(order, key=str) == sorted(asked[:2] * 4, key=str)
    # repeats are mixed, and not in turns: a machine that slows down, or down and up again, slows all methods
    assert sorted(order, key=str) not in (order, order[::-1]) and order not in (asked[:2] * 4, asked[1::-1] * 4)


def test_random_weights_measure_speed_alone(fpsgen):
    options = ("--res", "32x32", "--frames", "5", "--steps", "1", "--compare", "bf16")
    assert fpsgen("bench", "--random-weights", "-m", "nano", *options) == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/bench.jsonl").read_text().splitlines()]
    assert all(row["random_weights"] and row["psnr_db"] is None and row["video"] is None for row in rows)
    page = Path(fpsgen.lines[-1]).read_text()
    assert "Random weights: only" in page and "Time by stage" in page
    assert not any(word in page for word in ("<video", "PSNR", "LPIPS", "Flicker</th>"))
    assert "random weights" in fpsgen.lines[0] and not list(Path("outputs").rglob("*.mp4"))


def test_json_and_quiet(fpsgen, bench):
    bench("--compare", "bf16", "-q")
    assert len(fpsgen.lines) == 1 and fpsgen.lines[0].endswith("index.html") and not fpsgen.err
    bench("--compare", "bf16", "--json")
    assert [row["method"] for row in fpsgen.json["results"]] == ["bf16", "fps"]


def test_usage(fpsgen, tiny_dir):
    for arguments, words in (
        (("--compare", "flash"), ("flash", "bf16")),
        (("--random-weights", "-m", "someone/else"), ("someone/else", "nano")),
        (("--steps", "0"), ("--steps",)),
        (("kernel", "--shape", "4k"), ("4k", "480p")),
        (("kernel", "--density", "2"), ("2", "0.11")),
    ):
        fpsgen("bench", *arguments)
        fpsgen.refused(2, *words)


@pytest.mark.parametrize("command", [("bench",), ("bench", "steps"), ("bench", "waterfall"), ("evaluate",)])
def test_two_runs_do_not_write_into_one_folder(fpsgen, tiny_dir, command):
    """Videos and charts of one would replace those of the other."""
    with used_alone(make_folder("out")):
        fpsgen(*command, "-m", tiny_dir, "-o", "out", "--steps", "1")
        fpsgen.refused(11, "out")
    assert [path.name for path in Path("out").iterdir()] == [".lock"]


def test_kernel_rows(fpsgen, monkeypatch):
    options = ("--shape", "4x8x8", "--heads", "2", "--density", "0.3", "--seconds", "0.01")
    monkeypatch.setattr(sys, "argv", ["/bin/fpsgen", "bench", "kernel", *options])
    assert fpsgen("bench", "kernel", *options) == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/kernel.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["sdpa", *METHODS]
    assert {row["command"] for row in rows} == {" ".join(("fpsgen", "bench", "kernel", *options))}
    for row in rows:
        assert row["repeats"] >= 3 and row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        operations = 4 * 128 * 2 * row["density"] * 256**2
        assert row["tflops"] == pytest.approx(operations / row["median_ms"] / 1e9, abs=0.06)
    assert max(map(len, fpsgen.lines)) <= 80
    assert "host" not in next(line for line in fpsgen.lines if "p10-p90" in line)  # no figure there: no column
    fps = rows[-1]
    assert rows[0]["relative_error"] < 1e-2 and 1e-3 < fps["relative_error"] < 4e-2 and fps["density"] < 0.6


@pytest.mark.parametrize("fault", [lambda out: out * 1.05, lambda out: out.roll(1, 2), lambda out: out * 0])
def test_the_kernel_bench_times_nothing_that_is_wrong(fpsgen, monkeypatch, fault):
    real = kernel_bench.attend
    monkeypatch.setattr(kernel_bench, "attend", lambda *a, **k: fault(real(*a, **k)))
    fpsgen("bench", "kernel", "--shape", "4x8x8", "--heads", "2", "--density", "0.3", "--seconds", "0.01")
    fpsgen.refused(9, "is wrong", "doctor")
    rows = [json.loads(line) for line in Path("outputs/bench/kernel.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["sdpa"]  # the peer before it; rows are kept as they come


def test_methods_to_run():
    assert methods_to_run(("sta", "bf16", "sta", "fps")) == ["bf16", "sta", "fps"]
    assert methods_to_run(("fp8",)) == ["fp8", "fps"]


def test_the_baseline_is_diffusers_as_it_comes(bench):
    rows = bench("--compare", "bf16", "--linear", "bf16")
    assert [(row["method"], row["fused"]) for row in rows] == [("bf16", False), ("fps", True)]


@pytest.mark.parametrize("what", ["bench", "bench steps", "bench waterfall", "evaluate"])
def test_nothing_is_measured_where_every_method_would_be_diffusers(fpsgen, tiny_dir, monkeypatch, what):
    """A GPU with compile off runs bf16 attention whatever the method; its rows would say otherwise."""
    monkeypatch.setenv("FPSGEN_COMPILE", "off")
    Path("two.txt").write_text("a cat\n")
    size = SMALL[:-2] if what != "evaluate" else ("--prompts", "two.txt", *SMALL[:-2])
    assert fpsgen(*what.split(), "-m", tiny_dir, *size) == USAGE
    assert "compile" in fpsgen.err and not list(Path().rglob("*.jsonl"))
