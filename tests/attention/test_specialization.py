"""A change of profile compiles nothing: Triton compiles a kernel anew for other types, constants, and for integers that
are 1 or a multiple of 16.
"""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fpsgen.attention import AttentionPlan, attend, preset
from fpsgen.attention.kernels import attention_kernel, choose_portable, launch_config, tile_scheduler
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import BlockLists

from .gpu import needs_hopper

GRID, HEADS, DIM = (21, 30, 52), 2, 128
TOKENS = 21 * 30 * 52


def keys_of(monkeypatch) -> dict[str, set]:
    """What Triton would compile kernels for, on an H100, filled as they are launched; nothing runs."""
    keys, backend = {}, make_backend(GPUTarget("cuda", 90, 32))

    def run(self, *args, grid, warmup, **kwargs):
        bind = create_function_from_signature(self.signature, self.params, backend)
        _, specialization, options = bind(*args, **kwargs)
        keys.setdefault(self.fn.__name__, set()).add(f"{specialization} {sorted(options.items())}")

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(tile_scheduler, "_processors", lambda device: 132)
    return keys


def inputs(device="cpu"):
    q, k, v = (torch.zeros(1, TOKENS, HEADS, DIM, dtype=torch.bfloat16, device=device) for _ in range(3))
    weight, table = torch.ones(HEADS * DIM, device=device), torch.ones(TOKENS, DIM, device=device)
    return q, k, v, NormRope(weight.bfloat16(), weight.bfloat16(), table, 1e-6)


def calls(device="cpu"):
    """Plans and lists: of the schedule `paper`, and with numbers that Triton would notice."""
    plans = [AttentionPlan.of(profile, GRID) for profile in preset("paper").profiles]
    assert len({plan.tile for plan in plans}) == 1 and len({plan.granularity for plan in plans}) == 3
    tile, block = plans[0].tile, plans[0].block
    plans += [AttentionPlan(GRID, tile, granularity=n, block=block) for n in (1, 13, 16)]
    for plan in plans:
        yield plan, plan.lists(device)
    index, count = plans[0].lists(device)
    for length in (1, 16):
        yield plans[0], BlockLists(index[..., :length].contiguous(), count.clamp(max=length))
    yield plans[0], BlockLists(index.expand(HEADS, -1, -1).contiguous(), count.expand(HEADS, -1).contiguous())


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("fp8", [True, False])
def test_profiles_share_what_is_compiled(fp8, portable, monkeypatch):
    keys = keys_of(monkeypatch)
    q, k, v, norm_rope = inputs()
    for plan, lists in calls():
        tables = plan.tables("cpu")
        sm90 = launch_config.choose_sm90(DIM, tables.layout.block, tables.layout.blocks_per_tile, fp8, (9, 0))
        config = choose_portable(DIM, tables.layout.block, fp8) if portable else sm90
        norm = norm_rope if fp8 else None
        attention_kernel(q, k, v, tables, lists, fp8, plan.granularity, norm, False, config=config)
    attend_name = "attend_portable" if portable else "attend_fp8_sm90" if fp8 else "attend_16bit_sm90"
    assert set(keys) == {attend_name, *(("norm_rope_quantize", "quantize_qkv") if fp8 else ())}
    assert {name: len(found) for name, found in keys.items()} == dict.fromkeys(keys, 1)


@needs_hopper
@pytest.mark.parametrize("fp8_out", [False, True])
def test_a_gpu_compiles_nothing_for_the_next_profile(fp8_out, monkeypatch):
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda *_, **given: compiled.append(given["fn"]))
    q, k, v, norm_rope = inputs("cuda")
    (first, lists), *others = calls("cuda")
    assert first.kernel("cuda", DIM) == "hopper"
    attend(q, k, v, first, norm_rope=norm_rope, lists=lists, fp8_out=fp8_out)
    compiled.clear()
    for plan, lists in others:
        attend(q, k, v, plan, norm_rope=norm_rope, lists=lists, fp8_out=fp8_out)
    assert not compiled
    attend(q[..., :64], k[..., :64], v[..., :64], first, fp8_out=fp8_out)
    assert compiled  # what another head dim needs is seen
