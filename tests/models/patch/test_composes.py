"""fpsgen.apply together with what people switch on beside it, before it and after it."""

from __future__ import annotations

import pytest
import torch
import wan_cases as case
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import apply_group_offloading
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.errors import FpsgenError
from fpsgen.models.wan.load import load

LIMIT = 1e-5
CASES = [(case.one(case.TILED), LIMIT), (case.one(case.SPARSE), None), (case.mixed(case.FP8, case.OTHER), None)]
SCHEDULES = pytest.mark.parametrize(
    ("schedule", "stock_limit"), CASES, ids=["tiled-equals-stock", "sparse", "fp8-then-other-tiles"]
)
ORDER = pytest.mark.parametrize("first", ["apply", "feature"])


def check(switch_on, schedule, stock_limit, first, expect_change=False) -> None:
    """With the feature on, patched output equals what the patch gives without it (and stock, where it is dense).

    expect_change: the feature itself changes the output (LoRA); then only stock with the feature is compared with.
    """
    torch.manual_seed(0)
    transformer = tiny_transformer(layers=3)
    with apply(transformer, schedule):
        plain = case.forward(transformer)
    bare = case.forward(transformer)

    if first == "apply":
        handle = apply(transformer, schedule, strict=True)
        switch_on(transformer)
    else:
        switch_on(transformer)
        handle = apply(transformer, schedule, strict=True)
    ours = case.forward(transformer)
    handle.remove()
    stock = case.forward(transformer)
    if expect_change:
        assert case.difference(stock, bare) > 100 * LIMIT
    else:
        assert case.difference(ours, plain) <= LIMIT
        assert case.difference(stock, bare) <= LIMIT
    if stock_limit is not None:
        assert case.difference(ours, stock) <= stock_limit
    else:
        assert case.difference(ours, stock) > 100 * LIMIT


@SCHEDULES
@ORDER
def test_fused_projections(schedule, stock_limit, first):
    check(lambda transformer: transformer.fuse_qkv_projections(), schedule, stock_limit, first)


@SCHEDULES
@ORDER
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(schedule, stock_limit, first, kind):
    def switch_on(transformer):
        apply_group_offloading(
            transformer,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
        )

    check(switch_on, schedule, stock_limit, first)


def add_lora(transformer, targets=("to_q", "to_k", "to_v", "to_out.0", "ffn.net.2", "patch_embedding", "proj_out")):
    """A LoRA on attention and on the modules at the boundary, which peft wraps in new ones."""
    from peft import LoraConfig

    torch.manual_seed(3)
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=list(targets)))
    transformer.eval()


@SCHEDULES
@ORDER
def test_lora(schedule, stock_limit, first):
    check(add_lora, schedule, stock_limit, first, expect_change=True)


def test_lora_saved_loaded_and_fused_through_the_pipeline(tiny_dir, tmp_path):
    from diffusers import WanPipeline
    from peft.utils import get_peft_model_state_dict

    source = load(tiny_dir)
    add_lora(source.transformer, ("to_q", "to_k", "to_v", "to_out.0"))
    WanPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(source.transformer))

    stock_pipe = load(tiny_dir)
    stock_pipe.load_lora_weights(tmp_path)
    stock = case.video(stock_pipe)

    pipe = load(tiny_dir)
    plain = case.video(pipe)
    handle = apply(pipe, case.one(case.TILED))
    pipe.load_lora_weights(tmp_path)
    assert case.difference(case.video(pipe), stock) <= LIMIT < case.difference(plain, stock)
    pipe.fuse_lora()
    assert case.difference(case.video(pipe), stock) <= 5 * LIMIT
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    handle.remove()
    assert case.difference(case.video(pipe), plain) <= 5 * LIMIT


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@ORDER
def test_compiled_blocks(tiny_dir, backend, first):
    """One graph per distinct plan, shared by all layers and steps; equal to eager; calls are known from the plan."""
    torch._dynamo.reset()
    pipe = load(tiny_dir)
    stock = case.video(pipe, steps=8)
    schedule = case.mixed(case.SPARSE, case.FP8, case.TILED, dense_layers=(0,))
    exact = {"exact": True}  # compiled code sums over the padding of a text too: where FP8 codes round may differ
    with apply(pipe, schedule, **exact) as handle:
        eager, report = case.video(pipe, steps=8), handle.report()

    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def switch_on() -> None:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counting if backend == "eager" else backend)

    handle = None
    if first == "feature":
        switch_on()
        assert case.difference(case.video(pipe, steps=8), stock) <= LIMIT
        graphs.clear()
    handle = apply(pipe, schedule, strict=True, **exact)
    if first == "apply":
        switch_on()
    assert case.difference(case.video(pipe, steps=8), eager) <= LIMIT
    compiled = handle.report()
    assert compiled["kernels"] == report["kernels"]
    assert {step["counted"] for step in compiled["steps"]} == {"planned"}
    assert {step["counted"] for step in report["steps"]} == {"run"}
    before = len(graphs)
    case.video(pipe, steps=11)
    assert len(graphs) == before <= 6  # 3 profiles, each once as dense layer
    handle.remove()
    assert case.difference(case.video(pipe, steps=8), stock) <= LIMIT


