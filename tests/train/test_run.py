"""A whole run on a tiny model: what is learned, what resumes, what is exported."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from limits import largest_file
from refusal import refuses
from safetensors.torch import load_file
from stop import Stop

from fpsgen.errors import BAD_INPUT, DISK, ENVIRONMENT, MODEL, NUMERIC, USAGE, FpsgenError
from fpsgen.train import checkpoint, loop
from fpsgen.train import run as runs
from fpsgen.train.events import Silent
from fpsgen.train.parallel import Processes
from fpsgen.train.run import train
from fpsgen.train.teacher import prepare_pairs

CPU = torch.device("cpu")


def run(config, folder: Path, stop: int | None = None):
    return train(config, folder, CPU, Silent(), Silent() if stop is None else Stop(stop))


@pytest.fixture(scope="module")
def unbroken(make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "unbroken"
    return folder, run(make_config(), folder)


def losses(folder: Path) -> list[dict]:
    """Rows of the log without what time it took."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().split("\n") if line]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model" / "transformer").glob("*.safetensors")))


def test_the_error_falls_and_both_profiles_are_trained(make_config, tmp_path):
    folder = tmp_path / "longer"
    result = run(make_config(steps=40, save_every=40, lr=3e-3, held_out=0), folder)
    errors = result.report["held_out_error"]
    assert {row["profile"] for row in losses(folder)} == {"early", "late"}
    assert sum(errors["after"].values()) < 0.8 * sum(errors["before"].values())


@pytest.mark.parametrize("kill", [1, 3, 4, 5])
def test_a_killed_run_goes_on_to_the_same_bits(unbroken, make_config, tmp_path, kill):
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), tmp_path, kill)
    run(make_config(), tmp_path)
    assert losses(tmp_path) == losses(unbroken[0])
    ours, theirs = weights(tmp_path), weights(unbroken[0])
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_held_out_error_is_measured_with_each_checkpoint(unbroken):
    folder, result = unbroken
    found = {row["step"]: row["held_out"] for row in losses(folder) if "held_out" in row}
    assert set(found) == {2, 4, 6}
    assert found[6] == pytest.approx(result.report["held_out_error"]["after"])  # one prompt, four steps: all of them
    assert found[2] != found[4]


