"""Recipes of earlier versions come back as what made the video then."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from refusal import refuses

from fpsgen.errors import BAD_INPUT
from fpsgen.pipeline.recipe import build_recipe
from fpsgen.pipeline.replay import load_recipe, request_from
from fpsgen.settings.gather import gather

OLD = Path(__file__).with_name("recipe_0_1_0.json")  # of a video that fpsgen 0.1.0 made on a CPU


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return lambda **flags: gather({"output": "again.mp4", **flags}, {}, tmp_path, tmp_path / "none.toml")


def test_a_recipe_of_0_1_gives_what_was_asked_then(settings):
    recipe, report = load_recipe(OLD)
    request, differ = request_from(recipe, settings())
    assert report is None and any("fpsgen was 0.1.0" in line for line in differ)
    now = build_recipe(request, {})
    same = set(recipe) - {"versions", "device", "dtype", "vae_dtype", "method", "schedule", "scheduler"}
    assert {name: now[name] for name in same} == {name: recipe[name] for name in same}
    assert now["schedule"] == recipe["schedule"]["toml"] and now["method"] is None
    assert request.machine.device == "cpu" and request.machine.dtype == "fp32"


def test_a_model_of_another_revision_is_said(settings):
    recipe, _ = load_recipe(OLD)
    assert not any("the model was" in line for line in request_from(recipe, settings())[1])
    other = recipe | {"model": recipe["model"] | {"revision": "f" * 40}}
    assert any("the model was at ffff" in line for line in request_from(other, settings())[1])


@pytest.mark.parametrize(("device", "impl"), [(None, "reference"), ("cpu", "reference"), ("cuda", "auto")])
def test_options_that_came_later_are_as_it_was_without_them(settings, device, impl):
    """0.1.0 had diffusers' own rounding, and the reference on a CPU: with these, the frames are the same to the bit."""
    recipe, _ = load_recipe(OLD)
    values = request_from(recipe, settings(device=device))[0].values()
    assert values["exact"] is True and values["method_impl"] == impl and values["linear"] is None
    chosen = json.loads(OLD.read_text())["recipe"] | {"exact": False, "method_impl": "auto"}
    values = request_from(chosen, settings(device=device))[0].values()
    assert values["exact"] is False and values["method_impl"] == "auto"


def test_the_lora_file_is_the_one_of_the_recipe(settings, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"adapter")
    recipe = json.loads(OLD.read_text())["recipe"] | {"lora": str(file)}
    _, differ = request_from(recipe, settings())
    assert any(str(file) in line for line in differ)  # a recipe without a digest
    recipe["lora_sha256"] = hashlib.sha256(b"adapter").hexdigest()
    request, differ = request_from(recipe, settings())
    assert request.values()["lora"] == str(file) and not any(str(file) in line for line in differ)
    file.write_bytes(b"another")
    with refuses(BAD_INPUT, str(file)):
        request_from(recipe, settings())
    file.unlink()
    with refuses(BAD_INPUT, str(file)):
        request_from(recipe, settings())


@pytest.mark.parametrize("name", ["prompt", "width", "scaled_to", "method", "model", "versions", "seed", "schedule"])
def test_a_value_that_is_none_is_named(settings, name):
    recipe, _ = load_recipe(OLD)
    with refuses(BAD_INPUT, name):
        request_from(recipe | {name: 0.5}, settings())
