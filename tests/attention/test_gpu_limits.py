"""Repeats beside other work, tensors beyond 2^31 elements, head shards, compute-sanitizer: what a kernel does at its
limits, on a CUDA device.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fpsgen.attention import AttentionPlan, attend
from fpsgen.attention.norm_rope import NormRope

from .cases import Case
from .gpu import needs_gpu
from .sanitize import SHAPES

pytestmark = needs_gpu
SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "16 bit"])
def test_a_thousand_repeats_are_bit_equal_beside_other_work(case, fp8):
    from fpsgen.attention.kernels import attention_kernel

    inputs, laid = case.inputs(torch.bfloat16, "cuda"), case.lay("cuda")
    wanted = attention_kernel(*inputs, laid.tables, laid.lists, fp8, case.granularity)
    other, busy = torch.cuda.Stream(), torch.randn(1024, 1024, device="cuda")
    torch.cuda.synchronize()
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        with torch.cuda.stream(other):
            busy @ busy
        for got, first in zip(
            attention_kernel(*inputs, laid.tables, laid.lists, fp8, case.granularity), wanted, strict=True
        ):
            wrong += (got != first).sum()
    assert wrong == 0


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 60e9, reason="needs 60 GB"
)
@pytest.mark.parametrize("method", ["fps", "sta"])
def test_more_elements_than_32_bits_count(method):
    """2.3e9 elements a tensor, 7e9 from the first of q to the last of v; the last batch equals itself alone."""
    from fpsgen.attention.kernels import attention_kernel, choose_portable

    plan = AttentionPlan((21, 45, 80), window=(0.3, 0.3, 0.3), method=method)
    batch, tokens, heads, dim = 6, 21 * 45 * 80, 40, 128
    assert batch * tokens * heads * dim > 2**31
    random = torch.Generator("cuda").manual_seed(5)
    fused = torch.randn(batch, tokens, 3, heads, dim, device="cuda", dtype=torch.bfloat16, generator=random)
    tables, lists, fp8 = plan.tables("cuda"), plan.lists("cuda"), method == "fps"
    norm_rope = None
    if fp8:
        gains = torch.rand(2, heads * dim, device="cuda", dtype=torch.bfloat16, generator=random) + 0.5
        norm_rope = NormRope(*gains, torch.randn(tokens, dim, device="cuda", generator=random), 1e-6)
    for config in (None, choose_portable(dim, tables.layout.block, fp8)):
        out, lse = attention_kernel(*fused.unbind(2), tables, lists, fp8, config=config, norm_rope=norm_rope)
        alone, alone_lse = attention_kernel(
            *fused[-1:].unbind(2), tables, lists, fp8, config=config, norm_rope=norm_rope
        )
        assert torch.equal(out[-1:], alone) and torch.equal(lse[-1:], alone_lse)
        assert all(bool(out[i].isfinite().all()) for i in range(batch))


@pytest.mark.parametrize("method", ["fps", "sta", "fp8"])
def test_shards_of_heads_give_the_same_bits(method):
    """On a second device where there is one."""
    plan = AttentionPlan((9, 20, 32), window=(0.5, 0.5, 0.5) if method != "fp8" else "all", method=method)
    q, k, v = Case("heads", plan.grid, plan.tile, plan.window, 2, 6, 128).inputs(torch.bfloat16, "cuda:0")
    whole = attend(q, k, v, plan)
    last = f"cuda:{torch.cuda.device_count() - 1}"
    shards = [
        attend(*(x[:, :, part].to(place) for x in (q, k, v)), plan).to("cuda:0")
        for part, place in ((slice(0, 2), "cuda:0"), (slice(2, 6), last))
    ]
    assert torch.equal(torch.cat(shards, 2), whole)


@pytest.mark.skipif(not SANITIZER, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "synccheck", "initcheck"])
@pytest.mark.timeout(500)
def test_sanitizer_finds_nothing(tool):
    script = Path(__file__).with_name("sanitize.py")
    root = Path(__file__).parents[2]
    command = [
        SANITIZER,
        "--tool",
        tool,
        "--error-exitcode",
        "97",
        sys.executable,
        "-m",
        f"tests.attention.{script.stem}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    print(done.stdout[-2000:])
    assert done.returncode == 0 and "ERROR SUMMARY: 0 errors" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
