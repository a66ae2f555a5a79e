"""generate --capture saves what attention gets, and bench kernel --captured measures on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusal import refuses
from safetensors import safe_open

from fpsgen.attention.methods import METHODS
from fpsgen.errors import DISK
from fpsgen.models.patch import attention
from fpsgen.pipeline.capture import Capture, read_capture

SMALL = ("--res", "64x32", "--frames", "5", "--steps", "3", "--seed", "3")
KERNEL = ("bench", "kernel", "--captured", "caught", "--density", "0.4", "--seconds", "0.01")


@pytest.fixture
def generate(fpsgen, tiny_dir):
    def call(*arguments: str) -> int:
        return fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "--overwrite", "-o", "a.mp4", *arguments)

    return call


def test_what_is_saved_is_what_attention_gets(fpsgen, generate, monkeypatch):
    got = []
    real = attention._attention
    monkeypatch.setattr(attention, "_attention", lambda *given: got.append(given[:3]) or real(*given))
    assert generate("--method", "bf16", "--capture", "caught", "--capture-steps", "0") == 0, fpsgen.err
    for layer in (0, 1):
        found = read_capture(Path("caught") / f"step0000-layer{layer:02d}.safetensors")
        assert all(map(torch.equal, (found.q, found.k, found.v), (x[:1] for x in got[layer])))  # with the prompt


def test_the_same_inputs_whatever_order_the_tokens_lie_in(fpsgen, generate):
    """The first layer of the first step sees the same noise: sta in tile order, bf16 in raster order."""
    Path("tiles.toml").write_text(
        'name = "tiles"\n[[windows]]\nlow = 0.0\nhigh = 1.0\nprofile = "all"\n'
        '[[profiles]]\nname = "all"\nmethod = "sta"\ntile = [1, 2, 2]\nwindow = [1, 1, 1]\n'
    )
    for method in ("bf16", "sta"):
        assert generate("--method", method, "--schedule", "tiles.toml", "--capture", method) == 0, fpsgen.err
    names = sorted(path.name for path in Path("bf16").iterdir())
    assert names == [f"step{step:04d}-layer{layer:02d}.safetensors" for step in (0, 1, 2) for layer in (0, 1)]
    first = [read_capture(Path(folder) / names[0]) for folder in ("bf16", "sta")]
    assert first[0].grid == (2, 2, 4) and first[0].q.shape == (1, 16, 2, 16)
    for name in ("q", "k", "v"):
        assert torch.allclose(getattr(first[0], name), getattr(first[1], name), atol=1e-5), name
    with safe_open(Path("bf16") / names[2], framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["step"], metadata["layer"], metadata["prompt"], metadata["seed"]) == ("1", "0", "a cat", "3")
    assert 0 < float(metadata["sigma"]) < 1


def test_steps_that_a_cache_may_skip_cannot_be_saved(fpsgen, generate):
    generate("--capture", "caught", "--cache", "taylorseer")
    fpsgen.refused(2, "--cache taylorseer")
    assert not Path("caught").exists() and not Path("a.mp4").exists()


def test_chosen_layers_and_steps(fpsgen, generate):
    assert generate("--capture", "caught", "--capture-layers", "1", "--capture-steps", "0,2") == 0, fpsgen.err
    assert [path.name[:12] for path in sorted(Path("caught").iterdir())] == ["step0000-lay", "step0002-lay"]
    assert generate("--capture", "caught") == 0  # --overwrite was given
    assert len(list(Path("caught").iterdir())) == 6


def test_usage(fpsgen, generate, tiny_dir):
    generate("--capture", "caught", "--capture-layers", "2")
    fpsgen.refused(2, "layer 2", "0 to 1")
    generate("--capture-steps", "1")
    fpsgen.refused(2, "--capture")
    assert generate("--capture", "caught") == 0, fpsgen.err
    fpsgen("generate", "a cat", "-m", tiny_dir, *SMALL, "--capture", "caught")
    fpsgen.refused(7, "caught", "--overwrite")
    fpsgen(*KERNEL, "--heads", "3")
    fpsgen.refused(2, "--heads")
    fpsgen("bench", "kernel", "--captured", "nowhere")
    fpsgen.refused(4, "nowhere", "--capture")
    with refuses(DISK, "caught", remedy="--overwrite"):  # also where it came while the model was loaded
        Capture(Path("caught")).start(2, 3, {})
    broken = Path("caught") / "step0000-layer00.safetensors"
    broken.write_bytes(broken.read_bytes()[:-50])
    fpsgen(*KERNEL)
    fpsgen.refused(4, broken.name)


def test_what_cannot_be_captured_is_said_before_anything_is_loaded(fpsgen, generate, monkeypatch):
    def load(*given):
        raise AssertionError("loaded")

    monkeypatch.setattr("fpsgen.pipeline.run.load_model", load)
    Path("one.mp4").write_text("x")
    generate("--capture", "one.mp4")
    fpsgen.refused(7, "one.mp4 is not a folder", "another place with --capture")
    generate("--capture", "caught", "--capture-layers", "1,2")
    fpsgen.refused(2, "--capture-layers", "layer 2", "0 to 1")
    generate("--capture", "caught", "--capture-steps", "3")
    fpsgen.refused(2, "--capture-steps", "step 3", "0 to 2")


def test_every_method_is_measured_on_captured_inputs(fpsgen, generate, made_up_method):
    assert generate("--capture", "caught", "--capture-layers", "1", "--capture-steps", "1") == 0, fpsgen.err
    assert fpsgen(*KERNEL, "--tile", "1x2x2") == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/kernel.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["sdpa", *METHODS]
    assert all(row["captured"] and row["tokens"] == 16 and row["head_dim"] == 16 for row in rows)
    by_name = {row["method"]: row for row in rows}
    assert by_name["bf16"]["error_to_dense"] == by_name["bf16"]["relative_error"] < 1e-2
    assert by_name["sta"]["relative_error"] < 1e-2 < by_name["sta"]["error_to_dense"]  # what the window costs
    chosen = by_name[made_up_method.name]
    assert chosen["online"] and chosen["density"] == pytest.approx(0.25) and chosen["relative_error"] < 4e-2
    assert chosen["tflops"] == pytest.approx(4 * 16 * 2 * 0.25 * 16**2 / chosen["median_ms"] / 1e9, abs=0.06)
    assert "to dense" in fpsgen.out


def test_nanos_own_queries_and_keys(fpsgen):
    """Trained weights: what each precision and each window costs, which drawn numbers do not tell."""
    made = ("generate", "a cat surfing", "-m", "nano", "--steps", "1", "--seed", "1", "--method", "bf16", "-o", "a.mp4")
    assert fpsgen(*made, "--capture", "caught", "--capture-layers", "0") == 0, fpsgen.err
    assert fpsgen(*KERNEL, "--tile", "3x10x2") == 0, fpsgen.err
    rows = [json.loads(line) for line in Path("outputs/bench/kernel.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["sdpa", *METHODS] and all(row["tokens"] == 1440 for row in rows)
    error = {row["method"]: row["error_to_dense"] for row in rows}
    assert error["bf16"] < error["sage"] < error["fp8"] < error["fps"]
    assert error["sparge"] < 2 * error["sage"] and error["fps"] == pytest.approx(error["sta"], rel=0.05)
