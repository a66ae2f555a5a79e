"""An adapter is merged whole, or refused with the tensor that does not fit: libraries skip what they do not know."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from refusal import refuses
from safetensors.torch import save_file

from fpsgen.errors import BAD_INPUT, ENVIRONMENT
from fpsgen.models.wan.load import load
from fpsgen.models.wan.lora_file import add_lora_file
from fpsgen.pipeline.plan import plan
from fpsgen.settings.gather import Settings

pytest.importorskip("peft")
LAYER = "blocks.0.attn1.to_q"
KEY = f"transformer.{LAYER}.lora_%s.weight"


@pytest.fixture(scope="module")
def pipe(tiny_dir):
    return load(tiny_dir)


def adapter(pipe, rank: int = 4) -> dict[str, torch.Tensor]:
    draw, found = torch.Generator().manual_seed(0), {}
    for name, layer in pipe.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn1.to_" in name:
            found[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=draw)
            found[f"transformer.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=draw)
    return found


def state(pipe) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in pipe.transformer.state_dict().items()}


BROKEN = {
    "no tensors": lambda t: t.clear(),
    "other half": lambda t: t.pop(KEY % "B"),
    KEY % "A": lambda t: t.update({KEY % "A": torch.full_like(t[KEY % "A"], float("nan"))}),
    "no such numbers": lambda t: t.update({KEY % "B": torch.zeros(t[KEY % "B"].shape, dtype=torch.int32)}),
    "[4, 5]": lambda t: t.update({KEY % "A": torch.zeros(4, 5)}),
    f"{LAYER} is [0, ": lambda t: t.update({KEY % "A": t[KEY % "A"][:0], KEY % "B": t[KEY % "B"][:, :0]}),
    "lora_magnitude_vector": lambda t: t.update({f"transformer.{LAYER}.lora_magnitude_vector": torch.ones(3)}),
    "blocks.99": lambda t: t.update({"transformer.blocks.99.attn1.to_q.lora_A.weight": torch.zeros(4, 4)}),
    "text_encoder": lambda t: t.update({"text_encoder.layer.lora_A.weight": torch.zeros(4, 4)}),
}


@pytest.mark.parametrize("word", BROKEN)
def test_what_does_not_fit_is_named(pipe, tmp_path, word):
    tensors, before, path = adapter(pipe), state(pipe), tmp_path / "a.safetensors"
    BROKEN[word](tensors)
    save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    with refuses(BAD_INPUT, word):
        add_lora_file(pipe, path)
    after = state(pipe)
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


UNUSABLE = {  # and what the message names
    "{": "lora_adapter_metadata",
    "[]": "lora_adapter_metadata",
    '{"transformer.target_modules": 5}': "target_modules is 5",
    '{"transformer.r": 0}': "r is 0",
    '{"transformer.r": 9, "transformer.target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}': "a.safetensors",
    '{"transformer.r": 4, "transformer.no_such_setting": 1}': "a.safetensors",
    "[" * 99_999: "lora_adapter_metadata",
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_metadata_that_cannot_be_used(pipe, tmp_path, text):
    """Two lines of ours, and none of diffusers."""
    path, said = tmp_path / "a.safetensors", []
    save_file(adapter(pipe), path, metadata={"lora_adapter_metadata": text})
    handler = logging.Handler()
    handler.emit = said.append
    logging.getLogger("diffusers").addHandler(handler)
    try:
        with refuses(BAD_INPUT, UNUSABLE[text]):
            add_lora_file(pipe, path)
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert not said


def test_one_that_fits_is_merged(tiny_dir, tmp_path):
    pipe = load(tiny_dir)
    tensors, before, path = adapter(pipe), state(pipe), tmp_path / "a.safetensors"
    save_file(tensors, path)
    add_lora_file(pipe, path)
    weight = f"{LAYER}.weight"
    added = tensors[KEY % "B"] @ tensors[KEY % "A"]
    assert torch.allclose(state(pipe)[weight], before[weight] + added, atol=1e-4)


def test_without_peft_it_is_refused_before_anything_is_loaded(pipe, tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save_file(adapter(pipe), file)
    monkeypatch.setitem(sys.modules, "peft", None)  # not installed
    with refuses(ENVIRONMENT, "peft"):
        plan("a cat", Settings({"lora": str(file), "model": "nano"}))
    with refuses(ENVIRONMENT, "peft"):
        add_lora_file(pipe, file)
