"""The table of models, and which one is meant."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from refusal import refused

from fpsgen.assets import weights_dir
from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog import cache, registry
from fpsgen.models.catalog.cache import cached
from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.geometry import Geometry
from fpsgen.models.catalog.machine import Machine, lacks
from fpsgen.models.catalog.registry import models, read_registry

CPU = Machine((), 16.0)


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
    for module in (registry, cache):
        monkeypatch.setattr(module, "weights_dir", lambda: tmp_path)
    return tmp_path / "nano"


def failure(name: str) -> FpsgenError:
    return refused(lambda: choose(name), MODEL)


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


def gpu(*memory: float) -> Machine:
    return Machine(memory, 64.0)


def test_auto_is_nano_on_a_machine_without_others(hub, embedded):
    choice = choose("auto", machine=gpu(80))
    assert (choice.spec.name, choice.folder) == ("nano", embedded)
    assert "wan2.1-14b is not on disk; wan2.1-1.3b is not on disk" in choice.reason
    assert [(passed.spec.name, passed.fetchable) for passed in choice.passed] == [
        ("wan2.1-14b", True),
        ("wan2.1-1.3b", True),
    ]
    choice = choose("auto", machine=CPU)
    assert choice.spec.name == "nano" and not any(passed.fetchable for passed in choice.passed)
    assert "wan2.1-1.3b needs a CUDA GPU" in choice.reason
    assert (choose("nano").folder, choose("nano").reason) == (embedded, "chosen by name")


def test_auto_takes_the_best_that_fits(hub, embedded):
    small, large = models()[1:]
    folders = {spec.name: hub(spec.source) for spec in (small, large)}
    for machine, expected in ((CPU, "nano"), (gpu(20), "nano"), (gpu(30), small.name), (gpu(90), large.name)):
        choice = choose("auto", machine=machine)
        assert choice.spec.name == expected and choice.folder == folders.get(expected, embedded)
    (folders[large.name] / "vae" / "config.json").unlink()
    choice = choose("auto", machine=gpu(90))
    assert choice.spec.name == small.name and "wan2.1-14b is not usable" in choice.reason
    assert "vae/config.json" in choice.reason and not choice.passed[0].fetchable


def test_auto_takes_a_model_that_makes_the_size(hub, embedded):
    small = models()[1]
    hub(small.source)
    assert choose("auto", "720p", machine=gpu(30)).spec.name == small.name
    assert choose("auto", (640, 640), machine=gpu(30)).spec.name == small.name
    for size in ("160p", (1000, 1000), (20000, 16)):
        choice = choose("auto", size, machine=gpu(30))
        assert choice.spec.name == "nano" and "wan2.1-1.3b does not make" in choice.reason
    assert choose("auto", "4320p", machine=gpu(30)).spec.name == "nano"  # which is scaled


def test_the_gpu_that_will_be_used_decides():
    small, large = models()[1:]
    for machine in (gpu(12, 80), gpu(80, 12)):
        assert lacks(large, machine) == lacks(large, machine, "cuda") == ""  # the largest one
    assert gpu(12, 80, 80).largest_gpu() == 1 and CPU.largest_gpu() == 0
    assert lacks(large, gpu(12, 80), "cuda:1") == ""
    assert lacks(large, gpu(12, 80), "cuda:0") == "needs 70 GB of GPU memory, not 12"
    assert (
        lacks(large, gpu(12, 80), "cpu") == lacks(large, CPU) == lacks(large, gpu(80), "cuda:7") == "needs a CUDA GPU"
    )
    assert [lacks(spec, gpu(48)) for spec in models()] == ["", "", "needs 70 GB of GPU memory, not 48"]
    assert lacks(small, gpu(16)) == "needs 24 GB of GPU memory, not 16"


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
    for module in (registry, cache):
        monkeypatch.setattr(module, "weights_dir", lambda: tmp_path)
    assert "install fpsgen again" in failure("nano").remedy
    assert "nano is not on disk" in failure("auto").message


def test_a_missing_model_can_be_planned(hub):
    small = models()[1]
    choice = choose(small.name, missing_ok=True)
    assert (choice.folder, choice.spec, choice.geometry) == (None, small, small.geometry)
    other = choose("someone/else", missing_ok=True)
    assert other.folder is None and other.spec.source == "someone/else" and other.spec.revision == "main"
    assert cache.bytes_to_fetch(small) == 28_900_000_000
    blob = cache.RepositoryCache(cache.hub_settings().cache, small.source).blob("c" * 64)
    blob.parent.mkdir(parents=True)
    blob.with_name("x.incomplete").write_bytes(b"x" * 1_000_000)
    assert cache.bytes_to_fetch(small) == 28_899_000_000
    hub(small.source)
    assert cache.bytes_to_fetch(small) == 0 and cache.bytes_to_fetch(models()[0]) == 0


def test_the_pinned_commit_comes_first(hub):
    small = models()[1]
    latest = hub(small.source)
    assert choose(small.name).folder == latest  # another commit than the pinned one is better than none
    pinned = hub(small.source, small.revision, "pinned")
    assert choose(small.name).folder == choose(small.source).folder == pinned
    assert cached(small.source, "main") == latest


def test_repositories_and_folders(hub, tiny_dir, tmp_path, monkeypatch):
    folder = hub("someone/tiny-wan")
    choice = choose("someone/tiny-wan")
    spec, reason = choice.spec, choice.reason
    assert choice.folder == folder and spec.source == "someone/tiny-wan" and spec.revision == "b" * 40 and reason
    choice = choose(str(tiny_dir))
    assert (choice.spec.name, choice.folder, choice.spec.trained_schedule) == ("tiny", tiny_dir, False)
    assert "folder" in choice.reason
    monkeypatch.chdir(tiny_dir.parent)
    assert choose("tiny").folder == choose("./tiny").folder == tiny_dir
    for name in ("./nowhere", "", "nan0", "a/b/c", "../x", "http://127.0.0.1:9/x", str(tiny_dir / "model_index.json")):
        assert "choose from auto, nano" in failure(name).remedy


def test_a_folder_takes_the_defaults_of_its_size(tiny_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "copy"))
    (folder / "schedule.toml").write_text("")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    for heads, like in ((4, 0), (12, 1), (40, 2)):
        config |= {"num_attention_heads": heads, "attention_head_dim": 128 if heads > 4 else 64}
        (folder / "transformer" / "config.json").write_text(json.dumps(config))
        spec, model = choose(str(folder)).spec, models()[like]
        assert (spec.steps, spec.guidance, spec.shift) == (model.steps, model.guidance, model.shift)
        assert spec.name == "copy" and spec.trained_schedule and not spec.embedded and spec.licence == "unknown"
        assert replace(spec, name="") != replace(model, name="")


def test_a_video_is_as_long_as_the_rotary_table_at_most():
    model = Geometry(spatial=8, temporal=4, patch=(1, 2, 2), positions=5)
    assert not model.refuses(80, 80, 17) and "17" in model.refuses(80, 80, 21)
    assert "80x80" in model.refuses(96, 80, 17) and "80x80" in model.refuses(80, 96, 17)
