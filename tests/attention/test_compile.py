"""The kernels compile for Hopper without a GPU, with no spills; the figures are printed (pytest -rP)."""

import itertools
import re

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from fpsgen.attention.kernels.attend_portable import TRITON
from fpsgen.attention.kernels.launch_config import choose_sm90

from .compiled import QUANTIZE, TOOLS, build, build_forward, build_quantize, build_sm90, sm90_source
from .mutant import kernels_with

pytestmark = pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this triton carries no CUDA tools")
SHAPES = list(itertools.product((128, 64), (128, 64)))


@pytest.mark.parametrize("masked", [True, False], ids=["ragged", "even"])
@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize(("dim", "block"), SHAPES)
def test_forward(dim, block, fp8, masked):
    usage = build_forward(dim, block, fp8, masked)
    print(f"forward D={dim} block={block} fp8={fp8} masked={masked}: {usage}")
    # six words of one 16-bit kernel stay on the stack with the ptxas 13.4 of Triton 3.9, none before it
    spills = 32 if TRITON >= (3, 9) and not fp8 else 0
    assert usage.stack <= spills and (spills or usage.local_loads == 0)
    assert usage.shared <= 227 * 1024
    assert ("QGMMA" if fp8 else "HGMMA") in usage.sass
    assert not fp8 or "UTMALDG" in usage.sass


@pytest.mark.parametrize("center_v", [False, True], ids=["", "center_v"])
@pytest.mark.parametrize("length", [128, 120, 0], ids=["whole", "even", "ragged"])
@pytest.mark.parametrize("consumers", [2, 3])
def test_hopper(consumers, length, center_v):
    usage = build_sm90(choose_sm90(128, 128, consumers, True, (9, 0)), length, center_v=center_v)
    print(f"hopper consumers={consumers} length={length}: {usage}")
    assert usage.shared <= 227 * 1024 and usage.registers <= 168
    assert {"QGMMA", "UTMALDG"} <= set(re.findall(r"\b[A-Z]+\b", usage.sass))
    inner = [body for body in loops(usage.sass) if sum("QGMMA" in line for line in body) == 12]
    assert len(inner) >= consumers
    for body in inner[:consumers]:  # four products for the scores, four for the sums, four for the output
        assert sum("LDL" in line or "STL" in line for line in body) <= 2  # addresses; never a score or a sum
        assert sum("LDG" in line for line in body) == 0  # what a block needs comes with it
        assert sum("VIMNMX3" in line for line in body) == 60  # half of them for rows of negative scores alone
        assert len(body) < (510 if length else 610) and sum("FMNMX" in line for line in body) <= 14
        assert sum("SHFL" in line for line in body) <= 8


@pytest.mark.parametrize("means", [False, True], ids=["", "means"])
@pytest.mark.parametrize(
    ("name", "norm"), [("quantize_qkv", False), ("quantize_qkv", True), ("norm_rope_quantize", True)]
)
@pytest.mark.parametrize(("dim", "block"), [(128, 128), (64, 64)])
def test_int8_casts(dim, block, name, norm, means):
    usage = build_quantize(name, dim, block, norm, means, int8_qk=True)
    print(f"{name} int8 D={dim} block={block} norm={norm} means={means}: {usage}")
    assert usage.stack == 0 and usage.local_loads == 0


@pytest.mark.parametrize("center_v", [False, True], ids=["", "center_v"])
@pytest.mark.parametrize("consumers", [2, 3])
def test_hopper_with_an_output_in_fp8(consumers, center_v):
    """Half the bytes in half the stores, of whole lines, and no more spills than with bf16."""
    config = choose_sm90(128, 128, consumers, True, (9, 0))
    usage, wide = (build_sm90(config, 0, center_v=center_v, out=out) for out in ("fp8e4nv", "bf16"))
    print(f"hopper consumers={consumers} FP8 output: {usage}")
    assert usage.shared <= wide.shared and usage.registers <= 168 and usage.stack <= wide.stack
    stores = [len(re.findall(r"STG\.E\.128", x.sass)) for x in (usage, wide)]
    assert 2 * stores[0] == stores[1] == 8 * consumers


