"""fpsgen.apply: equal to stock diffusers where it is dense, equal to a masked oracle where it is sparse, and gone
without a trace after remove().
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
import wan_cases as case
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from refusal import refuses
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.attention import Profile, Schedule
from fpsgen.errors import FpsgenError
from fpsgen.models.patch import forward_state, noise_level
from fpsgen.models.wan.load import load

LIMIT = 1e-5


@pytest.fixture
def pipe(tiny_dir) -> WanPipeline:
    return load(tiny_dir)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    ("schedule", "method"),
    [("safe", "bf16"), ("paper", "bf16"), (case.one(case.TILED), None), (case.mixed(case.TILED, case.DENSE), None)],
    ids=["safe-bf16", "paper-bf16", "tiled", "tiled-then-dense"],
)
def test_dense_equals_stock(pipe, schedule, method, guidance):
    stock = case.video(pipe, guidance=guidance)
    handle = apply(pipe, schedule, method, linear="bf16")
    assert case.difference(case.video(pipe, guidance=guidance), stock) <= LIMIT
    calls = 3 * 2 * (2 if guidance > 1 else 1)
    assert sum(handle.report()["kernels"].values()) == calls


@pytest.mark.parametrize("profile", [case.TILED, case.SPARSE, case.OTHER], ids=lambda p: p.name)
@pytest.mark.parametrize("shape", [(5, 12, 14), (1, 2, 2), (3, 15, 9), (7, 4, 30)], ids=str)
def test_any_grid_equals_a_masked_oracle(transformer, profile, shape):
    latents = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(1))
    grid = (shape[0], shape[1] // 2, shape[2] // 2)
    tile = tuple(min(a, b) for a, b in zip(profile.tile, grid, strict=True))
    tiles = tuple(-(-g // t) for g, t in zip(grid, tile, strict=True))
    window = tiles if profile.window == "all" else [min(w or n, n) for w, n in zip(profile.window, tiles, strict=True)]
    mask = case.window_mask(tile, window, grid)
    for block in transformer.blocks:
        block.attn1.set_processor(case.MaskedProcessor(mask))
    oracle = case.forward(transformer, hidden_states=latents)
    for block in transformer.blocks:
        block.attn1.set_processor(WanAttnProcessor())
    with apply(transformer, case.one(profile)) as handle:
        assert case.difference(case.forward(transformer, hidden_states=latents), oracle) <= LIMIT
        assert handle.report()["steps"][0]["density"] == pytest.approx(mask.double().mean().item())


def test_the_bound_catches_planted_mistakes(transformer, monkeypatch):
    stock = case.forward(transformer)
    right = forward_state.move_patches

    def error(**changes) -> float:
        with monkeypatch.context() as patch, apply(transformer, case.one(case.TILED)):
            for name, value in changes.items():
                patch.setattr(forward_state, name, value)
            return case.difference(case.forward(transformer), stock)

    assert error() <= LIMIT
    assert error(move_patches=lambda x, patch, index: x) > 100 * LIMIT  # tokens stay, the rotary table moves
    wrong_way = {"move_patches": lambda x, patch, index: right(x, patch, index.argsort())}
    assert error(**wrong_way) > 100 * LIMIT

    mask = case.window_mask(case.RAGGED, (1, 1, 3))
    mask[17, 30] = ~mask[17, 30]
    for block in transformer.blocks:
        block.attn1.set_processor(case.MaskedProcessor(mask))
    oracle = case.forward(transformer)
    transformer.set_attn_processor(WanAttnProcessor())
    with apply(transformer, case.one(case.SPARSE)):
        assert case.difference(case.forward(transformer), oracle) > LIMIT  # one pair of 44,100


def test_every_step_has_its_own_tiles(pipe):
    """Three profiles of three orders in one loop equal the oracle that changes its mask from step to step."""
    profiles = (case.SPARSE, case.DENSE, case.OTHER)
    handle = apply(pipe, case.mixed(*profiles))
    ours = case.video(pipe, steps=8)
    names = [step["profile"] for step in handle.report()["steps"]]
    assert set(names) == {"sparse", "dense", "other"}
    handle.remove()

    masks = {"sparse": case.window_mask(case.RAGGED, (1, 1, 3)), "other": case.window_mask((3, 2, 7), (1, 3, 1))}
    processor = case.MaskedProcessor(masks.get(names[0]))
    for block in pipe.transformer.blocks:
        block.attn1.set_processor(processor)

    def next_mask(pipe, index, timestep, tensors):
        processor.mask = masks.get(names[min(index + 1, 7)])
        return tensors

    assert case.difference(case.video(pipe, steps=8, callback_on_step_end=next_mask), ours) <= LIMIT


def test_fp8_runs_and_differs(transformer):
    stock = case.forward(transformer)
    with apply(transformer, case.one(Profile("fp8", "fp8", case.RAGGED))):
        dense = case.difference(case.forward(transformer), stock)
    with apply(transformer, case.one(case.FP8)) as handle:
        sparse = case.difference(case.forward(transformer), stock)
        assert handle.report()["kernels"] == {"cpu": 3}
    assert 1e-4 < dense < sparse < 10


def test_smooth_keys_come_through_the_profile(transformer):
    outs = []
    for smooth in (False, True):
        with apply(transformer, case.one(Profile("fp8", "fp8", case.RAGGED, smooth_k=smooth))):
            outs.append(case.forward(transformer))
    assert not torch.equal(*outs)
    assert (outs[0] - outs[1]).norm() / outs[0].norm() < 0.1


def test_windows_for_another_number_of_heads_are_refused(transformer):
    profile = Profile("p", "sta", options={"head_windows": "all " * 7})
    with apply(transformer, case.one(profile)), refuses(2, "7 windows"):
        case.forward(transformer)


def test_positional_arguments_and_output_objects(transformer):
    stock = case.forward(transformer)
    with apply(transformer, case.one(case.TILED)), torch.no_grad():
        output = transformer(*case.inputs().values())
        assert case.difference(output.sample, stock) <= LIMIT


def test_one_noise_level_per_token(transformer):
    """Wan2.2 5B gives every token its own timestep: those move with the tokens."""
    timestep = torch.arange(210).repeat(2, 1) * 4
    stock = case.forward(transformer, timestep=timestep)
    with apply(transformer, case.one(case.TILED)):
        assert case.difference(case.forward(transformer, timestep=timestep), stock) <= LIMIT


def test_two_transformers_of_one_pipeline(pipe):
    torch.manual_seed(5)
    pipe.register_modules(transformer_2=tiny_transformer())
    pipe.register_to_config(boundary_ratio=0.8)
    stock = case.video(pipe, steps=4)
    with apply(pipe, case.one(case.TILED)) as handle:
        assert case.difference(case.video(pipe, steps=4), stock) <= LIMIT
        assert [step["calls"] for step in handle.report()["steps"]] == [4] * 4


def test_two_pipelines_do_not_disturb_each_other(tiny_dir):
    schedules = (case.one(case.SPARSE), case.mixed(case.OTHER, case.FP8))
    alone, pipes, handles = [], [], []
    for schedule in schedules:
        pipes.append(load(tiny_dir))
        handles.append(apply(pipes[-1], schedule))
        alone.append(case.video(pipes[-1]))
    reports = [handle.report() for handle in handles]

    second: list[torch.Tensor] = []

    def run_the_other(pipe, index, timestep, tensors):
        second.append(case.video(pipes[1]))
        return tensors

    first = case.video(pipes[0], callback_on_step_end=run_the_other)
    assert torch.equal(first, alone[0]) and all(torch.equal(latents, alone[1]) for latents in second)
    assert [handle.report() for handle in handles] == reports
    handles[0].remove()
    assert torch.equal(case.video(pipes[1]), alone[1])


def traces(transformer) -> dict[str, object]:
    """Everything that a patch could leave on the modules."""
    found: dict[str, object] = {}
    for name, module in transformer.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
    return found


@pytest.mark.parametrize("ran", [False, True])
def test_remove_leaves_no_trace(tiny_dir, ran):
    pipe = load(tiny_dir)
    before = traces(pipe.transformer)
    stock = case.forward(pipe.transformer)
    with apply(pipe, case.mixed(case.FP8, case.OTHER), strict=True) as handle:
        assert traces(pipe.transformer).keys() != before.keys()
        if ran:
            case.video(pipe)
    after = traces(pipe.transformer)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] or after[key] == before[key] for key in before)
    assert torch.equal(case.forward(pipe.transformer), stock)
    handle.remove()
    apply(pipe).remove()


def test_what_is_not_supported_is_refused_by_name(pipe, transformer):
    def said(call) -> str:
        with pytest.raises(FpsgenError) as caught:
            call()
        assert caught.value.remedy
        return caught.value.message

    assert "AutoencoderKLWan" in said(lambda: apply(pipe.vae))
    assert "str" in said(lambda: apply("a folder"))
    for given in ({"impl": "cuda"}, {"linear": "int4"}, {"cache": "none"}, {"patches": [3]}):
        said(lambda given=given: apply(transformer, **given))
    handle = apply(transformer, case.one(case.TILED))
    assert "already" in said(lambda: apply(transformer))
    twin = copy.deepcopy(transformer)
    assert "copy" in said(lambda: case.forward(twin))
    transformer._parallel_config = object()  # as enable_parallelism leaves it
    assert "parallelism" in said(lambda: case.forward(transformer))
    handle.remove()
    assert "parallelism" in said(lambda: apply(transformer))
    transformer._parallel_config = None
    transformer.blocks[1].attn1.set_processor(case.MaskedProcessor(torch.ones(1)))
    assert "layer 1" in said(lambda: apply(transformer))
    transformer.set_attn_processor(WanAttnProcessor())
    handle = apply(transformer, case.one(case.TILED))
    transformer.blocks[2].attn1.set_processor(WanAttnProcessor())
    assert "[2]" in said(lambda: case.forward(transformer))
    handle.remove()
    handle = apply(transformer, case.one(case.TILED))
    assert "pickled" in said(lambda: torch.save(transformer, io.BytesIO()))
    ours = transformer.blocks[1]
    transformer.blocks[1] = tiny_transformer(layers=2).blocks[1]
    assert "blocks" in said(lambda: case.forward(transformer))
    transformer.blocks[1] = ours
    handle.remove()
    assert case.forward(transformer).isfinite().all()


def test_noise_levels_that_make_no_sense_are_refused(pipe, transformer):
    apply(transformer, case.mixed(case.SPARSE, case.OTHER))
    with pytest.raises(FpsgenError, match="profiles 'sparse' and 'other'"):
        case.forward(transformer, timestep=torch.tensor([900, 100]))
    case.forward(transformer, timestep=torch.tensor([900, 600]))
    with pytest.raises(FpsgenError, match="not in"):
        case.forward(transformer, timestep=torch.tensor([1500, 1500]))
    pipe.scheduler = UniPCMultistepScheduler()  # sigmas up to 157
    apply(pipe)
    with pytest.raises(FpsgenError, match="flow-matching"):
        case.video(pipe)


def test_the_noise_level_comes_from_the_pipeline_without_reading_a_tensor(pipe, monkeypatch):
    handle = apply(pipe, case.mixed(case.SPARSE, case.OTHER))
    monkeypatch.setattr(noise_level.NoiseLevels, "_read", lambda *_: pytest.fail("the timestep tensor was read"))
    case.video(pipe)
    steps = handle.report()["steps"]
    expected = [round(float(sigma), 6) for sigma in pipe.scheduler.sigmas[:3]]
    assert [step["sigma"] for step in steps] == expected and [step["index"] for step in steps] == [0, 1, 2]


def test_dense_layers_stay_dense(transformer):
    stock = case.forward(transformer)
    with apply(transformer, case.one(case.FP8, dense_layers=(0, 1, 2))):
        assert case.difference(case.forward(transformer), stock) <= LIMIT
    with apply(transformer, case.one(case.FP8, dense_layers=(1,))) as handle:
        assert case.difference(case.forward(transformer), stock) > 100 * LIMIT
        report = handle.report()
    assert report["layers_dense"] == [1] and report["kernels"] == {"cpu": 2, "sdpa": 1}


def test_strict_turns_deviations_into_errors(transformer):
    beyond = Schedule("s", (case.SPARSE,), ((0.0, 1.0, "sparse"),), dense_layers=(1, 9))
    with pytest.raises(FpsgenError, match=r"dense_layers \[9\]"):
        apply(transformer, beyond, strict=True)
    with apply(transformer, beyond) as handle:
        assert handle.report()["fallbacks"][0]["reason"] == "no_such_layer"
    with apply(transformer, case.one(case.SPARSE), strict=True):
        case.forward(transformer)


def test_the_package_offers_apply():
    import fpsgen

    assert fpsgen.apply is apply
