"""Steps are reported once each and in order, with their own time, and a bad one by its number."""

from __future__ import annotations

import pytest
import torch

from fpsgen.cli.progress import Quiet
from fpsgen.errors import FpsgenError
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.step_ends import StepEnds


class Steps(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, str]] = []

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        self.seen.append((index, total, note))


def latents(device: str = "cpu") -> torch.Tensor:
    return torch.randn(1, 4, 2, 4, 4, device=device)


def test_on_a_cpu_a_step_is_reported_at_once():
    steps = Steps()
    timing = Timing(steps)
    ends = StepEnds(torch.device("cpu"), 2, timing)
    for index in range(2):
        ends.queued(index, latents(), f"note {index}")
        assert steps.seen[-1] == (index, 2, f"note {index}") and len(steps.seen) == index + 1
    with pytest.raises(FpsgenError, match="step 2 of 2"):
        ends.queued(1, latents() * float("nan"), "")
    ends.finish()
    assert len(steps.seen) == len(timing.steps) == 2


@pytest.mark.gpu
def test_on_a_gpu_the_host_is_one_step_ahead():
    steps, device = Steps(), torch.device("cuda")
    timing = Timing(steps)
    ends = StepEnds(device, 4, timing)
    torch.cuda.synchronize()
    for index, cycles in enumerate((10_000_000, 80_000_000, 20_000_000)):
        torch.cuda._sleep(cycles)
        ends.queued(index, latents("cuda"), f"note {index}")
        assert len(steps.seen) == index
    assert not torch.cuda.current_stream().query()  # the last step is at work
    ends.finish()
    assert steps.seen == [(index, 4, f"note {index}") for index in range(3)]
    assert 2 < timing.steps[1] / timing.steps[2] < 6  # each has its own time
    ends.queued(3, latents("cuda") * float("nan"), "")
    with pytest.raises(FpsgenError, match="step 4 of 4"):
        ends.finish()
