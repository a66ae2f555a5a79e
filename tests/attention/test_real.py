"""q, k and v that layers of a trained model make, not drawn ones, against the contract: the embedded model's first and
last layer, with and without a prompt, in its first and its last step.

Through the portable kernel in the interpreter, and on a Hopper GPU through every kernel that ships; those for head dims
of 128 get the model's heads of 64 joined by twos.
"""

import pytest
import torch

from fpsgen.assets import weights_dir
from fpsgen.attention.kernels.launch_config import PortableConfig, Sm90Config

from .cases import Case
from .gpu import needs_hopper
from .gpu import run as run_on_gpu
from .numerics import check, half_check, truth

GRID = (9, 10, 16)
SMALL = Case("real", GRID, (3, 5, 4), (3, 1, 1), batch=1, heads=4)
LARGE = Case("real", GRID, (3, 5, 8), (3, 1, 1), batch=1, heads=2, dim=128)
THREE = Case("real", GRID, (9, 5, 8), (1, 1, 1), batch=1, heads=2, dim=128)
SAMPLES = [(call, layer) for call in (0, 1, -2, -1) for layer in (0, -1)]


@pytest.fixture(scope="module")
def layers():
    """q, k, v [1, L, H, D] (tile order) of every call of the transformer and every layer."""
    pytest.importorskip("diffusers")
    from fpsgen import apply
    from fpsgen.models.patch import attention as processor
    from fpsgen.models.wan.load import load

    pipe = load(weights_dir() / "nano")
    pipe.set_progress_bar_config(disable=True)
    seen: list[tuple[torch.Tensor, ...]] = []
    real = processor.attend

    def attend(q, k, v, plan, norm_rope=None, **options):
        rotated = norm_rope.apply(q, k) if norm_rope else (q, k)
        seen.append(tuple(x.float() for x in (*rotated, v)))
        return real(q, k, v, plan, norm_rope=norm_rope, **options)

    with pytest.MonkeyPatch.context() as patch, apply(pipe, method="sta"):
        patch.setattr(processor, "attend", attend)
        size: dict = {"height": 160, "width": 256, "num_frames": 33}
        pipe(
            "a cat surfing", negative_prompt="", **size, num_inference_steps=4, guidance_scale=5.0, output_type="latent"
        )
    depth = len(pipe.transformer.blocks)
    assert len(seen) == 8 * depth and all(x.shape == (1, 1440, 4, 64) for x in seen[0])
    return [seen[i : i + depth] for i in range(0, len(seen), depth)]


def joined(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(2, (2, 2)).flatten(3).contiguous()


@pytest.mark.parametrize(("call", "layer"), SAMPLES)
def test_the_contract_holds(call, layer, layers, interpreted_here):
    from fpsgen.attention.kernels import attention_kernel

    inputs = [x[:, :, :1].contiguous() for x in layers[call][layer]]
    laid = SMALL.lay()
    out, lse = attention_kernel(*inputs, laid.tables, laid.lists, True)
    print(check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True)))


ON_GPU = [
    (SMALL, PortableConfig(64, 4, 3)),
    (LARGE, Sm90Config(2, poly=8)),
    (THREE, Sm90Config(3, stages=2, pingpong=True)),
]


@pytest.mark.parametrize(("case", "config"), ON_GPU, ids=["portable", "two consumers", "three consumers"])
@pytest.mark.parametrize(("call", "layer"), SAMPLES)
@needs_hopper
def test_the_contract_holds_on_a_gpu(call, layer, case, config, layers):
    inputs = [(joined(x) if case.dim == 128 else x).cuda() for x in layers[call][layer]]
    _, laid, (out, lse) = run_on_gpu(case, True, inputs=inputs, config=config)
    print(check(out, lse, truth(*inputs, laid.layout, laid.tile_lists, True)))
    if case.dim == 128:
        halves = [x.bfloat16() for x in inputs]
        _, laid, (out, lse) = run_on_gpu(case, False, inputs=halves, config=Sm90Config(config.consumers, stages=2))
        half_check(out, lse, truth(*halves, laid.layout, laid.tile_lists, False))
