"""UniPC with its coefficients on the host makes the samples of diffusers' own."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.models.wan import scheduler as ours
from fpsgen.models.wan.scheduler import coefficients_on_host


def samples(scheduler, steps, dtype=torch.float32) -> list[torch.Tensor]:
    """A loop whose model output depends on the sample."""
    torch.manual_seed(0)
    scheduler.set_timesteps(steps)
    x, made = torch.randn(1, 4, 3, 5, 6), []
    for t in scheduler.timesteps:
        velocity = (torch.tanh(x * 1.3) + t / 2000).to(dtype)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        made.append(x)
    return made


def unipc(**changes):
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
    return UniPCMultistepScheduler(**config | changes)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("changes", [{}, {"solver_order": 1}, {"solver_order": 3}])
def test_the_same_to_the_bit_on_a_cpu(steps, changes):
    wanted = samples(unipc(**changes), steps)
    scheduler = unipc(**changes)
    with coefficients_on_host(scheduler):
        replaced = scheduler.multistep_uni_c_bh_update.__class__.__name__ == "partial"
        made = samples(scheduler, steps)
    assert replaced == (changes.get("solver_order", 2) <= 2)
    assert all(map(torch.equal, made, wanted))
    assert "multistep_uni_p_bh_update" not in vars(scheduler)


def test_in_16_bit():
    scheduler = unipc()
    with coefficients_on_host(scheduler):
        made = samples(scheduler, 6, torch.bfloat16)
    assert all(map(torch.equal, made, samples(unipc(), 6, torch.bfloat16)))


@pytest.mark.parametrize("name", ["ratio", "alpha", "phi", "hh", "h"])
def test_a_wrong_term_is_seen(name, monkeypatch):
    between = ours._Terms.between

    def wrong(scheduler, s, t):
        terms = between(scheduler, s, t)
        return terms._replace(**{name: getattr(terms, name) * 1.01})

    monkeypatch.setattr(ours._Terms, "between", wrong)
    scheduler = unipc()
    with coefficients_on_host(scheduler):
        made = samples(scheduler, 4)
    assert not all(map(torch.equal, made, samples(unipc(), 4)))


def test_other_schedulers_stay():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = set(vars(scheduler))
    with coefficients_on_host(scheduler):
        assert set(vars(scheduler)) == before
