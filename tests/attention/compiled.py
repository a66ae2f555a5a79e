"""Compile kernels without a GPU, for sm_90a and others; read registers, spills and shared memory from the binary."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from fpsgen.attention.kernels import attend_16bit_sm90, attend_fp8_sm90, attend_portable, launch_config
from fpsgen.attention.kernels import quantize_qkv as quantize_module

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int  # bytes; spills live here
    local_loads: int
    shared: int  # bytes
    sass: str

    def __str__(self) -> str:
        count = {op: len(re.findall(rf"\b{op}\b", self.sass)) for op in ("QGMMA", "HGMMA", "UTMALDG", "STS", "PRMT")}
        return f"{self.registers} registers, stack {self.stack}, shared {self.shared}, {count}"


def translate(fn, types: dict[str, str], constants: dict, options: dict, capability: int = 90):
    """The compiled kernel. types: of every argument that is no constant; '!' marks pointers and multiples of 16."""
    signature = {name: types.get(name, "constexpr").rstrip("!") for name in fn.arg_names}
    attrs = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(fn.arg_names) if types.get(name, "").endswith("!")
    }
    kind = GluonASTSource if fn.is_gluon() else ASTSource
    source = kind(fn=fn, signature=signature, constexprs=constants, attrs=attrs)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def build(fn, types: dict[str, str], constants: dict, options: dict, capability: int = 90) -> Usage:
    """What a kernel uses; arguments as translate's."""
    kernel = translate(fn, types, constants, options, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([TOOLS / "nvdisasm", file.name], capture_output=True, text=True, check=True).stdout
    use = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", report)}
    locals_ = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    return Usage(use["REG"], use["STACK"], locals_, kernel.metadata.shared, sass)


def build_forward(
    dim: int,
    block: int,
    fp8: bool,
    masked: bool = True,
    config: launch_config.PortableConfig | None = None,
    capability: int = 90,
    center_v: bool = False,
    int8_qk: bool = False,
    pv_threshold: float = 0.0,
    out: str = "bf16",
) -> Usage:
    config = config or launch_config.choose_portable(dim, block, fp8, divmod(capability, 10), attend_portable.TRITON)
    types = dict.fromkeys(("stride_qb", "stride_ql", "stride_qh", "stride_kb", "stride_kl", "stride_kh"), "i64!")
    types |= dict.fromkeys(("stride_vb", "stride_vl", "stride_vh"), "i64!")
    types |= dict.fromkeys(("heads", "tokens", "num_blocks", "query_tiles", "list_groups", "list_length"), "i32")
    types |= dict.fromkeys(("block_start", "block_len", "block_tile", "list_index", "list_count"), "*i32!")
    types |= dict.fromkeys(("lse", "q_scale", "k_scale", "v_scale", "v_mean"), "*fp32!") | {
        "out": f"*{out}!",
        "softmax_scale": "fp32",
    }
    if fp8:
        kind = "i8" if int8_qk else "fp8e4nv"
        types |= {
            "q": f"tensordesc<{kind}[{config.block_q}, {dim}]>",
            "k": f"tensordesc<{kind}[{block}, {dim}]>",
            "v": f"tensordesc<fp8e4nv[{dim}, {block}]>",
        }
    else:
        types |= dict.fromkeys("qkv", "*bf16!")
    constants = {
        "FP8": fp8,
        "HALF": triton.language.bfloat16,
        "D": dim,
        "BLOCK": block,
        "BLOCK_Q": config.block_q,
        "MASKED": masked,
        "PROMOTE": config.promote,
        "ROUNDED_SUM": config.rounded_sum,
        "CENTER_V": center_v,
        "PV_THRESHOLD": pv_threshold,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if config.maxnreg:
        options["maxnreg"] = config.maxnreg
    return build(attend_portable.attend_portable, types, constants, options, capability)


def build_sm90(
    config: launch_config.Sm90Config,
    length: int,
    fp8: bool = True,
    center_v: bool = False,
    int8_qk: bool = False,
    out: str = "bf16",
) -> Usage:
    """length: real keys of every block, 0 where blocks differ. out: type of the output."""
    return build(*sm90_source(config, length, fp8, center_v, int8_qk, out))


def sm90_source(
    config: launch_config.Sm90Config,
    length: int,
    fp8: bool,
    center_v: bool = False,
    int8_qk: bool = False,
    out: str = "bf16",
) -> tuple:
    layout = gl.NVMMASharedLayout.get_default_for([128, 128], gl.float8e4nv if fp8 else gl.bfloat16)
    types = dict.fromkeys(("lse", "q_scale", "k_scale", "v_scale", "v_mean"), "*fp32!")
    types |= dict.fromkeys(("work", "block_start", "block_len", "list_index", "list_count"), "*i32!")
    names = ("work_tiles", "per_head", "heads", "tokens", "num_blocks", "query_tiles", "list_groups", "list_length")
    types |= dict.fromkeys(names, "i32") | {"out": f"*{out}!", "softmax_scale": "fp32"}
    types |= dict.fromkeys(("stride_qh", "stride_kh", "stride_vh"), "i32!")
    kind = "fp8e4nv" if fp8 else "bf16"
    kinds = {"q": "i8", "k": "i8", "v": kind} if int8_qk else dict.fromkeys("qkv", kind)
    types |= {x: f"tensordesc<{kinds[x]}[{n}, 128],{layout!r}>" for x, n in (("q", 64), ("k", 128), ("v", 128))}
    constants = {"CONSUMERS": config.consumers, "BLOCK": 128, "D": 128, "STAGES": config.stages, "LENGTH": length}
    constants |= {"POLY": config.poly, "REGISTERS": config.registers}
    constants |= {"PINGPONG": config.pingpong, "PROMOTE": config.promote, "CENTER_V": center_v} if fp8 else {}
    kernel = attend_fp8_sm90.attend_fp8_sm90 if fp8 else attend_16bit_sm90.attend_16bit_sm90
    return kernel, types, constants, {"num_warps": 4}


QUANTIZE = [  # kernel, norm, smooth_k and center_v
    ("measure_kv", False, False),
    ("norm_rope_quantize", True, False),
    ("quantize_qkv", False, False),
    ("quantize_qkv", True, False),
    ("measure_kv", False, True),
    ("norm_rope_quantize", True, True),
    ("quantize_qkv", False, True),
    ("quantize_qkv", True, True),
]


def build_quantize(
    name: str, dim: int, block: int, norm: bool, means: bool = False, capability: int = 90, int8_qk: bool = False
) -> Usage:
    """name, norm, means: of QUANTIZE."""
    kernel, types, *rest = quantize_source(name, dim, block, norm, means)
    types |= dict.fromkeys(("q_out", "k_out"), "*i8!") if int8_qk else {}
    return build(kernel, types, *rest, capability)


def quantize_source(name: str, dim: int, block: int, norm: bool, means: bool) -> tuple:
    kernel, config = getattr(quantize_module, name), launch_config.NORM_ROPE
    types = dict.fromkeys((f"stride_{x}{axis}" for x in "qkv" for axis in "blh"), "i64!")
    numbers = ("batches", "heads", "tokens", "num_blocks", "granularity", "cast_distance")
    types |= dict.fromkeys(numbers, "i32") | {"eps": "fp32"}
    types |= dict.fromkeys(("q", "k", "v", "weight_q", "weight_k"), "*bf16!")
    types |= dict.fromkeys(("q_out", "k_out", "v_out"), "*fp8e4nv!") | dict.fromkeys(("k_sum", "v_sum"), "*i64!")
    floats = ("q_scale", "k_scale", "v_scale", "k_mean", "v_mean", "q_amax", "k_amax", "v_amax", "norms", "table")
    types |= dict.fromkeys(floats, "*fp32!")
    types |= dict.fromkeys(("block_start", "block_len", "finished", "next_unit", "v_largest"), "*i32!")
    constants = {"D": dim, "BLOCK": block, "SINGLE": True, "PERMUTED": True, "NORM": norm, "HEADS": dim // 2}
    constants |= {"SMOOTH_K": means, "CENTER_V": means, "CAST_HEADS": config.cast_heads}
    constants |= {"ROWS": config.rows * 128 // dim, "CAST_ROWS": config.cast_rows * 128 // dim}
    options = {"num_warps": 8 if name == "quantize_qkv" and norm and means else config.num_warps}
    options |= {"maxnreg": config.maxnreg_means if means else config.maxnreg} if name == "norm_rope_quantize" else {}
    return kernel, types, {key: value for key, value in constants.items() if key in kernel.arg_names}, options
