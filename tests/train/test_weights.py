"""Masters, averages, and how a step's gradient comes together: against sums written out here."""

from __future__ import annotations

import pytest
import torch

from fpsgen.models.patch.linear import FP8Linear
from fpsgen.train.data import Batch
from fpsgen.train.events import Silent
from fpsgen.train.loop import Trainer
from fpsgen.train.objective import Objective, velocity_error
from fpsgen.train.parallel import Processes
from fpsgen.train.ramp import STAGES, ramp_stage, ramped
from fpsgen.train.weights import Weights, learning_rate

ALONE = Processes(0, 1, torch.device("cpu"))
GRID = (3, 4, 4)


class Fixed:
    """A source that gives one batch."""

    profiles = ("late",)

    def __init__(self, transformer, count: int = 4) -> None:
        make = torch.Generator().manual_seed(0)
        shape = (count, transformer.config.in_channels, 3, 8, 8)
        latents, velocity = (torch.randn(shape, generator=make) for _ in range(2))
        text = torch.randn(count, 4, transformer.config.text_dim, generator=make)
        sigmas = torch.linspace(0.1, 0.5, count)
        self.batch = Batch(latents, velocity, velocity, sigmas, 1000 * sigmas, text, "late")

    def __len__(self) -> int:
        return 1

    def draw(self, step, seed, batch, null_share):
        return self.batch

    def every(self, profile, batch, limit=1):
        yield self.batch


def transformer(head_dim: int = 12):
    from tiny import tiny_transformer

    torch.manual_seed(0)
    return tiny_transformer(2, head_dim, 2, 4)


def one_step(make_config, tmp_path, model, **changes):
    config = make_config(
        **{"batch": 4, "steps": 1, "checkpointing": False, "dense_every": 0, "save_every": 9} | changes
    )
    trainer = Trainer(model, config, tmp_path, GRID, ALONE)
    source = Fixed(model)
    trainer.resume()
    trainer.run([Objective("distill", 1.0, source, source)], Silent())
    return trainer, trainer.log._rows[-1]


def test_micro_batches_add_up_to_the_batch(make_config, tmp_path):
    _, whole = one_step(make_config, tmp_path / "a", transformer())
    _, parts = one_step(make_config, tmp_path / "b", transformer(), micro_batch=2)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_objectives_count_by_their_weights(make_config, tmp_path):
    """In the loss and in its gradient: a loss twice with 0.5 and 1.5 is that loss with 2."""
    rows = []
    for number, weights in enumerate([(1.0,), (2.0,), (0.5, 1.5)]):
        model = transformer()
        config = make_config(batch=4, steps=1, checkpointing=False, dense_every=0, save_every=9, clip=0.0)
        trainer, source = Trainer(model, config, tmp_path / str(number), GRID, ALONE), Fixed(model)
        names = ("distill", "flow")
        rows.append(trainer._one([Objective(*each, source, source) for each in zip(names, weights, strict=False)]))
        trainer.close()
    for key in ("loss", "grad_norm"):
        one, two, both = (row[key] for row in rows)
        assert two == pytest.approx(2 * one, rel=1e-5) and both == pytest.approx(two, rel=1e-5)


def test_weights_in_16_bit_have_masters_that_small_steps_reach(make_config, tmp_path):
    """A change of 1e-6 is lost in bf16; a thousand of them are not."""
    model = transformer().to(torch.bfloat16).requires_grad_(True)
    weights = Weights(model, make_config(lr=1e-6, warmup=0, steps=1000, weight_decay=0.0, ema=0.0))
    name, used = next((n, p) for n, p in weights.used.items() if p.dtype == torch.bfloat16 and p.dim() > 1)
    before = used.detach().clone()
    for number in range(200):
        for p in weights.used.values():
            p.grad = torch.ones_like(p)
        weights.collect()
        weights.step(number)
    master = weights.masters[name]
    assert master.dtype == torch.float32 and used.grad is None
    moved = (before.float() - master.detach()).mean()
    assert 1.5e-4 < float(moved) < 2.5e-4
    assert torch.equal(used.detach(), master.detach().to(torch.bfloat16)) and not torch.equal(used, before)


def test_the_average_follows_the_weights_and_leaves_again(make_config):
    model = transformer().requires_grad_(True)
    weights = Weights(model, make_config(lr=1e-2, warmup=0, ema=0.75, clip=0.0))
    p = next(iter(weights.used.values()))
    first = p.detach().clone()
    p.grad = torch.ones_like(p)
    for other in weights.used.values():
        other.grad = torch.ones_like(other)
    weights.step(0)
    second = p.detach().clone()
    with weights.averaged():
        torch.testing.assert_close(p.detach(), 0.75 * first + 0.25 * second)
    assert torch.equal(p.detach(), second)


def test_the_held_out_error_is_that_of_the_averaged_weights(make_config, tmp_path):
    model = transformer()
    trainer, _ = one_step(make_config, tmp_path, model, lr=0.1, warmup=0, ema=0.9)
    source = Fixed(model)
    found = trainer.error(source)["late"]

    def error() -> float:
        with torch.no_grad():
            return float(velocity_error(model, trainer._handle, source.batch) / source.batch.velocity.square().mean())

    raw = error()
    with trainer.weights.averaged():
        assert found == pytest.approx(error(), rel=1e-5)
    assert found != pytest.approx(raw, rel=1e-3)


