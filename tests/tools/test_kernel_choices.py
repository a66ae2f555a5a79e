"""What choices of the FP8 path are worth: rows of a CPU."""

from __future__ import annotations

import torch

from tools import kernel_choices


def test_keys_without_their_mean_do_not_mind_a_bias():
    rows = kernel_choices.run((4, 8, 8), 2, torch.device("cpu"), 0.01)
    errors = [float(row["error"]) for row in rows]
    assert len(rows) == 2 * len(kernel_choices.BIASES) and all(row["ms"] > 0 for row in rows)
    assert max(errors[1::2]) < 1.1 * errors[1] < 0.3 * errors[-2]
