"""Fused element-wise passes in Wan's blocks: diffusers' numbers in fp32, and planted mistakes are seen."""

import accelerated as case
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from refusal import refuses

from fpsgen import apply
from fpsgen.errors import NUMERIC
from fpsgen.fused import FP8Rows
from fpsgen.models.patch import block as fused_block
from fpsgen.models.patch import linear, text_kv
from fpsgen.models.patch.block import FusedBlock, FusedPatch
from fpsgen.models.patch.linear import LinearPatch
from fpsgen.models.patch.text_kv import Kept

FUSED, FP8 = FusedPatch(anywhere=True), LinearPatch()
BOUND = 1e-5  # of fp32 arithmetic in another order


@pytest.fixture
def transformer():
    return case.transformer()


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def fused(made, patches=(FUSED,), given=None, **options):
    with apply(made, case.DENSE, exact=True, strict=True, patches=patches, **options) as handle:
        return case.forward(made, given), handle.report()


def test_equals_diffusers_and_is_undone(transformer):
    before = case.forward(transformer)
    got, report = fused(transformer)
    assert error(got, before) < BOUND
    assert report["components"]["block"] == {"fused": case.LAYERS}
    assert torch.equal(case.forward(transformer), before)
    block = transformer.blocks[0]
    assert type(block) is not FusedBlock and "fused" not in vars(block) and "kept" not in vars(block.attn2.processor)
    assert "kept" not in vars(transformer.condition_embedder.text_embedder)


def permuted(order):
    plain = fused_block.modulation
    return lambda block, temb: tuple(plain(block, temb)[i] for i in order)


def without_shift(block, temb):
    shift, *others = PLAIN(block, temb)
    return torch.zeros_like(shift), *others


PLAIN = fused_block.modulation
MISTAKES = {
    "gate of the feed-forward": permuted((0, 1, 5, 3, 4, 2)),
    "shift and scale exchanged": permuted((1, 0, 2, 3, 4, 5)),
    "the feed-forward's scale": permuted((0, 4, 2, 3, 1, 5)),
    "no shift": without_shift,
    "the other video's": lambda block, temb: PLAIN(block, temb.flip(0)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_show(transformer, monkeypatch, mistake):
    before = case.forward(transformer)
    monkeypatch.setattr(fused_block, "modulation", MISTAKES[mistake])
    assert error(fused(transformer)[0], before) > 100 * BOUND


@pytest.mark.parametrize("name", ["norm1", "norm2", "norm3"])
def test_a_wrong_eps_shows(name):
    transformer = case.transformer(eps=0.1)
    before = case.forward(transformer)
    assert error(fused(transformer)[0], before) < BOUND
    for block in transformer.blocks:
        getattr(block, name).eps = 1e-6
    wrong, _ = fused(transformer)
    assert error(wrong, before) > 100 * BOUND


def test_fp8_rows_cost_what_fp8_costs(transformer):
    before = case.forward(transformer)
    apart, _ = fused(transformer, [FP8])
    both, _ = fused(transformer, [FP8, FUSED])
    assert error(both, apart) < 1e-2 < error(both, before) < 0.06  # rows that round the other way here and there
    assert abs(error(both, before) / error(apart, before) - 1) < 0.1


def test_products_of_fused_blocks_take_one_scale(transformer, monkeypatch):
    """Of bf16 attention and all of a text, whose outputs are quantized by the layer behind them, tokens have their own.
    Behind GELU the product has one, and the pass that adds the residual the tokens' own.
    """
    scales, real = [], linear.fp8_linear

    def spied(x, *others):
        scales.append(tuple(x.scale.shape) if isinstance(x, FP8Rows) else "tensor")
        return real(x, *others)

    products, product = [], linear.fp8_product
    monkeypatch.setattr(linear, "fp8_linear", spied)
    monkeypatch.setattr(linear, "fp8_product", lambda *args: products.append(product(*args)) or products[-1])
    fused(transformer, [FP8, FUSED])
    assert scales == [(1,), (1,), (1,), "tensor", (1,), "tensor", (1,)] * case.LAYERS
    assert len(products) == case.LAYERS and all(len(p.scale.unique()) > 1 for p in products)


def test_one_noise_level_a_token(transformer):
    given = case.inputs(1)
    given["timestep"] = torch.linspace(100, 900, 3 * 4 * 4).view(1, -1)
    before = case.forward(transformer, given)
    from fpsgen.models.patch.block import install_block

    undos = [install_block(b, None) for b in transformer.blocks]
    assert error(case.forward(transformer, given), before) < BOUND
    for undo in undos:
        undo()


def test_without_a_norm_before_cross_attention():
    transformer = case.transformer(cross_attn_norm=False)
    before = case.forward(transformer)
    assert error(fused(transformer)[0], before) < BOUND
    assert error(fused(transformer, [FP8, FUSED])[0], before) < 0.06


def test_fused_projections_and_an_image_beside_the_text():
    transformer = case.transformer(image_dim=24, added_kv_proj_dim=64)
    given = case.inputs(1) | {"encoder_hidden_states_image": torch.randn(1, 5, 24)}
    given["encoder_hidden_states"] = torch.randn(1, 512, 48)
    before = case.forward(transformer, given)
    assert error(fused(transformer, given=given)[0], before) < BOUND
    transformer.fuse_qkv_projections()
    assert error(fused(transformer, given=given)[0], before) < BOUND


def test_a_norm_with_a_hook_stays_and_is_named(transformer):
    calls = []
    transformer.blocks[1].norm3.register_forward_hook(lambda *_: calls.append(1))
    before = case.forward(transformer)
    got, report = fused(transformer)
    assert error(got, before) < BOUND and len(calls) == 2
    groups = {
        g["kernel"]: (g["layers"], g["reason"]) for g in report["steps"][0]["layers"] if g["component"] == "block"
    }
    assert groups == {"fused": ([0, 2], None), "diffusers": ([1], "norms_hooked")}


def test_a_block_with_a_forward_of_its_own_is_named(transformer):
    plain = transformer.blocks[1].forward
    transformer.blocks[1].forward = lambda *args, **named: plain(*args, **named)
    before = case.forward(transformer)
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]) as handle:
        assert error(case.forward(transformer), before) < BOUND and error(case.forward(transformer), before) < BOUND
        (row,) = handle.report()["fallbacks"]
    assert (row["component"], row["layers"], row["count"]) == (fused_block.BLOCK, [1], 1)
    with refuses(NUMERIC, "[1]"):
        fused(transformer)
    with apply(transformer, case.DENSE, strict=True):  # on a CPU nothing is fused anyway
        assert torch.equal(case.forward(transformer), before)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("first", ["apply", "offload"])
