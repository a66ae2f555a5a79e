"""Whether attention gives what it should on a device: a small call against exact attention on the same FP8 inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import mask_from_lists

LIMIT = 3e-2  # relative L2; P's cast alone is 1.7e-2 to 2.7e-2


class SelfTest(NamedTuple):
    """kernel: what ran. error: relative L2 against fp64, NaN where the result is not finite."""

    kernel: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= LIMIT


def self_test(device: torch.device) -> SelfTest:
    """fps on 960 random tokens, 2 heads of 64, by the kernel that serves this device."""
    from fpsgen.attention.op import attend

    plan = AttentionPlan((4, 12, 20), tile=(4, 4, 4), window=(1, 3, 3))
    layout = plan.layout
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 960, 2, 64, generator=draw).to(device, torch.bfloat16) for _ in range(3))
    out = torch.as_tensor(attend(q, k, v, plan))
    fq, fk, fv = (x.transpose(1, 2).double() for x in fake_quantize(q, k, v, layout, plan.granularity))
    seen = mask_from_lists(plan.tile_lists(), layout).to(device)
    qk = (fq @ fk.mT * 64**-0.5).masked_fill(~seen, float("-inf"))
    exact = (torch.softmax(qk, -1) @ fv).transpose(1, 2)
    return SelfTest(plan.kernel(device), float((out.float() - exact).norm() / exact.norm()))
