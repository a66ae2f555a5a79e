"""The kernels compile for Hopper without a GPU: no spills, nothing passes through shared memory but sums."""

import re

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from attention.compiled import TOOLS, build, translate
from attention.test_compile import loops

from fpsgen.fused import cross_attention_kernel, kernels, pixel_kernels
from fpsgen.fused.cross_attention_kernel import choose_cross
from fpsgen.fused.launch import row_config

pytestmark = pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this triton carries no CUDA tools")


def row(size: int, **constants):
    config = row_config(size)
    constants |= {"SIZE": size, "PARTS": config.parts(size), "SPAN": config.span}
    return constants, {"num_warps": config.num_warps}


def check(kernel, types, constants, options):
    usage = build(kernel, types, constants, options)
    print(f"{kernel.__name__} {constants}: {usage}")
    assert usage.stack == 0 and usage.local_loads == 0
    assert usage.registers * options["num_warps"] * 32 * 2 <= 65536  # two programs at least share a multiprocessor
    assert "convert_layout" not in translate(kernel, types, constants, options).asm["ttgir"]


@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize(("size", "gelu"), [(1536, False), (5120, False), (8960, True), (13824, True)])
def test_quantize(size, gelu, fp8):
    types = {"x": "*bf16!", "out": "*fp8e4nv!" if fp8 else "*bf16!", "scale": "*fp32!", "stride": "i32!"}
    types |= dict.fromkeys(("gain", "peaks"), "*fp32!")
    for gain in (False, True):
        constants = {"GELU": gelu, "GAIN": gain, "FP8": fp8, "ONE_SCALE": fp8 and not gelu}
        check(kernels.quantize_kernel, types, *row(size, **constants))


@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize("num_keys", [64, 128])
def test_cross_attention(num_keys, fp8):
    """Keys and values stay for all blocks of queries; a block is read ahead, and goes to the tensor core as it lies."""
    config, kernel = choose_cross(num_keys), cross_attention_kernel.cross_attention_kernel
    types = dict.fromkeys(("q", "k", "v"), "*bf16!") | dict.fromkeys(("inverse_rms", "out_scale"), "*fp32!")
    types |= {"out": "*fp8e4nv!" if fp8 else "*bf16!", "length": "i32!", "num_keys": "i32", "heads": "i32"}
    types |= dict.fromkeys(("scale", "last_bias"), "fp32")
    constants = {"D": 128, "ROWS": config.rows, "BLOCKS": config.blocks, "KEYS": config.keys}
    constants |= {"ONCE": num_keys <= config.keys, "NORM": True, "SCALED": fp8}
    usage = build(kernel, types, constants, {"num_warps": config.warps, "num_stages": config.stages})
    print(f"cross attention keys={num_keys} fp8={fp8}: {usage}")
    assert usage.stack <= 72 and usage.shared <= 227 * 1024 // 2
    assert "LDGSTS" in usage.sass and len(loops(usage.sass)[-1]) < 900
    assert not fp8 or len(re.findall(r"STG\.E\.128", usage.sass)) == config.rows * 128 // (16 * 32 * config.warps)


@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize(("residual", "norm"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("size", (1536, 5120))
def test_norm(size, residual, norm, fp8):
    types = dict.fromkeys(("x", "y", "total", "y_bias"), "*bf16!")
    types |= dict.fromkeys(("gate", "mul", "add", "scale", "y_scale"), "*fp32!")
    types |= dict.fromkeys(("gate_stride", "mul_stride", "add_stride"), "i32!") | {"length": "i32", "eps": "fp32"}
    types["out"] = "*fp8e4nv!" if fp8 else "*bf16!"
    constants = {"RESIDUAL": residual, "GATED": residual, "NORM": norm, "ONE": True, "FP8": fp8}
    for scaled, one_scale, groups in ((residual, fp8, 1), (False, False, 1), (residual, fp8, 2)):
        more = {"SCALED": scaled, "BIASED": scaled, "ONE_SCALE": one_scale, "GROUPS": groups}
        check(kernels.norm_kernel, types, *row(size, **constants, **more))


@pytest.mark.parametrize("size", (1536, 5120))
def test_rms_norm(size):
    types = dict.fromkeys(("x", "weight", "out"), "*bf16!") | {"stride": "i32!", "eps": "fp32"}
    check(kernels.rms_norm_kernel, types, *row(size))


@pytest.mark.parametrize(("channels", "width"), [(96, 128), (192, 192), (384, 384)])
def test_pixels(channels, width):
    padded = 1 << (width - 1).bit_length()
    shape = {"C": channels, "CHANNELS": padded, "PIXELS": 4096 // padded, "ADD": True, "BIAS": True}
    types = dict.fromkeys(("x", "other", "bias", "gain", "total", "out"), "*bf16!") | {"eps": "fp32"}
    types |= dict.fromkeys(("pixels", "per_video", "skip", "width"), "i32!")
    for kernel, more in (
        (pixel_kernels.norm_silu_kernel, {"WIDTH": width, "KEEP": True, "SILU": True}),
        (pixel_kernels.upsample_kernel, {}),
    ):
        known = {name: kind for name, kind in types.items() if name in kernel.arg_names}
        usage = build(kernel, known, shape | more, {"num_warps": 4})
        print(f"{kernel.__name__} {channels}: {usage}")
        assert usage.stack == 0 and usage.local_loads == 0 and usage.registers <= 128
