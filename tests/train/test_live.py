"""A live teacher gives what stored pairs give, from (seed, step) alone, and every trajectory is fresh."""

from __future__ import annotations

import pytest
import torch

from fpsgen.attention.schedule import Schedule
from fpsgen.train.live import LivePairs

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