def test_weights_that_are_offloaded_one_by_one(transformer, first, padded):
    """As enable_sequential_cpu_offload does: a weight is there only while its own module is called."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    given = case.inputs()
    given["encoder_hidden_states"][:, 4:] *= not padded
    before, (plain, _) = case.forward(transformer, given), fused(transformer, [FP8], given)
    for patches, wanted, bound in (([FUSED], before, BOUND), ([FP8, FUSED], plain, 0.05)):
        if first == "offload":
            cpu_offload(transformer, torch.device("cpu"))
        handle = apply(transformer, case.DENSE, exact=True, strict=True, patches=patches)
        if first == "apply":
            cpu_offload(transformer, torch.device("cpu"))
        assert error(case.forward(transformer, given), wanted) < bound
        components = handle.report()["components"]
        assert components["block"] == {"diffusers": case.LAYERS}
        assert len(patches) == 1 or components["linear"] == {linear.EMULATED: 8 * case.LAYERS}
        handle.remove()
        assert torch.equal(case.forward(transformer, given), before)
        remove_hook_from_submodules(transformer)


def test_a_hook_on_a_norm_counts_while_it_is_there(transformer):
    """Also on that of cross-attention's queries, whose weight is kept with the keys."""
    given = case.inputs()
    given["encoder_hidden_states"][:, 4:] = 0
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]) as handle:
        before = case.forward(transformer, given)
        for norm in (transformer.blocks[1].norm3, transformer.blocks[1].attn2.norm_q):
            hook = norm.register_forward_hook(lambda _, args, output: 2 * output)
            hooked = case.forward(transformer, given)
            assert error(hooked, before) > 1e-2
            hook.remove()
        handle.clear_report()
        assert torch.equal(case.forward(transformer, given), before)
        assert handle.report()["components"]["block"] == {"fused": case.LAYERS}


def test_gradients_take_diffusers_way(transformer):
    given = case.inputs()
    given["hidden_states"].requires_grad_(True)
    transformer(**given, return_dict=False)[0].sum().backward()
    wanted, given["hidden_states"].grad = given["hidden_states"].grad, None
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]) as handle:
        transformer(**given, return_dict=False)[0].sum().backward()
        rows = [g for g in handle.report()["steps"][0]["layers"] if g["component"] == "block"]
    assert torch.allclose(given["hidden_states"].grad, wanted, rtol=1e-4, atol=1e-6)
    assert [(g["kernel"], g["reason"]) for g in rows] == [("diffusers", "gradient")]


def test_what_a_step_changes_between_blocks_is_seen(transformer):
    """A hook between two blocks takes away what the first had normed for the second."""
    before = []
    for scale in (0.5, 1.0):
        hook = transformer.blocks[1].register_forward_pre_hook(lambda _, args, s=scale: (args[0].mul_(s), *args[1:]))
        before.append(case.forward(transformer))
        assert error(fused(transformer)[0], before[-1]) < BOUND
        hook.remove()
    assert error(*before) > 1e-2


