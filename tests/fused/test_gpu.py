"""On a GPU: the fused kernels against plain torch, FP8 products against fp64, whole blocks and the decoder."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from fpsgen import apply
from fpsgen.attention.schedule import Profile, Schedule
from fpsgen.fused import (
    FP8Channels,
    RowProduct,
    cross_attention,
    fold_channels,
    fp8_linear,
    fp8_product,
    gelu_rows,
    norm_rows,
    quantize_rows,
    quantize_weight,
    reference,
    rms_norm_rows,
)
from fpsgen.fused import residual_norm_rows as both
from fpsgen.fused.linear import fp8_supported
from fpsgen.models.wan.vae import decode_chunks

sys.path.insert(0, str(Path(__file__).parent.parent / "models" / "patch"))
import accelerated as case

pytestmark = pytest.mark.gpu
SIZES = (256, 1000, 1536, 5120, 8960, 13824)


def error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def same(rows, wide, amax=None):
    """Codes at most one step apart, few apart at all, scales alike."""
    values, scale = reference.quantize(wide, amax)
    steps = (rows.values.view(torch.int8).short() - values.view(torch.int8).short()).abs()
    return steps.max() <= 1 and (steps > 0).float().mean() < 0.02 and torch.allclose(rows.scale, scale, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_rows(size):
    torch.manual_seed(0)
    x, y = (3 * torch.randn(2, 77, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    gate, mul, add = (torch.randn(2, size, device="cuda") for _ in range(3))
    assert same(quantize_rows(x), x.float())
    assert same(gelu_rows(x, True), reference.gelu_tanh(x))
    bound = reference.norm_bound(mul, add, True)
    assert same(norm_rows(x, mul, add, 1e-6, True, True), reference.layer_norm(x, mul, add, 1e-6, True), bound)
    total, rows = both(x, y, gate, mul, add, 1e-6, True, True)
    assert error(total, x.float() + gate[:, None] * y.float()) < 2e-3
    assert same(rows, reference.layer_norm(total, mul, add, 1e-6, True), bound)
    assert not same(rows, reference.layer_norm(total, mul.flip(0), add, 1e-6, True), bound)
    product = RowProduct(y, torch.rand(2, 77, 1, device="cuda") + 0.5, gate[0].bfloat16())
    total, rows = both(x, product, gate, mul, add, 1e-6, True, True)
    assert error(total, reference.residual(x, y, gate, product.scale, product.bias)) < 2e-3
    assert same(rows, reference.layer_norm(total, mul, add, 1e-6, True), bound)
    each = torch.randn(2, 77, 2, size, device="cuda").unbind(2)  # a modulation for each token: a scale for each row
    rows = norm_rows(x, *each, 1e-6, True, True)
    assert rows.scale.shape == (2, 77, 1) and same(rows, reference.layer_norm(x, *each, 1e-6, True))
    total, rows = both(x, y, None, mul[:1], add[:1], 1e-6, False, False)
    assert torch.equal(total, x + y)
    assert error(rows, reference.layer_norm(total, mul[:1], add[:1], 1e-6, False)) < 2e-3
    weight = mul[0].bfloat16()
    assert error(rms_norm_rows(x.clone(), weight, 1e-6), reference.rms_norm(x, weight, 1e-6)) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "keys", "dim"), [(1000, 1, 64), (777, 65, 128), (4096, 128, 128), (129, 250, 64)])
def test_attention_over_a_padded_text(dtype, length, keys, dim):
    q = torch.randn(2, length, 3, dim, device="cuda", dtype=dtype)
    k, v = (torch.randn(2, keys, 3, dim, device="cuda", dtype=dtype) for _ in range(2))
    for repeats in (1, 400):
        every = [torch.cat((x, x[:, -1:].expand(-1, repeats - 1, -1, -1)), 1).double().transpose(1, 2) for x in (k, v)]
        wanted = F.scaled_dot_product_attention(q.double().transpose(1, 2), *every).transpose(1, 2)
        assert error(cross_attention(q, k, v, repeats), wanted) < 5e-3
        if keys > 1:
            assert error(cross_attention(q, k, v, 401 - repeats), wanted) > 2e-2
    normed = (q.float() * reference.inverse_rms(q.flatten(2), 0.5)[..., None]).to(dtype)
    assert error(cross_attention(q, k, v, 400, 0.5), cross_attention(normed, k, v, 400)) < 5e-3
    if keys > 1:
        assert error(cross_attention(q, k, v, 400, 1e-6), cross_attention(normed, k, v, 400)) > 2e-2


@pytest.mark.parametrize(("rows", "inner", "outer"), [(512, 5120, 5120), (1000, 1536, 8960), (77, 13824, 5120)])
def test_products(rows, inner, outer):
    if not fp8_supported(torch.device("cuda")):
        pytest.skip("no FP8 tensor cores")
    x = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outer, inner, device="cuda", dtype=torch.bfloat16) / inner**0.5
    bias = torch.randn(outer, device="cuda", dtype=torch.bfloat16)
    quantized = quantize_weight(weight)
    for given in (quantize_rows(x), quantize_rows(x, peaks=x.abs().amax(0).float())):
        exact = F.linear(given.dequantize().double(), quantized.values.double() * quantized.scale.t(), bias.double())
        assert error(fp8_linear(given, quantized, bias), exact) < 4e-3  # bf16's rounding, and 14 bits of the sums
    rows = quantize_rows(x * 4.0 ** torch.randint(-4, 4, (rows, 1), device="cuda"))
    product, exact = fp8_product(rows, quantized, bias), fp8_linear(rows, quantized, bias)
    assert error(product.values * product.scale + product.bias, exact) < 4e-3
    assert 0.02 < error(fp8_linear(x, quantized, bias), F.linear(x.float(), weight.float(), bias.float())) < 0.03


@pytest.mark.parametrize(("heads", "dim"), [(40, 128), (12, 128), (4, 64)])
def test_cross_attention_with_an_output_in_fp8(heads, dim):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, heads, dim, device="cuda", dtype=torch.bfloat16) for n in (1000, 77, 77))
    v = v * torch.logspace(-2, 2, heads * dim, device="cuda").view(heads, dim).bfloat16()
    scale = v.float().abs().amax((0, 1)) / 448
    wide, narrow = cross_attention(q, k, v, 400), cross_attention(q, k, v, 400, out_scale=scale)
    wanted = (wide.float() / scale).to(torch.float8_e4m3fn)
    assert error(narrow.float(), wanted.float()) < 0.02  # bf16 values that round to the other side
    apart = (narrow.float() * scale - wide.float()).norm(dim=(0, 1)) / wide.float().norm(dim=(0, 1))
    assert apart.max() < 0.04


def test_scales_of_channels_in_the_weight():
    if not fp8_supported(torch.device("cuda")):
        pytest.skip("no FP8 tensor cores")
    torch.manual_seed(0)
    size = torch.logspace(-3, 3, 5120, device="cuda")
    wide, weight = torch.randn(1000, 5120, device="cuda") * size, torch.randn(512, 5120, device="cuda") / size
    x = FP8Channels((wide / size * 64).to(torch.float8_e4m3fn), size / 64)
    for kind in (torch.float32, torch.bfloat16):
        out = fp8_linear(*fold_channels(x, weight.to(kind)), None)
        assert error(out, wide.double() @ weight.double().t()) < 0.045
    wrong = FP8Channels(x.values, x.scale.roll(1))
    assert error(fp8_linear(*fold_channels(wrong, weight), None), wide.double() @ weight.double().t()) > 0.045


def test_blocks():
    made = case.transformer(num_attention_heads=2, attention_head_dim=128, ffn_dim=768).cuda()
    given = {name: value.cuda() for name, value in case.inputs().items()}
    wanted = case.forward(made, given)
    for parameter in made.parameters():  # the rotary table stays in fp32, as from_pretrained keeps it
        parameter.data = parameter.data.bfloat16()
    narrow = {n: v.bfloat16() if n != "timestep" else v for n, v in given.items()}
    stock = error(case.forward(made, narrow), wanted)
    with apply(made, case.DENSE, strict=True) as handle:
        assert error(case.forward(made, narrow), wanted) < 1.1 * stock
        assert handle.report()["components"]["block"] == {"fused": case.LAYERS}
    if fp8_supported(torch.device("cuda")):
        with apply(made, case.DENSE, strict=True, linear="fp8") as handle:
            assert error(case.forward(made, narrow), wanted) < stock + 0.06
            assert handle.report()["components"]["linear"] == {"fp8_scaled_mm": 8 * case.LAYERS}


@pytest.mark.parametrize("smooth_v", [False, True])
def test_blocks_with_attention_in_fp8(smooth_v):
    """Attention and cross-attention give their outputs in FP8: no worse than rows quantized after them (exact)."""
    if not fp8_supported(torch.device("cuda")):
        pytest.skip("no FP8 tensor cores")
    options = {"smooth_v": True} if smooth_v else {}
    profile = Profile("all", "sage" if smooth_v else "fps", (3, 4, 4), options=options)
    schedule = Schedule("fp8", (profile,), ((0.0, 1.0, "all"),))
    made = case.transformer(num_attention_heads=2, attention_head_dim=128, ffn_dim=768).cuda()
    given = {name: value.cuda() for name, value in case.inputs().items()}
    given["encoder_hidden_states"][:, 4:] = 0
    wanted = case.forward(made, given)
    for parameter in made.parameters():
        parameter.data = parameter.data.bfloat16()
    narrow = {n: v.bfloat16() if n != "timestep" else v for n, v in given.items()}
    errors = []
    for exact in (True, False):
        with apply(made, schedule, strict=True, linear="fp8", exact=exact):
            ours = case.forward(made, narrow)
            errors.append(error(ours, wanted))
            assert torch.equal(case.forward(made, narrow), ours)
    print(errors)
    assert errors[1] < 1.1 * errors[0] < 0.15


def test_decoder():
    torch.manual_seed(0)
    vae = AutoencoderKLWan().cuda().eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    z = torch.randn(1, 16, 3, 16, 24, device="cuda")
    wanted = vae.decode(z, return_dict=False)[0]
    for budget in (1, 1 << 30):
        got = torch.cat([part.float() for part in decode_chunks(vae, z, torch.bfloat16, budget)], 2)
        assert 10 * torch.log10(4 / (got - wanted).square().mean()) > 45


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_kernels_run_in_the_stream_of_the_second_device():
    """Device 0 is the current one. What another device's stream reads before it is written is wrong."""
    torch.manual_seed(0)
    wide = torch.randn(2, 77, 1536, device="cuda:1")
    late = torch.zeros_like(wide)
    torch.cuda.synchronize(1)
    with torch.cuda.device(1):
        torch.cuda._sleep(500_000_000)  # cycles
    late.copy_(wide)
    rows = quantize_rows(late)
    assert torch.cuda.current_device() == 0 and rows.values.device.index == 1
    assert same(rows, wide)