@pytest.mark.parametrize("sharding", [False, True])
def test_fp8_linears_are_trained_through(make_config, tmp_path, sharding, monkeypatch):
    """The forward multiplies rounded copies of the weights as they are now, also where nothing counts their changes."""
    model = transformer(16)
    config = make_config(batch=4, steps=3, lr=1e-2, warmup=0, linear="fp8", checkpointing=True, dense_every=0)
    shared = Processes(0, 2, torch.device("cpu")) if sharding else ALONE
    if sharding:
        monkeypatch.setattr(Processes, "shard", lambda self, model: None)
        monkeypatch.setattr(Processes, "mean", lambda self, value: value)
        monkeypatch.setattr(Processes, "wait", lambda self: None)
    trainer = Trainer(model, config, tmp_path, GRID, shared)
    trainer.resume()
    source = Fixed(model)
    layer = model.blocks[0].attn1.to_q
    for _ in range(2):
        trainer._one([Objective("distill", 1.0, source, source)])
    trainer._patch(trainer.step)
    assert type(layer) is FP8Linear and layer.weight.grad is None
    if sharding:
        assert layer.fp8 is None  # its copy is made anew in each step
    with torch.no_grad():
        velocity_error(model, trainer._handle, source.batch)
    fp8 = layer.fp8
    rounded = fp8.values.float() * fp8.scale.t()
    torch.testing.assert_close(rounded, layer.weight.detach().float(), rtol=0.07, atol=2e-3)
    trainer.close()
    assert type(layer) is torch.nn.Linear


def test_matrices_decay_and_vectors_do_not(make_config):
    model = transformer().requires_grad_(True)
    config = make_config(lr=0.1, weight_decay=0.5, warmup=0)
    weights = Weights(model, config)
    before = {name: p.detach().clone() for name, p in weights.masters.items()}
    for p in weights.masters.values():
        p.grad = torch.zeros_like(p)
    weights.step(0)
    kept = 1 - 0.5 * learning_rate(config, 0)
    for name, p in weights.masters.items():
        torch.testing.assert_close(p.detach(), before[name] * (kept if p.dim() > 1 else 1.0))


def test_a_ramp_goes_from_dense_to_the_schedule(make_config):
    schedule, grid = make_config().parsed_schedule(), (9, 10, 16)
    assert [ramp_stage(step, 80) for step in (0, 9, 10, 79, 80, 10**9)] == [0, 0, 1, 7, STAGES, STAGES]
    assert ramp_stage(0, 0) == STAGES
    late = [next(p for p in ramped(schedule, stage, grid).profiles if p.name == "late") for stage in range(STAGES + 1)]
    densities = [profile.resolve(grid)[3] for profile in late]
    assert densities[0] == 1.0 and densities == sorted(densities, reverse=True)
    wanted = [1 - stage / STAGES * (1 - densities[-1]) for stage in range(STAGES)]
    assert [profile.density for profile in late[:-1]] == pytest.approx(wanted)
    assert late[-1] == next(p for p in schedule.profiles if p.name == "late")


def test_a_ramp_is_what_runs(make_config, tmp_path):
    model = transformer()
    config = make_config(batch=4, steps=4, density_ramp=3, dense_every=0)
    trainer = Trainer(model, config, tmp_path, GRID, ALONE)
    trainer.resume()
    source = Fixed(model)
    trainer.run([Objective("distill", 1.0, source, source)], Silent())
    densities = [row["density"] for row in trainer.log._rows]
    assert densities[0] == 1.0 and densities[-1] < 0.9 and densities == sorted(densities, reverse=True)


def test_the_dense_loss_is_that_of_the_same_weights_without_windows(make_config, tmp_path):
    model = transformer()
    source = Fixed(model)
    with torch.no_grad():
        wanted = float(velocity_error(model, None, source.batch))
    _, row = one_step(make_config, tmp_path, model, dense_every=1)
    part = row["objectives"]["distill"]
    assert part["dense_loss"] == pytest.approx(wanted, rel=1e-5)
    assert part["loss"] != pytest.approx(wanted, rel=1e-5)


def test_an_adapter_is_trained_around_fp8_linears(make_config, tmp_path):
    """The frozen layers multiply in FP8, the adapter beside them does not; both reach the loss."""
    model = transformer(16)
    config = make_config(batch=4, steps=3, lr=1e-2, warmup=0, lora_rank=4, linear="fp8", dense_every=2)
    trainer = Trainer(model, config, tmp_path, GRID, ALONE)
    trainer.resume()
    source = Fixed(model)
    frozen = model.blocks[0].attn1.to_q.base_layer.weight.detach().clone()
    trainer.run([Objective("distill", 1.0, source, source)], Silent())
    layer = model.blocks[0].attn1.to_q
    assert type(layer.base_layer) is FP8Linear and torch.equal(layer.base_layer.weight, frozen)
    assert set(trainer.weights.used) and all("lora" in name for name in trainer.weights.used)
    assert all(bool(p.detach().any()) for name, p in trainer.weights.used.items() if "lora_B" in name)
    losses = [row["loss"] for row in trainer.log._rows]
    assert losses[-1] < losses[0]