def test_step_caches_find_the_blocks(transformer):
    from diffusers import FirstBlockCacheConfig

    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]):
        transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
        with transformer.cache_context("cond"):
            got = case.forward(transformer)
        transformer.disable_cache()
    assert error(got, case.forward(transformer)) < BOUND


def test_text_is_projected_once_while_it_is_the_same():
    kept, texts, calls = Kept(), [torch.randn(3)], []
    layer = torch.nn.Linear(3, 3)

    def get():
        with torch.no_grad():
            return kept.get(texts[0], lambda: calls.append(1) or len(calls), layer)

    assert (get(), get()) == (1, 1)
    with torch.no_grad():
        texts[0].add_(1)
    assert (get(), get()) == (2, 2)
    with torch.no_grad():
        layer.weight.add_(1)
    assert (get(), get()) == (3, 3)
    with torch.inference_mode():
        texts[0] = torch.randn(3)  # nobody can see whether it changes
    assert (get(), get()) == (4, 5)
    assert len(kept._results) == 0  # the first is gone, and its keys and values with it


@pytest.mark.parametrize("lengths", [(3, 3), (1, 4), (0, 2)])
def test_padding_of_a_prompt_is_one_key_that_counts_many_times(transformer, monkeypatch, lengths):
    """As the pipeline pads: with zeros, each prompt of a batch from its own end on."""
    given, seen = case.inputs(2), []
    text = given["encoder_hidden_states"]
    for sample, length in enumerate(lengths):
        text[sample, length:] = 0
    wanted = case.forward(transformer, given)
    real = text_kv.cross_attention

    def watched(q, k, v, repeats, *others):
        seen.append((k.shape[1], repeats))
        return real(q, k, v, repeats, *others)

    monkeypatch.setattr(text_kv, "cross_attention", watched)
    got = fused(transformer, given=given)[0]
    assert error(got, wanted) < BOUND
    longest = max(lengths)
    assert set(seen) == {(longest + 1, text.shape[1] - longest)}
    seen.clear()
    text[0, -1, 0] = 1.0  # no padding
    assert error(fused(transformer, given=given)[0], case.forward(transformer, given)) < BOUND and not seen


@pytest.mark.parametrize("norm", ["norm_q", "norm_k"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_weights_of_norms_are_kept_with_the_keys_while_they_are_the_same(transformer, norm, padded):
    given = case.inputs(2)
    given["encoder_hidden_states"][:, 4:] *= not padded
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]):
        before = case.forward(transformer, given)
        for block in transformer.blocks:
            weight = getattr(block.attn2, norm).weight
            weight.data = weight.flip(0)
        after = case.forward(transformer, given)
    assert error(after, case.forward(transformer, given)) < BOUND < 1e-3 < error(after, before)


@pytest.mark.parametrize("padded", [False, True])
def test_a_lora_that_was_merged_and_taken_off_between_two_forwards_counts(transformer, padded):
    """With the same text: nothing of the adapter is left to see, and the merge wrote through .data."""
    peft = pytest.importorskip("peft")
    given = case.inputs(2)
    given["encoder_hidden_states"][:, 4:] *= not padded
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]):
        before = case.forward(transformer, given)
        layers = ["attn2.to_k", "attn2.to_v", "text_embedder.linear_2"]
        for layer in layers:
            transformer.add_adapter(peft.LoraConfig(r=4, target_modules=[layer], init_lora_weights=False))
            transformer.fuse_lora()
            transformer.unload_lora()
            after = case.forward(transformer, given)
            assert error(after, before) > 1e-3, layer
            before = after
    assert error(before, case.forward(transformer, given)) < BOUND


def test_keys_without_padding_are_not_taken_for_all_of_them(transformer):
    """A backend that is chosen in the middle of a prompt goes through every row of the text."""
    given = case.inputs(2)
    given["encoder_hidden_states"][:, 1:] = 0
    wanted = case.forward(transformer, given)
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]):
        assert error(case.forward(transformer, given), wanted) < BOUND
        with attention_backend("_native_math"):
            assert error(case.forward(transformer, given), wanted) < BOUND
        assert error(case.forward(transformer, given), wanted) < BOUND


def test_another_prompt_is_another_video(transformer):
    first, second = case.inputs(), case.inputs()
    second["encoder_hidden_states"] = torch.randn_like(first["encoder_hidden_states"])
    wanted = [case.forward(transformer, given) for given in (first, second)]
    with apply(transformer, case.DENSE, exact=True, patches=[FUSED]):
        for _ in range(2):
            for given, want in zip((first, second), wanted, strict=True):
                assert error(case.forward(transformer, given), want) < BOUND
    assert error(*wanted) > 100 * BOUND


def test_regions_compile_once_for_all_layers(transformer):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    with apply(transformer, case.DENSE, exact=True, patches=[FP8, FUSED]):
        eager = case.forward(transformer)
        counters.clear()
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        assert error(case.forward(transformer), eager) < 1e-6
        assert counters["stats"]["unique_graphs"] == 1
