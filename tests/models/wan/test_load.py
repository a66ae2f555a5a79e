"""Loading: what is set right without asking, and everything that makes a folder unusable."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusal import refuses
from safetensors.torch import load_file, save_file

from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.folder import check_folder
from fpsgen.models.catalog.manifest import write_manifest
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
    change(folder / "transformer" / "config.json", num_layers=2, ffn_dim=96)


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
    with refuses(MODEL, str(folder), SPOILT[spoil]):
        load(folder)


def edit(part: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Rewrites the weights of a part."""

    def spoil(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        save_file(change(load_file(path)), path, {"format": "pt"})

    return spoil


def with_fp8(suffix: str) -> Callable[[dict], dict]:
    def change(tensors: dict) -> dict:
        found = {}
        for name, tensor in tensors.items():
            if tensor.dim() == 2 and name.startswith("blocks"):
                scale = tensor.abs().max() / 448
                found[name] = (tensor / scale).to(torch.float8_e4m3fn)
                if suffix:
                    found[name.removesuffix("weight") + suffix] = scale.reshape(1)
            else:
                found[name] = tensor
        return found

    return change


def extra_block(tensors: dict) -> dict:
    block = {name.replace("blocks.1.", "blocks.2."): value.clone() for name, value in tensors.items()}
    return tensors | {name: value for name, value in block.items() if name.startswith("blocks.2.")}


def one_nan(tensors: dict) -> dict:
    tensors["proj_out.weight"][0, 0] = float("nan")
    return tensors


def all_zero(tensors: dict) -> dict:
    return {name: torch.zeros_like(value) for name, value in tensors.items()}


def as_int32(tensors: dict) -> dict:
    return tensors | {"proj_out.weight": tensors["proj_out.weight"].to(torch.int32)}


MISMATCHED = {
    "an extra block": (edit("transformer", extra_block), "transformer has 27 tensors that the model does not take"),
    "an extra tensor": (edit("vae", lambda t: t | {"more": torch.ones(1)}), "vae has 1 tensors", "more"),
    "an extra text tensor": (edit("text_encoder", lambda t: t | {"more": torch.ones(1)}), "text_encoder has 1 tensors"),
    "fp8 with scale_weight": (edit("transformer", with_fp8("scale_weight")), "FP8 file, not supported", "20 scales"),
    "fp8 with weight_scale": (edit("transformer", with_fp8("weight_scale")), "FP8 file, not supported", "20 scales"),
    "fp8 alone": (edit("transformer", with_fp8("")), "FP8 file, not supported", "20 FP8 tensors"),
    "int32": (edit("transformer", as_int32), "1 tensors of transformer are I32", "proj_out.weight"),
    "a part of zeros": (edit("vae", all_zero), "the weights of vae are all zero"),
    "text of zeros": (edit("text_encoder", all_zero), "the weights of text_encoder are all zero"),
    "not finite": (edit("transformer", one_nan), "transformer has weights that are not finite"),
    "wrong shape": (edit("transformer", lambda t: t | {"proj_out.bias": torch.ones(3)}), "proj_out.bias"),
    "trailing bytes": (lambda f: append(f / "vae" / "diffusion_pytorch_model.safetensors"), "safetensors"),
    "one too few tokens": (lambda f: shrink_vocabulary(f), "tokens"),
}


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def shrink_vocabulary(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", vocab_size=97)
    edit("text_encoder", lambda t: {n: v[:97] if v.shape[0] == 98 else v for n, v in t.items()})(folder)


@pytest.mark.parametrize("fault", MISMATCHED)
def test_weights_and_model_match_in_both_directions(folder, fault):
    spoil, *said = MISMATCHED[fault]
    spoil(folder)
    with refuses(MODEL, *said):
        load(folder)


def test_a_whole_text_model_will_do(folder):
    """A UMT5 with its decoder, of which the encoder is used."""
    decoder = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2), "lm_head.weight": torch.ones(2)}
    edit("text_encoder", lambda tensors: tensors | decoder)(folder)
    load(folder)


