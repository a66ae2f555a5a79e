"""What is kept of a dense trajectory, and which of its steps are compared."""

from __future__ import annotations

import torch

from fpsgen.bench.trajectory import Forward, recorded, step_errors


class Plus(torch.nn.Module):
    """Stands for a transformer, and for the handle on it."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number, self.seen = number, []

    def forward(self, hidden_states):
        self.seen.append(float(hidden_states.mean()))
        return (hidden_states + self.number,)

    def latest_step(self):
        return {"density": 0.5}


def test_what_is_recorded_does_not_change_when_tensors_are_written_to():
    model, latents = Plus(1.0), torch.zeros(4)
    with recorded(model) as forwards:
        model(hidden_states=latents)[0].fill_(9.0)
        latents.fill_(5.0)
        model(hidden_states=latents)
    model(hidden_states=latents)  # no longer recorded
    kept = [(float(f.inputs["hidden_states"].mean()), float(f.velocity.mean())) for f in forwards]
    assert kept == [(0.0, 1.0), (5.0, 6.0)]


def test_each_nth_step_is_compared_with_all_its_forwards():
    levels = torch.arange(10.0).view(5, 2)  # two forwards a step
    forwards = [Forward({"hidden_states": level.expand(4)}, level.expand(4)) for level in levels.flatten()]
    model = Plus(0.5)
    found = list(step_errors(model, model, forwards, 5, every=2))
    assert [(step.index, step.error["mse"]) for step in found] == [(0, 0.25), (2, 0.25), (4, 0.25)]
    assert model.seen == [0, 1, 4, 5, 8, 9]