def test_compiled_blocks_equal_stock(tiny_dir):
    torch._dynamo.reset()
    pipe = load(tiny_dir)
    stock = case.video(pipe)
    for schedule, method in ((case.one(case.TILED), None), ("safe", "bf16")):
        with apply(pipe, schedule, method):
            pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
            assert case.difference(case.video(pipe), stock) <= LIMIT


def test_a_wholly_compiled_transformer(transformer):
    torch._dynamo.reset()
    stock = case.forward(transformer)
    with apply(transformer, case.one(case.TILED), strict=True) as handle:
        whole = torch.compile(transformer, backend="eager")
        assert case.difference(case.forward(whole), stock) <= LIMIT
        assert handle.report()["kernels"] == {"sdpa": 3}


@ORDER
def test_one_graph_of_the_whole_transformer_is_refused_by_name(transformer, first):
    """The refusal leaves the transformer as it was: it runs on, eager or compiled with graph breaks."""
    torch._dynamo.reset()
    stock = case.forward(transformer)
    if first == "feature":
        whole = torch.compile(transformer, fullgraph=True, backend="eager")
        assert case.difference(case.forward(whole), stock) <= LIMIT
    handle = apply(transformer, case.one(case.TILED))
    if first == "apply":
        whole = torch.compile(transformer, fullgraph=True, backend="eager")
    with pytest.raises(FpsgenError, match="fullgraph=True") as caught:
        case.forward(whole)
    assert len(str(caught.value).splitlines()) == 2 and "compile_repeated_blocks" in caught.value.remedy
    assert case.difference(case.forward(transformer), stock) <= LIMIT
    torch._dynamo.reset()
    assert case.difference(case.forward(torch.compile(transformer, backend="eager")), stock) <= LIMIT
    handle.remove()
    torch._dynamo.reset()
    assert case.difference(case.forward(whole), stock) <= LIMIT


@ORDER
def test_accelerate_hooks(transformer, first):
    """What enable_model_cpu_offload installs; remove() in the middle leaves it working."""
    stock = case.forward(transformer)
    if first == "feature":
        add_hook_to_module(transformer, AlignDevicesHook(execution_device="cpu"))
    handle = apply(transformer, case.one(case.TILED))
    if first == "apply":
        add_hook_to_module(transformer, AlignDevicesHook(execution_device="cpu"))
    assert case.difference(case.forward(transformer), stock) <= LIMIT
    handle.remove()
    assert torch.equal(case.forward(transformer), stock)
    assert handle.report()["kernels"] == {"sdpa": 3}
    assert transformer._hf_hook is not None
    remove_hook_from_module(transformer)
    assert torch.equal(case.forward(transformer), stock)


def test_layerwise_casting(transformer):
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stock = case.forward(transformer)
    with apply(transformer, case.one(case.TILED)):
        assert case.difference(case.forward(transformer), stock) <= LIMIT


def test_half_precision_stays_in_half_precision(transformer):
    transformer.to(torch.bfloat16)
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in case.inputs().items()}
    stock = case.forward(transformer, **half)
    for schedule in (case.one(case.TILED), case.one(case.FP8)):
        with apply(transformer, schedule):
            ours = case.forward(transformer, **half)
        assert ours.dtype == torch.bfloat16 and ours.isfinite().all()
        assert case.difference(ours, stock) < (0.15 if schedule.name == "tiled" else 5)