CONFIGS = {
    "heads nan": ("transformer/config.json", {"num_attention_heads": float("nan")}),
    "heads text": ("transformer/config.json", {"num_attention_heads": "2"}),
    "heads zero": ("transformer/config.json", {"num_attention_heads": 0}),
    "heads true": ("transformer/config.json", {"num_attention_heads": True}),
    "layers endless": ("transformer/config.json", {"num_layers": 10**9}),
    "layers digits": ("transformer/config.json", {"num_layers": 10**4290}),
    "eps infinite": ("transformer/config.json", {"eps": float("inf")}),
    "patch flat": ("transformer/config.json", {"patch_size": [1, 2]}),
    "patch zero": ("transformer/config.json", {"patch_size": [1, 0, 2]}),
    "images": ("transformer/config.json", {"image_dim": 1280}),
    "channels": ("transformer/config.json", {"in_channels": 36}),
    "text width": ("transformer/config.json", {"text_dim": 64}),
    "class": ("transformer/config.json", {"_class_name": "OtherModel"}),
    "mean short": ("vae/config.json", {"latents_mean": [0.0] * 3}),
    "mean long": ("vae/config.json", {"latents_mean": [0.0] * 5}),
    "mean nan": ("vae/config.json", {"latents_mean": [0.0, 0.0, 0.0, float("nan")]}),
    "mean text": ("vae/config.json", {"latents_mean": "0000"}),
    "std short": ("vae/config.json", {"latents_std": [1.0] * 3}),
    "std zero": ("vae/config.json", {"latents_std": [1.0, 1.0, 1.0, 0.0]}),
    "stride": ("vae/config.json", {"scale_factor_spatial": 16}),
    "stride in time": ("vae/config.json", {"temperal_downsample": [False, False, True]}),
    "stages": ("vae/config.json", {"dim_mult": [1, 1, 1]}),
    "text kind": ("text_encoder/config.json", {"model_type": "t5"}),
    "text size": ("text_encoder/config.json", {"d_model": -32}),
    "steps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
    "shift nan": ("scheduler/scheduler_config.json", {"flow_shift": float("nan")}),
    "shift text": ("scheduler/scheduler_config.json", {"flow_shift": "3"}),
    "order": ("scheduler/scheduler_config.json", {"solver_order": "two"}),
    "length": ("tokenizer/tokenizer_config.json", {"model_max_length": "24"}),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_configurations_out_of_bounds(folder, fault):
    name, values = CONFIGS[fault]
    change(folder / name, **values)
    with refuses(MODEL, str(folder)):
        load(folder)


CODE = {
    "kernel of the hub": ("text_encoder/config.json", {"_attn_implementation": "owner/kernel"}),
    "kernel, inner name": ("text_encoder/config.json", {"_attn_implementation_internal": "owner/kernel"}),
    "kernel, public name": ("text_encoder/config.json", {"attn_implementation": "owner/kernel:layer"}),
    "kernel by part": ("text_encoder/config.json", {"_attn_implementation": {"": "owner/kernel"}}),
    "kernel below": ("text_encoder/config.json", {"text_config": {"_attn_implementation": "owner/kernel"}}),
    "experts": ("text_encoder/config.json", {"_experts_implementation": "owner/kernel"}),
    "auto_map": ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}),
    "auto_map of tokenizer": ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["e.T", None]}}),
    "quantization": ("transformer/config.json", {"quantization_config": {"quant_method": "modelopt"}}),
    "remote code": ("text_encoder/config.json", {"trust_remote_code": True}),
    "tokenizer": ("model_index.json", {"tokenizer": ["transformers", "AutoTokenizer"]}),
    "scheduler": ("model_index.json", {"scheduler": ["diffusers", "EvilScheduler"]}),
    "scheduler of ours": ("model_index.json", {"scheduler": ["my_code", "UniPCMultistepScheduler"]}),
    "scheduler, another thing": ("model_index.json", {"scheduler": ["diffusers", "DiffusionPipeline"]}),
    "pipeline": ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}),
    "pipeline, list": ("model_index.json", {"_class_name": ["my_code", "WanPipeline"]}),
    "library": ("model_index.json", {"transformer": ["my_code", "WanTransformer3DModel"]}),
    "class": ("model_index.json", {"transformer": ["diffusers", "WanVACETransformer3DModel"]}),
    "second transformer": ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}),
    "image encoder": ("model_index.json", {"image_encoder": ["transformers", "CLIPVisionModel"]}),
}


@pytest.mark.parametrize("fault", CODE)
def test_a_folder_is_data(folder, fault, monkeypatch):
    """Code in it is not run, classes come from a closed list, and nothing is fetched."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    for name in ("my_code", "evil"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')")
    name, values = CODE[fault]
    change(folder / name, **values)
    with refuses(MODEL, str(folder)):
        load(folder)


def test_an_adapter_beside_weights_is_refused(folder):
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/model"}')
    with pytest.raises(FpsgenError, match="adapter"):
        load(folder)


def test_the_network_is_not_used_whatever_the_environment_says(folder, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    asked = []

    def fetch(*args, **kwargs):
        """What a library might do for something in a folder that nobody thought of."""
        return hf_hub_download("owner/kernel", "config.json")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [])
    monkeypatch.setattr("fpsgen.models.wan.load.AutoencoderKLWan.from_pretrained", fetch)
    with pytest.raises(FpsgenError):
        load(folder)
    assert not asked and constants.HF_HUB_OFFLINE is False


def test_a_changed_file_is_not_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_manifest(folder)
    load(folder)
    edit("vae", lambda tensors: {name: value * 1.01 for name, value in tensors.items()})(folder)
    with pytest.raises(FpsgenError, match=r"vae/diffusion_pytorch_model\.safetensors"):
        load(folder)


def test_the_folder_is_judged_once(folder, monkeypatch):
    choice = choose(str(folder))
    monkeypatch.setattr("fpsgen.models.wan.load.check_folder", lambda folder: pytest.fail("judged again"))
    monkeypatch.setattr("fpsgen.models.catalog.choice.check_folder", lambda folder: pytest.fail("judged again"))
    assert load(pickle_copy(choice)).transformer is not None


def pickle_copy(value):
    return pickle.loads(pickle.dumps(value))


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
