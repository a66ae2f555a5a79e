"""Which schedule is chosen, and when people are warned."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace

import pytest
import wan_cases as case
from refusal import refuses

from fpsgen import apply
from fpsgen.attention import METHODS, Method, preset
from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.models.patch.schedule_choice import ScheduleWarning, checkpoint_schedule, resolve_schedule
from fpsgen.models.wan.load import load

OWN = replace(case.mixed(case.FP8, case.OTHER, dense_layers=(1,)), name="own", trained=True)


@pytest.fixture
def trained_dir(tiny_dir, tmp_path):
    folder = shutil.copytree(tiny_dir, tmp_path / "trained")
    (folder / "schedule.toml").write_text(OWN.to_toml(), encoding="utf-8")
    return folder


def quietly(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return resolve_schedule(*arguments)


def test_explicit_before_the_checkpoints_before_safe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN.to_toml())
    assert quietly(None, None, None) == preset("safe")
    assert quietly(None, None, OWN) == OWN
    assert quietly("balanced", None, None) == preset("balanced")
    assert quietly(path, None, OWN) == quietly(str(path), None, OWN) == OWN
    assert quietly(None, "bf16", OWN) == OWN.with_method("bf16")
    assert quietly(preset("paper"), "bf16", OWN) == preset("paper").with_method("bf16")


def test_trained_weights_with_another_schedule_warn():
    with pytest.warns(ScheduleWarning, match=r"trained with schedule 'own' and run with 'safe'"):
        resolve_schedule("safe", None, OWN)
    quietly(replace(OWN, name="a copy", trained=False), None, OWN)
    quietly(replace(OWN, trained=True), "sta", OWN)


def test_untrained_weights_with_a_schedule_that_needs_training_warn():
    for wanted in ("paper", OWN, replace(preset("paper"), name="mine")):
        for own in (None, preset("safe")):
            with pytest.warns(ScheduleWarning, match="were not"):
                resolve_schedule(wanted, None, own)
    quietly("paper", "bf16", None)


def test_no_dense_method_in_16_bits_warns(monkeypatch):
    monkeypatch.setitem(METHODS, "plain", Method("plain", "dense", "made up", "#123456"))
    quietly("paper", "plain", None)
    quietly("paper", "plain", OWN)


@pytest.mark.parametrize("wanted", ["fastest", "missing.toml", "broken.toml", "gap.toml"])
def test_schedules_that_cannot_be_used(wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("name = ")
    (tmp_path / "gap.toml").write_text(OWN.to_toml().replace("high = 0.5", "high = 0.4"))
    with refuses(BAD_INPUT, wanted.split(".")[0]):
        resolve_schedule(wanted, None, None)


def test_unknown_methods():
    with pytest.raises(FpsgenError, match="method is 'fast'"):
        resolve_schedule(None, "fast", None)


def test_the_checkpoints_schedule_is_found(trained_dir, tiny_dir, monkeypatch):
    from diffusers import WanTransformer3DModel

    pipe = load(trained_dir)
    assert checkpoint_schedule(pipe) == checkpoint_schedule(pipe.transformer) == OWN
    assert checkpoint_schedule(load(tiny_dir)) is None
    monkeypatch.chdir(trained_dir)
    assert checkpoint_schedule(WanTransformer3DModel.from_pretrained("transformer")) == OWN
    with apply(pipe, strict=True) as handle:
        assert handle.schedule == OWN
        case.video(pipe)
    with pytest.warns(ScheduleWarning):
        apply(pipe, "safe")


def test_the_schedule_of_a_cached_repository_is_found(trained_dir, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--wan" / "snapshots" / ("a" * 40)
    shutil.copytree(trained_dir, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    class Pipe:
        config = {"_name_or_path": "someone/wan"}  # noqa: RUF012

    assert checkpoint_schedule(Pipe()) == OWN
    Pipe.config = {"_name_or_path": "someone/else"}
    assert checkpoint_schedule(Pipe()) is None
