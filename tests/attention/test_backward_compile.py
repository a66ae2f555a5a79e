"""The backward kernels compile for Hopper without a GPU, with no score or sum on the stack (pytest -rP for figures)."""

import itertools

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from fpsgen.attention.kernels import backward_portable, backward_prepare
from fpsgen.attention.kernels.backward_config import PassConfig, select_backward

from .compiled import TOOLS, Usage, build

pytestmark = pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this triton carries no CUDA tools")
SHARED = {80: 163, 89: 99, 90: 227}  # kB that a program may have


def build_pass(kernel, own_side: str, config: PassConfig, dim: int, block: int, fp8: bool, capability: int) -> Usage:
    """own_side: those of q, k, v, g(rad_out) that come by OWN rows."""
    sides = {"q": "q", "k": "k", "v": "v", "g": "grad_out"}
    types = {
        name: f"tensordesc<bf16[{config.own if side in own_side else config.step}, {dim}]>"
        for side, name in sides.items()
    }
    types |= dict.fromkeys(("lse", "delta", "k_scale", "q_scale", "k_mean"), "*fp32!")
    types |= dict.fromkeys(("dq", "dk", "dv"), "*bf16!") | {"softmax_scale": "fp32"}
    types |= dict.fromkeys(("block_start", "block_len", "block_tile", "list_index", "list_count"), "*i32!")
    types |= dict.fromkeys(("heads", "tokens", "num_blocks", "num_tiles", "num_groups", "longest"), "i32")
    constants = {"FP8": fp8, "D": dim, "BLOCK": block, "OWN": config.own, "STEP": config.step, "MASKED": True}
    names = kernel.arg_names
    types, constants = ({name: x for name, x in items.items() if name in names} for items in (types, constants))
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return build(
        kernel, types, constants, options | ({"maxnreg": config.maxnreg} if config.maxnreg else {}), capability
    )


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize(
    ("capability", "dim", "block"),
    [*itertools.product((90,), (128, 64), (128, 64)), *itertools.product((80, 89), (128, 64), (128,))],
)
def test_passes(capability, dim, block, fp8):
    config = select_backward(block, divmod(capability, 10))
    for kernel, own_side, one in (
        (backward_portable.backward_queries, "qg", config.dq),
        (backward_portable.backward_keys, "kv", config.dkv),
    ):
        usage = build_pass(kernel, own_side, one, dim, block, fp8, capability)
        print(f"{kernel.__name__} sm_{capability} D={dim} block={block} fp8={fp8} {one}: {usage}")
        assert usage.shared <= SHARED[capability] * 1024
        assert usage.stack <= 16  # an address or two; never a score or a sum
        assert ("HGMMA" if capability == 90 else "HMMA") in usage.sass
        assert capability != 90 or "UTMALDG" in usage.sass


@pytest.mark.parametrize("dim", [128, 64])
def test_prepare(dim):
    types = dict.fromkeys(("grad", "out"), "*bf16!") | dict.fromkeys(("lse", "delta_out", "lse_out"), "*fp32!")
    types |= dict.fromkeys(("block_start", "block_len"), "*i32!")
    types |= dict.fromkeys(("heads", "tokens", "num_blocks"), "i32")
    constants = {"D": dim, "BLOCK": 128}
    assert build(backward_prepare.backward_stats, types, constants, {"num_warps": 4}).stack == 0
    types = dict.fromkeys(("q", "k"), "*fp8e4nv!") | dict.fromkeys(("v", "q_out", "k_out", "v_out"), "*bf16!") | types
    types |= {"v_scale": "*fp32!"} | dict.fromkeys(("stride_vb", "stride_vl", "stride_vh"), "i64!")
    types = {name: kind for name, kind in types.items() if name in backward_prepare.expand_fp8.arg_names}
    assert build(backward_prepare.expand_fp8, types, constants, {"num_warps": 4}).stack == 0
