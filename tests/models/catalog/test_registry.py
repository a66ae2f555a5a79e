"""The table of models, and which one is meant."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fpsgen.assets import weights_dir
from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog import registry
from fpsgen.models.catalog.registry import cached, describe, models, read_registry, resolve


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_dir):
    """An empty Hugging Face cache; call it to put a copy of the tiny model in under a repository's name."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(repository: str, commit: str = "b" * 40, ref: str = "main") -> Path:
        store = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        folder = Path(shutil.copytree(tiny_dir, store / "snapshots" / commit))
        (store / "refs").mkdir(exist_ok=True)
        (store / "refs" / ref).write_text(commit)
        return folder

    return add


@pytest.fixture
def embedded(tmp_path, monkeypatch, tiny_dir):
    """The registry with the tiny model in nano's place."""
    shutil.copy(weights_dir() / "registry.toml", tmp_path)
    shutil.copytree(tiny_dir, tmp_path / "nano")
    monkeypatch.setattr(registry, "weights_dir", lambda: tmp_path)
    return tmp_path / "nano"


def failure(name: str) -> FpsgenError:
    with pytest.raises(FpsgenError) as caught:
        resolve(name)
    assert caught.value.code == MODEL and "\n" not in caught.value.message and "\n" not in caught.value.remedy
    return caught.value


def test_the_table_is_sound():
    specs = models()
    assert [spec.name for spec in specs] == ["nano", "wan2.1-1.3b", "wan2.1-14b"]
    for spec in specs:
        assert spec.width % 16 == spec.height % 16 == 0 and spec.frames % 4 == 1
        assert (spec.width, spec.height) in spec.resolutions.values()
        assert all(w % 16 == h % 16 == 0 for w, h in spec.resolutions.values())
        assert spec.guidance >= 1 and spec.shift >= 1 and spec.licence == "Apache-2.0"
        assert spec.embedded == (spec.min_memory_gb == 0) == ("/" not in spec.source)
    assert specs[1].negative_prompt.startswith("\u8272\u8c03\u8273\u4e3d") and specs[0].negative_prompt == ""
    assert specs[1].negative_prompt == specs[2].negative_prompt and specs[1].negative_prompt.count("\uff0c") == 27
    assert {spec.name: spec for spec in specs}[specs[0].name] is specs[0] and hash(specs[0]) != hash(specs[1])


def test_rows_with_wrong_keys_are_refused(tmp_path):
    text = (weights_dir() / "registry.toml").read_text(encoding="utf-8")
    (tmp_path / "r.toml").write_text(text.replace("licence", "license", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'nano' has wrong keys: \['licence', 'license'\]"):
        read_registry(tmp_path / "r.toml")


def test_auto_is_nano_on_a_machine_without_others(hub, embedded):
    spec, folder, reason = resolve("auto")
    assert (spec.name, folder) == ("nano", embedded)
    assert "wan2.1-14b is not on disk; wan2.1-1.3b is not on disk" in reason
    assert resolve("nano")[1:] == (embedded, "chosen by name")


def test_auto_takes_the_best_that_fits(hub, embedded, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small, large = models()[1:]
    folders = {spec.name: hub(spec.source) for spec in (small, large)}
    spec, folder, reason = resolve("auto")
    assert spec.name == "nano" and folder == embedded and "wan2.1-1.3b needs a CUDA GPU" in reason
    for room, expected in ((20, "nano"), (30, small.name), (90, large.name)):
        monkeypatch.setattr(registry, "_lacks", lambda spec, room=room: "is large" * (spec.min_memory_gb > room))
        spec, folder, reason = resolve("auto")
        assert spec.name == expected and folder == folders.get(expected, embedded)
    (folders[large.name] / "vae" / "config.json").unlink()
    spec, _, reason = resolve("auto")
    assert spec.name == small.name and "wan2.1-14b is not usable" in reason and "config.json" in reason


def test_the_gpus_memory_decides(monkeypatch):
    import torch

    class Gpu:
        total_memory = 48e9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Gpu)
    assert [registry._lacks(spec) for spec in models()] == ["", "", "needs 70 GB of GPU memory, not 48"]


def test_a_missing_model_names_the_command_that_fetches_it(hub):
    small, large = models()[1:]
    error = failure(small.name)
    assert "28.9 GB" in error.message
    assert error.remedy == f"fetch it: fpsgen models pull {small.name}"
    assert failure(large.name).remedy == f"fetch it: fpsgen models pull {large.name}"
    assert failure(small.source).remedy == failure(small.name).remedy
    assert failure("someone/else").remedy == "fetch it: fpsgen models pull someone/else"


def test_a_missing_embedded_model(tmp_path, monkeypatch, hub):
    shutil.copy(weights_dir() / "registry.toml", tmp_path)
    monkeypatch.setattr(registry, "weights_dir", lambda: tmp_path)
    assert "install fpsgen again" in failure("nano").remedy
    assert "nano is missing" in failure("auto").message


def test_the_pinned_commit_comes_first(hub):
    small = models()[1]
    latest = hub(small.source)
    assert resolve(small.name)[1] == latest  # another commit than the pinned one is better than none
    pinned = hub(small.source, small.revision, "pinned")
    assert resolve(small.name)[1] == resolve(small.source)[1] == pinned
    assert cached(small.source, "main") == latest


def test_repositories_and_folders(hub, tiny_dir, tmp_path, monkeypatch):
    folder = hub("someone/tiny-wan")
    spec, found, reason = resolve("someone/tiny-wan")
    assert found == folder and spec.source == "someone/tiny-wan" and spec.revision == "b" * 40 and reason
    spec, found, reason = resolve(str(tiny_dir))
    assert (spec.name, found, spec.trained_schedule) == ("tiny", tiny_dir, False) and "folder" in reason
    monkeypatch.chdir(tiny_dir.parent)
    assert resolve("tiny")[1] == resolve("./tiny")[1] == tiny_dir
    for name in ("./nowhere", "", "nan0", "a/b/c", "../x", "http://127.0.0.1:9/x", str(tiny_dir / "model_index.json")):
        assert "choose from auto, nano" in failure(name).remedy


def test_a_folder_takes_the_defaults_of_its_size(tiny_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "copy"))
    (folder / "schedule.toml").write_text("")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    for heads, like in ((4, 0), (12, 1), (40, 2)):
        config |= {"num_attention_heads": heads, "attention_head_dim": 128 if heads > 4 else 64}
        (folder / "transformer" / "config.json").write_text(json.dumps(config))
        spec, model = describe(folder), models()[like]
        assert (spec.steps, spec.guidance, spec.shift) == (model.steps, model.guidance, model.shift)
        assert spec.name == "copy" and spec.trained_schedule and not spec.embedded and spec.licence == "unknown"
        assert replace(spec, name="") != replace(model, name="")