def test_a_torn_checkpoint_is_skipped(unbroken, make_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), tmp_path, 5)
    newest = sorted(tmp_path.glob("step-*"))[-1] / "exp_avg.safetensors"
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    assert checkpoint.latest(tmp_path)[0] == 2
    run(make_config(), tmp_path)
    assert losses(tmp_path) == losses(unbroken[0])


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (ENVIRONMENT, {"lora_rank": 4, "checkpointing": False}),
        (USAGE, {"batch": 2}),
        (MODEL, {"model": "no/such-model"}),
    ],
)
def test_what_a_run_cannot_do_is_said_before_its_folder_is_made(make_config, tmp_path, monkeypatch, code, changes):
    monkeypatch.setitem(sys.modules, "peft", None)  # not installed
    monkeypatch.setattr(runs, "processes", lambda device: nullcontext(Processes(0, 3, device)))
    with refuses(code):
        run(make_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pairs_of_a_model_that_is_missing_leave_no_folder(make_config, tmp_path):
    with refuses(MODEL):
        prepare_pairs(make_config(model="no/such-model"), tmp_path / "run", CPU, Silent())
    assert not (tmp_path / "run").exists()


def test_the_last_checkpoints_are_kept(unbroken):
    assert [path.name for path in sorted(unbroken[0].glob("step-*"))] == ["step-0000004", "step-0000006"]


def test_a_torn_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    """Checkpoints may come more often than before the stop."""
    tensors = {"weights": {"a": torch.zeros(2)}}
    for step in (2, 8):
        checkpoint.save(tmp_path, step, tensors, {}, keep=2)
    (tmp_path / "step-0000008" / "weights.safetensors").write_bytes(b"torn")
    for step in (3, 4):
        checkpoint.save(tmp_path, step, tensors, {}, keep=1)
        assert checkpoint.latest(tmp_path)[0] == step
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000004"]


def test_another_run_does_not_go_on_here(unbroken, make_config):
    for changes in ({"lr": 1e-4}, {"teacher_steps": 5}):
        with refuses(BAD_INPUT):
            run(make_config(**changes), unbroken[0])


def test_a_run_does_not_go_on_with_another_model(make_config, tiny_dir, tmp_path):
    """Pairs that were made beforehand count as its beginning."""
    shutil.copytree(tiny_dir, tmp_path / "model")
    config = make_config(model=str(tmp_path / "model"), steps=2)
    prepare_pairs(config, tmp_path / "run", CPU, Silent())
    run(config, tmp_path / "run")
    with (tmp_path / "model" / "transformer" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(FpsgenError, match="model changed") as caught:
        run(config, tmp_path / "run")
    assert caught.value.code == BAD_INPUT
    with pytest.raises(FpsgenError, match="model changed"):
        prepare_pairs(config, tmp_path / "run", CPU, Silent())


def test_the_averaged_weights_are_exported(unbroken):
    last = unbroken[0] / "step-0000006"
    average, raw = (load_file(last / f"{name}.safetensors") for name in ("average", "weights"))
    exported = weights(unbroken[0])
    assert exported["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert exported["scale_shift_table"].dtype == torch.float32  # as diffusers loads it
    assert all(torch.equal(exported[name], x.to(exported[name].dtype)) for name, x in average.items())
    assert any(not torch.equal(exported[name], x.to(exported[name].dtype)) for name, x in raw.items())


def test_the_objective_with_the_larger_weight_is_the_one_reported(make_config, tmp_path):
    result = run(make_config(steps=1, batch=1, distill=0.5, flow=2.0), tmp_path)
    assert result.report["objective"] == "flow"


def test_no_checkpoint_of_losses_that_have_risen(make_config, tmp_path, monkeypatch):
    def refuse(log, step: int) -> None:
        if step > 2:
            raise FpsgenError("risen", "lower lr", NUMERIC)

    monkeypatch.setattr(loop.Log, "check", refuse)
    with pytest.raises(FpsgenError):
        run(make_config(), tmp_path)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-0000002"]


def test_the_exported_folder_carries_its_schedule(unbroken):
    from fpsgen.attention.schedule import Schedule
    from fpsgen.models.patch.schedule_choice import checkpoint_schedule
    from fpsgen.models.wan.load import load

    model = unbroken[1].model
    schedule = Schedule.from_file(model / "schedule.toml")
    assert schedule.trained and schedule.name == "tiny"
    pipe = load(model)
    assert checkpoint_schedule(pipe) == schedule
    assert "before" in (model / "README.md").read_text()


def test_nothing_half_written_is_left_where_the_export_fails(make_config, tmp_path, monkeypatch):
    from fpsgen.train import export

    for place, name in ((export.WanTransformer3DModel, "save_pretrained"), (export.shutil, "copytree")):
        true = getattr(place, name)

        def limited(*given, true=true, **more):
            with largest_file(1000):
                return true(*given, **more)

        monkeypatch.setattr(place, name, limited)
        with refuses(DISK) as caught:
            run(make_config(steps=2), tmp_path)
        assert "[(" not in caught.value.message
        assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".model*"))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(make_config, tmp_path, monkeypatch):
    true = loop.velocity_error
    calls = []

    def breaks(*given):
        calls.append(torch.is_grad_enabled())  # not where the error before training is measured
        return true(*given) * (float("nan") if sum(calls) > 3 else 1.0)

    monkeypatch.setattr(loop, "velocity_error", breaks)
    with refuses(NUMERIC):
        run(make_config(), tmp_path)
    step, tensors, _ = checkpoint.latest(tmp_path)
    assert step == 2 and all(bool(x.isfinite().all()) for x in tensors["weights"].values())


def test_weights_that_are_lost_in_the_first_steps_end_the_run(make_config, tmp_path, monkeypatch):
    """There are no losses from before yet that a loss could be compared with."""
    true = loop.velocity_error
    calls = []

    def lost(*given):
        calls.append(torch.is_grad_enabled())
        return true(*given) + 40 * (torch.is_grad_enabled() and sum(calls) > 3)

    monkeypatch.setattr(loop, "velocity_error", lost)
    with refuses(NUMERIC, "step"):
        run(make_config(held_out=0), tmp_path)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-0000002"]


def test_no_checkpoint_of_weights_that_are_lost(make_config, tmp_path, monkeypatch):
    true = loop.velocity_error

    def lost(transformer, handle, batch, dtype=None):  # but for the samples that are trained on
        return true(transformer, handle, batch, dtype) + 40 * (not torch.is_grad_enabled())

    monkeypatch.setattr(loop, "velocity_error", lost)
    with refuses(NUMERIC, "held-out"):
        run(make_config(), tmp_path)
    assert not list(tmp_path.glob("step-*"))


def test_flow_and_lora(make_config, tmp_path):
    result = run(make_config(steps=4, flow=0.5, lora_rank=4, checkpointing=False), tmp_path)
    names = load_file(tmp_path / "step-0000004" / "weights.safetensors")
    assert names and all("lora" in name for name in names)
    merged = weights(tmp_path)
    assert not any("lora" in name for name in merged)
    from fpsgen.models.wan.load import load

    load(result.model)


def test_a_model_in_bf16_is_trained(make_config, tiny_dir, tmp_path):
    """As on a GPU: weights in bf16 but for those that diffusers keeps in fp32, masters beside them."""
    from fpsgen.models.wan.load import load
    from fpsgen.train.data import Pairs
    from fpsgen.train.loop import Trainer
    from fpsgen.train.objective import Objective
    from fpsgen.train.teacher import make_pairs

    config = make_config(steps=3, lr=1e-2, warmup=0)
    pipe = load(tiny_dir, dtype=torch.bfloat16)
    pairs = Pairs(make_pairs(pipe, config, 16, tmp_path / "pairs", Silent()), config.parsed_schedule())
    trainer = Trainer(pipe.transformer, config, tmp_path, (3, 4, 4), Processes(0, 1, CPU))
    assert trainer.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.weights.used.values()} == {torch.bfloat16, torch.float32}
    before = trainer.error(pairs)
    trainer.resume()
    trainer.run([Objective("distill", 1.0, pairs, pairs)], Silent())
    trainer.close()
    assert all(p.dtype == torch.float32 for p in trainer.weights.masters.values())
    assert trainer.error(pairs) != before
    again = Trainer(load(tiny_dir, dtype=torch.bfloat16).transformer, config, tmp_path, (3, 4, 4), Processes(0, 1, CPU))
    assert again.resume() == 3
    for name, p in again.weights.used.items():
        assert torch.equal(p.detach(), trainer.weights.masters[name].detach().to(p.dtype))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    tensors = {"weights": {"a": torch.zeros(10)}, "average": {"a": torch.zeros(5000)}}
    checkpoint.save(tmp_path, 2, tensors, {}, keep=2)
    with largest_file(5000), refuses(DISK, "step-0000004"):
        checkpoint.save(tmp_path, 4, tensors, {}, keep=2)
    assert checkpoint.latest(tmp_path)[0] == 2 and not list(tmp_path.glob(".step*"))