@pytest.mark.parametrize("dim", [64, 128])
def test_forward_with_an_output_in_fp8(dim):
    usage = build_forward(dim, 128, True, out="fp8e4nv")
    assert usage.stack == 0 and usage.local_loads == 0 and usage.shared <= 227 * 1024


@pytest.mark.parametrize(("length", "consumers"), [(128, 2), (0, 3)])
def test_hopper_with_int8_queries_and_keys(length, consumers):
    usage = build_sm90(choose_sm90(128, 128, consumers, True, (9, 0)), length, int8_qk=True)
    print(f"hopper int8 consumers={consumers} length={length}: {usage}")
    assert usage.shared <= 227 * 1024 and usage.registers <= 168
    inner = [body for body in loops(usage.sass) if sum("GMMA" in line for line in body) == 12][:consumers]
    assert len(inner) == consumers
    for body in inner:  # four products for the scores, in integers; 64 more instructions than FP8 makes of them
        assert sum("IGMMA.64x128x32.S8.S8" in line for line in body) == 4
        assert sum("QGMMA" in line for line in body) == 8 and sum("I2F" in line for line in body) == 0
        assert sum("LDL" in line or "STL" in line for line in body) <= 2
        assert len(body) < (575 if length else 680)


@pytest.mark.parametrize("threshold", [0.0, 5.0])
@pytest.mark.parametrize(("dim", "block"), [(128, 128), (64, 64)])
def test_forward_with_int8_queries_and_keys(dim, block, threshold):
    usage = build_forward(dim, block, True, int8_qk=True, pv_threshold=threshold)
    print(f"forward int8 D={dim} block={block} threshold={threshold}: {usage}")
    assert usage.stack == 0 and usage.shared <= 227 * 1024
    assert {"IGMMA", "QGMMA"} <= set(re.findall(r"\b[IQH]GMMA\b", usage.sass)) and "I2F" not in loops(usage.sass)[0]


@pytest.mark.parametrize("length", [0, 128, 127, 120, 113, 112, 96, 81, 33, 1])
@pytest.mark.parametrize("consumers", [2, 3])
def test_no_half_of_a_packed_word_is_lost(consumers, length):
    assert not lost_halves(build_sm90(choose_sm90(128, 128, consumers, True, (9, 0)), length).sass)


@pytest.mark.skipif(TRITON >= (3, 8), reason="words are not packed by merging")
def test_a_lost_half_is_noticed(tmp_path):
    """Words of nothing but masked columns, packed by merging like the others."""
    change = ("p_operand", "_MERGES and (LENGTH == 0 or columns - 16 < LENGTH)", "_MERGES")
    config = choose_sm90(128, 128, 3, True, (9, 0))
    with kernels_with(tmp_path, "softmax", change) as copies:
        kernel = copies["attend_fp8_sm90"].attend_fp8_sm90
        assert lost_halves(build(kernel, *sm90_source(config, 81, True)[1:]).sass)


def lost_halves(sass: str) -> list[str]:
    """Conversions that merge what no conversion left there, in the loops over key blocks."""
    found = []
    for body in [body for body in loops(sass) if sum("QGMMA" in line for line in body) == 12]:
        writer: dict[str, str] = {}
        for line in body:
            code = re.sub(r"^@!?U?P\w+\s+", "", line.strip().replace(".reuse", ""))
            name, *operands = re.split(r"[\s,]+", code)
            if "E4M3" in name and "MERGE_C" in name and operands[3] != "RZ":
                found += [line] if "MERGE_C" not in writer.get(operands[3], "") else []
            writer |= {operands[0]: name} if operands else {}
    return found


