"""FP8 linear layers on a transformer: error as FP8 explains it, still Linear for others, undone to the bit."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import accelerated as case
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from refusal import refuses
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fpsgen import apply
from fpsgen.attention.schedule import Schedule
from fpsgen.errors import ENVIRONMENT, USAGE, FpsgenError
from fpsgen.fused import FP8Rows, fp8_linear, fp8_product, quantize_rows, quantize_weight
from fpsgen.models.patch import linear
from fpsgen.models.patch.linear import (
    EMULATED,
    LINEAR,
    FP8Linear,
    LinearPatch,
    install_linears,
    linears,
    takes_fp8,
)

FP8 = LinearPatch()


@pytest.fixture
def transformer():
    return case.transformer()


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_the_product_is_that_of_the_rounded_numbers():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 64), torch.randn(48, 64), torch.randn(48)
    rows, quantized = quantize_rows(x), quantize_weight(weight)
    exact = F.linear(
        rows.dequantize().double(), quantized.values.double() * quantized.scale.t().double(), bias.double()
    )
    assert error(fp8_linear(rows, quantized, bias, torch.float32).double(), exact) < 1e-6
    assert 0.02 < error(fp8_linear(x, quantized, bias, torch.float32), F.linear(x, weight, bias)) < 0.04
    other = FP8Rows(rows.values, rows.scale.roll(1, 1))  # the scale of another row
    assert error(fp8_linear(other, quantized, bias, torch.float32).double(), exact) > 0.05
    assert error(fp8_linear(rows, quantized, None, torch.float32).double(), exact) > 0.05


def test_one_outlier_does_not_spoil_other_rows_and_channels():
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64), torch.randn(48, 64)
    x[3, 5], weight[7, 9] = 1e4, 1e4
    got, wanted = fp8_linear(x, quantize_weight(weight), None, torch.float32), F.linear(x, weight)
    rest = torch.ones_like(got, dtype=torch.bool)
    rest[3], rest[:, 7] = False, False
    assert error(got[rest], wanted[rest]) < 0.04


def test_one_scale_errs_as_many_do():
    """Also for weights whose largest is 100 standard deviations, and for tokens of unlike size."""
    torch.manual_seed(0)
    x = torch.randn(64, 1536) * torch.logspace(-1, 1, 64)[:, None]
    weight = torch.distributions.StudentT(3.5).sample((1536, 1536))
    assert weight.abs().max() > 60 * weight.std()
    wanted = x.double() @ weight.double().t()

    def many(a):
        """A scale per row, the largest magnitude over 448."""
        scale = a.abs().amax(1, keepdim=True) / 448
        return (a / scale).to(torch.float8_e4m3fn).double() * scale.double()

    rowwise = error(many(x) @ many(weight).t(), wanted)
    quantized = quantize_weight(weight)
    assert quantized.scale.unique().numel() == 1
    for rows in (quantize_rows(x), quantize_rows(x, peaks=16 * x.abs().amax(0))):
        assert error(fp8_linear(rows, quantized, None, torch.float32).double(), wanted) < 1.05 * rowwise < 0.04
    far = quantize_rows(x, peaks=2**14 * x.abs().amax(0))  # a range that E4M3 does not have
    assert error(fp8_linear(far, quantized, None, torch.float32).double(), wanted) > 1.5 * rowwise


def test_a_product_leaves_scales_and_bias_to_the_next_pass():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 64) * torch.logspace(-2, 2, 5)[:, None], torch.randn(48, 64), torch.randn(48)
    rows, quantized = quantize_rows(x), quantize_weight(weight)
    product = fp8_product(rows, quantized, bias, torch.float32)
    wanted = fp8_linear(rows, quantized, bias, torch.float32)
    assert error(product.values * product.scale + product.bias, wanted) < 1e-6
    assert error(product.values, wanted) > 0.5


def test_gradient_is_that_of_the_linear_layer_at_its_own_weight():
    torch.manual_seed(0)
    block = torch.nn.Module()
    block.linear = torch.nn.Linear(32, 16)
    x = torch.randn(2, 3, 32, requires_grad=True)
    g = torch.randn(2, 3, 16)
    wanted = torch.autograd.grad(block.linear(x), (x, *block.linear.parameters()), g)
    undo = install_linears(block, ("linear",))
    out = block.linear(x)
    assert error(out, F.linear(x, block.linear.weight, block.linear.bias)) > 1e-3
    for got, want in zip(torch.autograd.grad(out, (x, *block.linear.parameters()), g), wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)
    undo()


def test_forward_is_close_and_undone_to_the_bit(transformer):
    state = copy.deepcopy(transformer.state_dict())
    before = case.forward(transformer)
    with apply(transformer, case.DENSE, exact=True, strict=True, patches=[FP8]) as handle:
        got = case.forward(transformer)
        assert 1e-3 < error(got, before) < 0.06
        assert transformer.state_dict().keys() == state.keys()
        assert handle.report()["components"]["linear"] == {EMULATED: 8 * case.LAYERS}
    assert torch.equal(case.forward(transformer), before)
    assert all(type(m) is torch.nn.Linear and "fp8" not in vars(m) for b in transformer.blocks for _, m in linears(b))


def test_a_schedule_says_which_layers_and_an_argument_overrules_it(transformer):
    before = case.forward(transformer)
    some = replace(case.DENSE, fp8_linear=("ffn", "attn1"))
    assert Schedule.from_toml(some.to_toml()) == some and some.fp8_linear == ("attn1", "ffn")
    with apply(transformer, some, exact=True, strict=True) as handle:
        assert 1e-3 < error(case.forward(transformer), before) < 0.06
        report = handle.report()
        assert report["components"]["linear"] == {EMULATED: 6 * case.LAYERS}
        parts = {part for row in report["steps"][0]["layers"] for part in row.get("parts", ())}
        assert {part.split(".")[0] for part in parts} == {"attn1", "ffn"}
    with apply(transformer, some, exact=True, linear="bf16"):
        assert torch.equal(case.forward(transformer), before)
    for wrong in (("attn3",), "attn1"):
        with pytest.raises(ValueError, match="fp8_linear"):
            replace(case.DENSE, fp8_linear=wrong)


def test_a_gpu_without_fp8_is_refused_by_name(transformer, monkeypatch):
    monkeypatch.setattr(linear, "fp8_supported", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with apply(transformer, case.DENSE, linear="fp8") as handle, refuses(ENVIRONMENT):
        handle._stacks[0].installed[LINEAR].layer_runs(SimpleNamespace(device=torch.device("cuda")))
    with refuses(USAGE):
        apply(transformer, case.DENSE, linear="int4")


def test_layers_that_cannot_be_are_named(transformer):
    transformer.blocks[1].ffn.net[2] = torch.nn.Identity()
    transformer.blocks[1].ffn.net[2].forward = lambda x: x[..., : case.DIM]
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]) as handle:
        case.forward(transformer)
        (row,) = handle.report()["fallbacks"]
    assert row["component"] == "linear" and row["layers"] == [1] and "ffn.net.2" in row["detail"]
    with pytest.raises(FpsgenError, match="strict"):
        apply(transformer, case.DENSE, exact=True, strict=True, patches=[FP8])
    assert type(transformer.blocks[0].attn1.to_q) is torch.nn.Linear


def test_a_weight_that_changes_is_quantized_anew(transformer):
    weight = transformer.blocks[0].ffn.net[2].weight
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        before = case.forward(transformer)
        weight.mul_(1.5)
        after = case.forward(transformer)
    assert error(after, before) > 1e-3
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        assert torch.equal(case.forward(transformer), after)


def test_projections_fused_later_are_fp8_too(transformer):
    with apply(transformer, case.DENSE, exact=True, strict=True, patches=[FP8]) as handle:
        apart = case.forward(transformer)
        transformer.fuse_qkv_projections()
        assert error(case.forward(transformer), apart) < 1e-5
        assert isinstance(transformer.blocks[0].attn1.to_qkv, FP8Linear)
        assert handle.report()["components"]["linear"] == {EMULATED: 6 * case.LAYERS}
        transformer.unfuse_qkv_projections()
        assert torch.equal(case.forward(transformer), apart)


@pytest.mark.parametrize("first", ["lora", "apply"])
def test_lora(transformer, first):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["to_q", "ffn.net.2"], init_lora_weights=False)
    torch.manual_seed(1)
    if first == "lora":
        transformer.add_adapter(config)
    plain = case.forward(transformer)
    handle = apply(transformer, case.DENSE, exact=True, strict=True, patches=[FP8])
    without = case.forward(transformer)
    if first == "apply":
        transformer.add_adapter(config)
    assert not takes_fp8(transformer.blocks[0].attn1.to_q)
    loaded = case.forward(transformer)
    if first == "apply":
        assert error(loaded, without) > 0.01  # the adapter counts
    else:
        assert error(loaded, plain) < 0.06
    transformer.fuse_lora()
    merged = case.forward(transformer)
    assert error(merged, loaded) < 0.06 and not torch.equal(merged, without)
    transformer.unfuse_lora()
    assert error(case.forward(transformer), loaded) < 1e-5
    handle.remove()


def test_a_lora_that_was_merged_and_taken_off_between_two_forwards_counts(transformer):
    """Nothing of the adapter is left to see: the layers are plain ones again, and the merge wrote through .data."""
    peft = pytest.importorskip("peft")
    with apply(transformer, case.DENSE, exact=True, strict=True, patches=[FP8]):
        before = case.forward(transformer)
        torch.manual_seed(1)
        transformer.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "ffn.net.2"], init_lora_weights=False))
        transformer.fuse_lora()
        transformer.unload_lora()
        merged = case.forward(transformer)
    assert error(merged, before) > 0.05
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        assert torch.equal(case.forward(transformer), merged)


def test_regions_compile_once_for_all_layers(transformer):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        eager = case.forward(transformer)
        counters.clear()
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        assert error(case.forward(transformer), eager) < 1e-6
        assert counters["stats"]["unique_graphs"] == 1


def test_regions_may_be_compiled_before_the_first_forward(transformer):
    torch._dynamo.reset()
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        eager = case.forward(transformer)
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        assert error(case.forward(transformer), eager) < 1e-6


def test_a_transformer_may_be_compiled_before_its_first_forward(transformer):
    torch._dynamo.reset()
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        whole = torch.compile(transformer, backend="eager")
        compiled = case.forward(whole)
        assert error(compiled, case.forward(transformer)) < 1e-6


def test_compiled_regions_see_weights_that_were_written_to(transformer):
    torch._dynamo.reset()
    other = {name: 1.3 * tensor for name, tensor in transformer.state_dict().items()}
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        first = case.forward(transformer)
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        assert error(case.forward(transformer), first) < 1e-6
        transformer.load_state_dict(other)
        compiled = case.forward(transformer)
        for block in transformer.blocks:
            block._compiled_call_impl = None
        assert error(compiled, case.forward(transformer)) < 1e-6 and error(compiled, first) > 0.05


def test_sharded_weights_are_quantized_where_they_are_whole(transformer, tmp_path, monkeypatch):
    with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
        wanted = case.forward(transformer)
    kinds, real = set(), linear.quantize_weight

    def quantize(weight):
        kinds.add(type(weight.data))
        return real(weight)

    monkeypatch.setattr(linear, "quantize_weight", quantize)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for block in transformer.blocks:
            fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        with apply(transformer, case.DENSE, exact=True, patches=[FP8]):
            assert torch.equal(case.forward(transformer), wanted) and kinds == {torch.Tensor}
    finally:
        dist.destroy_process_group()
