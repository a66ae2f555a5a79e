"""Loading: what is set right without asking, and everything that makes a folder unusable."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog.folder import check_folder
from fpsgen.models.wan.load import load


@pytest.fixture
def folder(tiny_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_dir, tmp_path / "model"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_set_right(tiny_dir, monkeypatch, capfd):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    pipe = load(tiny_dir, "cpu", torch.bfloat16)
    assert pipe.transformer.dtype == pipe.text_encoder.dtype == torch.bfloat16 and pipe.vae.dtype == torch.float32
    assert (
        pipe.transformer.rope.freqs_cos.dtype == torch.float32 or pipe.transformer.rope.freqs_cos.dtype == torch.double
    )
    assert pipe.transformer.scale_shift_table.dtype == torch.float32  # precision-critical parts stay in fp32
    config = pipe.scheduler.config
    assert config.prediction_type == "flow_prediction" and config.use_flow_sigmas and config.flow_shift == 3.0
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        assert not part.training and not any(weight.requires_grad for weight in part.parameters())
    assert capfd.readouterr() == ("", "")


def test_progress_bars_are_set_back(tiny_dir):
    from diffusers.utils import logging

    logging.enable_progress_bar()
    load(tiny_dir)
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    load(tiny_dir)
    assert not logging.is_progress_bar_enabled()


def test_weights_are_those_of_the_files(tiny_dir):
    pipe = load(tiny_dir)
    saved = load_file(tiny_dir / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in pipe.transformer.state_dict().items())


def spoil_truncate(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def spoil_header(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"\xff" * 64)


def spoil_missing_tensor(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["blocks.1.attn1.to_k.weight"]
    save_file(tensors, path, {"format": "pt"})


def spoil_missing_text_tensor(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "block.0" in name)]
    save_file(tensors, path, {"format": "pt"})


def spoil_shape(folder: Path) -> None:
    change(folder / "transformer" / "config.json", num_layers=2, ffn_dim=64)


def spoil_pickle(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def spoil_shard(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = dict.fromkeys(load_file(path), "part-1.safetensors") | {"proj_out.bias": "part-2.safetensors"}
    path.rename(folder / "transformer" / "part-1.safetensors")
    index = {"metadata": {}, "weight_map": weights}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def spoil_outside(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"x": "../../secret.safetensors"}}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


SPOILT = {
    spoil_truncate: "",
    spoil_header: "",
    spoil_missing_tensor: "transformer lacks 1 tensors, first blocks.1.attn1.to_k.weight",
    spoil_missing_text_tensor: "text_encoder lacks 1 tensors",
    spoil_shape: "",
    spoil_pickle: "vae has pickled weights only (diffusion_pytorch_model.bin)",
    spoil_shard: "1 of 2 weight files are missing, first part-2.safetensors",
    spoil_outside: "points outside",
    lambda folder: shutil.rmtree(folder / "text_encoder"): "text_encoder/config.json",
    lambda folder: (folder / "vae" / "config.json").write_text("{"): "vae/config.json",
    lambda folder: (folder / "model_index.json").write_text("[]"): "model_index.json",
    lambda folder: (folder / "model_index.json").unlink(): "model_index.json",
    lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(): "tokenizer's files are missing",
    lambda folder: change(folder / "model_index.json", vae=None): "names no vae",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=range(len(SPOILT)))
def test_a_model_that_is_not_intact(folder, spoil):
    load(folder)
    spoil(folder)
    with pytest.raises(FpsgenError) as caught:
        load(folder)
    error = caught.value
    assert error.code == MODEL and str(folder) in error.message and SPOILT[spoil] in error.message
    assert "\n" not in error.message and error.remedy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "WanImageToVideoPipeline"}, "holds a WanImageToVideoPipeline"),
        ({"transformer": ["my_code", "WanTransformer3DModel"]}, "my_code.WanTransformer3DModel"),
        ({"transformer": ["diffusers", "WanVACETransformer3DModel"]}, "WanVACETransformer3DModel"),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "transformer_2"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder"),
    ],
)
def test_models_of_another_kind_and_foreign_code_are_refused(folder, changes, said):
    (folder / "my_code.py").write_text("raise SystemExit('ran')")
    change(folder / "model_index.json", **changes)
    with pytest.raises(FpsgenError) as caught:
        load(folder)
    assert caught.value.code == MODEL and said in caught.value.message


def test_sharded_weights_load(folder):
    part = folder / "transformer"
    tensors = load_file(part / "diffusion_pytorch_model.safetensors")
    (part / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, chunk in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chunk}, part / file, {"format": "pt"})
        weight_map |= dict.fromkeys(chunk, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    check_folder(folder)
    pipe = load(folder)
    assert all(torch.equal(weight, tensors[name]) for name, weight in pipe.transformer.state_dict().items())


def test_missing_models_say_what_to_do():
    with pytest.raises(FpsgenError, match="not on this machine") as caught:
        load("someone/nowhere")
    assert caught.value.remedy == "fetch it: fpsgen models pull someone/nowhere"