@pytest.mark.parametrize("length", [128, 126, 0], ids=["whole", "even", "ragged"])
@pytest.mark.parametrize("consumers", [2, 3])
def test_hopper16(consumers, length):
    usage = build_sm90(choose_sm90(128, 128, consumers, False, (9, 0)), length, fp8=False)
    print(f"hopper16 consumers={consumers} length={length}: {usage}")
    assert usage.shared <= 227 * 1024 and usage.registers <= 168
    inner = [body for body in loops(usage.sass) if sum("HGMMA" in line for line in body) == 16]
    assert len(inner) >= consumers
    for body in inner[:consumers]:  # eight products for the scores, eight for the output, waited for once each
        spilled = sum("LDL" in line for line in body)  # an address, with Triton 3.9; never a score or a sum
        assert spilled <= (TRITON >= (3, 9)) and not any("STL" in line or "LDG" in line for line in body)
        assert sum("WARPGROUP.DEPBAR" in line for line in body) == 2


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
def test_sizes_of_one_compile_on_hopper(fp8):
    """An integer argument that is 1 becomes a constant of the kernel."""
    kernel, types, constants, options = sm90_source(choose_sm90(128, 128, 3, fp8, (9, 0)), 120, fp8)
    ones = [name for name in kernel.arg_names if types.get(name, "").rstrip("!") == "i32"]
    assert "heads" in ones
    constants |= dict.fromkeys(ones, 1)
    types = {name: kind for name, kind in types.items() if name not in ones}
    assert build(kernel, types, constants, options).registers <= 168


def loops(sass: str) -> list[list[str]]:
    """The instructions of every loop, shortest first."""
    label, lines, found = {}, [], []
    for text in sass.splitlines():
        if mark := re.match(r"\s*(\.L_x_\d+):", text):
            label[mark[1]] = len(lines)
        elif code := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", text):
            lines.append(code[1])
            back = re.search(r"BRA\S*\s+`\((\.L_x_\d+)\)", code[1])
            if back and back[1] in label:
                found.append(lines[label[back[1]] :])
    return sorted(found, key=len)


# kB that a program may have (CUDA C++ programming guide, table of limits)
SHARED = {80: 163, 89: 99, 100: 227, 120: 99}


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("dim", [128, 64])
@pytest.mark.parametrize("capability", SHARED)
def test_other_gpus(capability, dim, fp8):
    if fp8 and capability < 89:
        pytest.skip("no FP8 tensor cores")
    usage = build_forward(dim, 128, fp8, capability=capability)
    print(f"forward sm_{capability} D={dim} fp8={fp8}: {usage}")
    assert usage.stack <= 40 and usage.shared <= SHARED[capability] * 1024
    tensor_core = r"\bUTC\w*MMA\b" if capability == 100 else r"\bQMMA\b" if fp8 else r"\bHMMA\b"
    assert re.search(tensor_core, usage.sass)
    for name in ("norm_rope_quantize", "quantize_qkv") if fp8 else ():
        # its limit of registers is chosen on Hopper; on sm_120 ptxas 13.4 puts two words of it on the stack
        assert build_quantize(name, dim, 128, True, False, capability).stack <= 8 * (
            name == "norm_rope_quantize" and capability == 120
        )


@pytest.mark.parametrize(("name", "norm", "means"), QUANTIZE)
@pytest.mark.parametrize(("dim", "block"), [(128, 128), (64, 64)])
def test_quantize(name, dim, block, norm, means):
    usage = build_quantize(name, dim, block, norm, means)
    print(f"{name} D={dim} block={block} norm={norm} means={means}: {usage}")
    assert usage.stack == 0 and usage.local_loads == 0
    if name == "norm_rope_quantize" and not means:  # no thread waits for another but where a program begins and ends
        inner = [body for body in loops(usage.sass) if any("LDG.E" in line for line in body) and len(body) > 60]
        assert inner and not any("BAR" in line or "STS" in line for body in inner for line in body)


def test_the_interpreter_leaves_the_compiler_as_it_was():
    from fpsgen.attention.kernels import attention_kernel

    from .cases import BY_NAME
    from .interpreter import interpreted, kernel_modules

    case = BY_NAME["one_tile"]
    with interpreted(*kernel_modules()):
        attention_kernel(*case.inputs(), *case.lay()[:2], True)
    assert build_quantize("quantize_qkv", 64, 64, True).registers > 0
