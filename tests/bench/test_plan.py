"""What is run before anything is measured."""

import pytest

from fpsgen.bench.plan import warm_steps


@pytest.mark.parametrize(
    ("method", "steps", "device", "wanted"),
    [
        ("bf16", 50, "cuda", 1),  # one kind of step: a step of the dense baseline may take half a minute
        ("fps", 50, "cuda", 3),  # a step for each profile
        ("fps", 2, "cuda", 2),
        ("fps", 50, "cpu", 1),
    ],
)
def test_each_kind_of_step_is_warm(method, steps, device, wanted):
    assert warm_steps(method, steps, device) == wanted
