"""bench steps: errors of single steps on the dense trajectory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fpsgen.bench import steps
from fpsgen.bench.trajectory import velocity_error
from fpsgen.report.steps import chart, table


def test_errors_by_their_definitions():
    wanted = torch.tensor([3.0, 4.0])
    same = velocity_error(wanted, wanted)
    assert same["cosine"] == pytest.approx(1) and same["mse"] == 0 and same["snr_db"] > 1000
    found = velocity_error(torch.tensor([3.0, 3.5]), wanted)
    assert found["mse"] == pytest.approx(0.125) and found["snr_db"] == pytest.approx(20)  # 25 / 0.25
    assert velocity_error(torch.tensor([-4.0, 3.0]), wanted)["cosine"] == pytest.approx(0, abs=1e-12)


def test_rows_chart_and_table(fpsgen, tiny_dir):
    options = ("--res", "32x32", "--frames", "5", "--steps", "3", "--seed", "3", "--schedule", "paper")
    assert fpsgen("bench", "steps", "-m", tiny_dir, *options, "--compare", "bf16,fp8") == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/steps.jsonl").read_text().splitlines()]
    assert [(row["method"], row["step"]) for row in rows] == [(m, s) for m in ("fp8", "fps") for s in range(3)]
    assert all(0.9 < row["cosine"] < 1 and row["mse"] > 0 and 10 < row["snr_db"] < 80 for row in rows)
    sigmas = [row["sigma"] for row in rows[:3]]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] > 0.9
    assert Path("outputs/bench/steps.svg").read_text().count("<polyline") == 2
    assert "fps" in "\n".join(table(rows)) and "fp8" in chart(rows)


@pytest.mark.parametrize("more", [(), ("--schedule", "paper")], ids=["plain", "paper"])
def test_inputs_are_those_of_the_dense_trajectory(fpsgen, tiny_dir, monkeypatch, more):
    """Errors would add up if each method went on from its own latents: bf16 against itself, rounded as diffusers does,
    must be exact, whatever the schedule says of linear layers, and at each step's own noise level.
    """
    monkeypatch.setenv("FPSGEN_CFG_UNTIL", "0.5")  # would leave the last steps a forward less
    apply = steps.apply
    monkeypatch.setattr(steps, "apply", lambda *given, **options: apply(*given, **options | {"exact": True}))
    monkeypatch.setattr(steps, "methods_to_run", lambda compare: ["bf16", "sta"])
    real = steps._method
    monkeypatch.setattr(steps, "_method", lambda pipe, base, name: real(pipe, base, "bf16"))
    options = ("--res", "32x32", "--frames", "5", "--steps", "3", "--seed", "3", "--json")
    assert fpsgen("bench", "steps", "-m", tiny_dir, *options, *more) == 0, fpsgen.err
    sigmas = [row["sigma"] for row in fpsgen.json["results"]]
    assert all(row["mse"] == 0 for row in fpsgen.json["results"]) and len(set(sigmas)) == 3


def test_attention_is_computed_as_asked(fpsgen, tiny_dir, monkeypatch):
    ran = []
    patched = steps.patched
    monkeypatch.setattr(steps, "patched", lambda *given: ran.append(patched(*given)) or ran[-1])
    options = ("--res", "32x32", "--frames", "5", "--steps", "2", "--schedule", "paper", "--compare", "sta")
    assert fpsgen("bench", "steps", "-m", tiny_dir, *options, "--method-impl", "reference", "-q") == 0, fpsgen.err
    assert [set(handle.report()["kernels"]) for handle in ran] == [{"reference"}] * 2


@pytest.mark.parametrize("option", [("--cache", "first-block"), ("--cfg-until", "0.5"), ("--exact",)])
def test_options_that_would_change_nothing_are_refused(fpsgen, option):
    """Steps are measured one by one, in diffusers' rounding."""
    fpsgen("bench", "steps", *option)
    fpsgen.refused(2, option[0])


def test_a_row_names_its_linear_layers(fpsgen, tiny_dir):
    options = ("--res", "32x32", "--frames", "5", "--steps", "1", "--compare", "bf16", "--json")
    for linear in ("bf16", "fp8"):
        assert fpsgen("bench", "steps", "-m", tiny_dir, *options, "--linear", linear) == 0, fpsgen.err
        assert [row["linear"] for row in fpsgen.json["results"]] == [linear]
