"""`bench kernel` on a GPU that is not the current one."""

import pytest
import torch

from fpsgen.bench.kernel import run
from fpsgen.bench.shapes import Shape


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_rows_are_measured_on_the_second_device():
    device = torch.device("cuda:1")
    rows = list(run([Shape("small", (3, 20, 26), 2)], ["fps"], [0.5], 0.02, device))
    (row,) = [row for row in rows if row["method"] == "fps"]
    assert row["median_ms"] > 0 and row["relative_error"] < 4e-2
    assert torch.cuda.current_device() == 0 and not torch.cuda.memory_allocated(0)
