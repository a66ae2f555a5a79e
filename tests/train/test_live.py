"""A live teacher gives what stored pairs give, from (seed, step) alone, and every trajectory is fresh."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from stop import Stop

from fpsgen.attention.schedule import Schedule
from fpsgen.train.events import Silent
from fpsgen.train.live import LivePairs
from fpsgen.train.run import train

from .conftest import SCHEDULE

SIGMAS = torch.tensor([1.001, 0.95, 0.5, 0.2])
PROMPTS = ["a", "b", "c"]


class Made:
    """A made-up teacher: latents hold the seed and the step; text holds the prompt."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, prompt: str, seed: int) -> dict[str, torch.Tensor]:
        self.calls.append((prompt, seed))
        row = (seed * 10.0 + torch.arange(len(SIGMAS))).view(-1, 1, 1, 1, 1)
        text = torch.full((1, 1), float(ord(prompt)))
        found = {"latents": row, "velocity": row + 1, "velocity_null": row + 2, "clean": row[-1], "sigmas": SIGMAS}
        return found | {"timesteps": 1000 * SIGMAS, "text": text, "text_null": -text}


@pytest.fixture
def live():
    made = Made()
    return LivePairs(made, PROMPTS, Schedule.from_toml(SCHEDULE), SIGMAS), made.calls


def drawn(pairs: LivePairs, steps, seed: int = 0):
    return [pairs.draw(step, seed, 2, 0.3).latents.flatten().tolist() for step in steps]


def test_draws_follow_from_seed_and_step_alone(live):
    pairs, _ = live
    first = drawn(pairs, range(16))
    assert drawn(pairs, reversed(range(16)))[::-1] == first
    assert drawn(pairs, [9, 2]) == [first[9], first[2]]
    assert drawn(pairs, range(16), seed=1) != first


def test_a_block_is_made_once_and_every_prompt_comes_equally_often(live):
    pairs, calls = live
    drawn(pairs, range(24))  # 6 blocks of 4 steps, 2 trajectories each
    assert len(calls) == 12 == len({seed for _, seed in calls})
    assert all([prompt for prompt, _ in calls].count(name) == 4 for name in PROMPTS)


def test_each_cycle_of_the_prompts_has_an_order_of_its_own():
    made = Made()
    pairs = LivePairs(made, "abcdefgh", Schedule.from_toml(SCHEDULE), SIGMAS)
    drawn(pairs, range(48))  # 12 blocks of 2 trajectories: three times all prompts
    orders = ["".join(prompt for prompt, _ in made.calls[first : first + 8]) for first in (0, 8, 16)]
    assert all(sorted(order) == sorted("abcdefgh") for order in orders) and len(set(orders)) == 3


def test_a_batch_is_of_one_profile_and_of_its_block(live):
    pairs, _ = live
    for step in range(40):
        batch = pairs.draw(step, 0, 2, 0.5)
        assert {sigma >= 0.9 for sigma in batch.sigmas.tolist()} == {batch.profile == "early"}
        null = bool(batch.text[0] < 0)
        assert torch.equal(batch.velocity, batch.latents + (2 if null else 1))
        numbers = (batch.latents.flatten() // 10).tolist()
        assert all(step // 4 * 2 <= number < step // 4 * 2 + 2 for number in numbers)
    assert pairs.profiles == ["early", "late"] and len(pairs) == 12
    assert sum(len(batch.latents) for name in pairs.profiles for batch in pairs.every(name, 2)) == 8


def test_the_teacher_s_own_trajectories_are_drawn(make_config, tiny_dir):
    """A drawn velocity is the dense model's at the drawn latents; held-out prompts are left out."""
    from fpsgen.models.wan.load import load
    from fpsgen.train.teacher import live_pairs

    pipe = load(tiny_dir)
    pairs = live_pairs(pipe, make_config(), 16)
    assert len(pairs) == 2 * 4
    batch = pairs.draw(3, 0, 2, 0.0)
    given = {"hidden_states": batch.latents, "timestep": batch.timesteps, "encoder_hidden_states": batch.text}
    found = pipe.transformer(**given, return_dict=False)[0]
    torch.testing.assert_close(batch.velocity, found, atol=5e-3, rtol=5e-3)


def test_a_run_with_a_live_teacher_goes_on_to_the_same_bits(make_config, tmp_path):
    """Pairs are stored for the held-out prompt alone; a killed run makes its block anew."""
    config = make_config(teacher="live")
    for folder, stops in ((tmp_path / "whole", []), (tmp_path / "killed", [3, 5])):
        for after in stops:
            with pytest.raises(KeyboardInterrupt):
                train(config, folder, torch.device("cpu"), Silent(), Stop(after))
        result = train(config, folder, torch.device("cpu"), Silent(), Silent())
        assert [path.name for path in (folder / "pairs").glob("*.safetensors")] == ["00000.safetensors"]
    weights = [
        load_file(next((tmp_path / name / "model" / "transformer").glob("*.safetensors")))
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert result.report["held_out_error"]["after"].keys() == {"early", "late"}


def test_a_live_teacher_stays_dense_and_as_it_was(make_config, tiny_dir):
    """Training the student changes no pair that the teacher makes afterwards."""
    from fpsgen.models.patch.apply import apply
    from fpsgen.models.wan.load import load
    from fpsgen.train.teacher import dense_copy, live_pairs

    pipe = load(tiny_dir)
    plain = live_pairs(pipe, make_config(), 16).draw(0, 0, 1, 0.0)
    pairs = live_pairs(dense_copy(pipe), make_config(), 16)
    with apply(pipe.transformer, schedule=Schedule.from_toml(SCHEDULE)), torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.mul_(0.5)
        found = pairs.draw(0, 0, 1, 0.0)
    assert torch.equal(found.velocity, plain.velocity)
