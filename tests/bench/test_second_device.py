"""`bench kernel` on a GPU that is not the current one."""

import pytest
import torch

from fpsgen.bench.kernel import run
from fpsgen.bench.shapes import Shape


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("devices", [["cuda:1"], ["cuda:0", "cuda:1"]])
def test_rows_are_measured_on_the_second_device(devices):
    """Also after the first one, which streams and graphs may not stay on."""
    for device in devices:
        before = torch.cuda.memory_allocated(0)
        rows = list(run([Shape("small", (3, 20, 26), 2)], ["fps", "bf16"], [0.5], 0.02, torch.device(device)))
        for name, gate in (("fps", 4e-2), ("bf16", 1e-2)):
            (row,) = [row for row in rows if row["method"] == name]
            assert row["median_ms"] > 0 and row["relative_error"] < gate
        assert torch.cuda.current_device() == 0
    assert torch.cuda.memory_allocated(0) <= before
