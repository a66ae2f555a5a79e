"""Launches through the CUDA driver: parameters as the compiler has them, and as a driver gets them."""

import ctypes
import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from fpsgen.attention.kernels import driver
from fpsgen.attention.kernels.launch_config import select_hopper

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


@pytest.mark.parametrize("name", ["measure_values", "norm_inputs", "quantize_inputs", "fp8", "16 bit"])
def test_parameters_are_those_of_the_compiled_kernel(name):
    """With the Triton at hand; on a GPU, the driver is asked as well."""
    from .compiled import hopper_source, prepare_source, translate

    if name.endswith(("inputs", "values")):
        kernel = translate(*prepare_source(name, 128, 128, True))
    else:
        kernel = translate(*hopper_source(select_hopper(128, 128, 3, name == "fp8", (9, 0)), 126, name == "fp8"))
    types = driver.parameters(kernel.src.signature, kernel.metadata.tensordesc_meta or ())
    entry = kernel.asm["ptx"].partition(".entry")[2].partition("{")[0]
    found = [
        int(many) if many else SIZES[bits]
        for bits, many in re.findall(r"\.param .*?\.[ubf](\d+) .*?_param_\d+(?:\[(\d+)\])?", entry)
    ]
    assert [ctypes.sizeof(x) for x in types] == found


@pytest.mark.parametrize(
    ("signature", "maps"),
    [({"x": "tensordesc<fp32[8, 8]>"}, [None]), ({"x": ("*fp32", "i32")}, []), ({"x": "fp16"}, [])],
    ids=["a descriptor without a map", "a tuple", "a type"],
)
def test_what_is_not_known_is_not_launched(signature, maps):
    assert driver.parameters(signature, maps) is None


class Recorder:
    """A CUDA driver that notes what it is told. sizes: of the kernel's parameters, as it believes."""

    def __init__(self, sizes):
        self.sizes, self.seen, self.code = sizes, [], 0

    def cuFuncGetParamInfo(self, function, index, offset, size):
        if index >= len(self.sizes):
            return 1
        size._obj.value = self.sizes[index]
        return 0

    def cuTensorMapEncodeTiled(self, place, kind, rank, base, *arrays):
        shape, strides = (ctypes.cast(x, ctypes.POINTER(ctypes.c_uint64)) for x in arrays[:2])
        box = ctypes.cast(arrays[2], ctypes.POINTER(ctypes.c_uint32))
        self.encoded = kind, rank, shape[:rank], strides[: rank - 1], box[:rank], arrays[4:]
        return self.cuTensorMapReplaceAddress(place, base)

    def cuTensorMapReplaceAddress(self, place, base):
        ctypes.cast(place, ctypes.POINTER(ctypes.c_uint64))[0] = base
        return 0

    def cuLaunchKernelEx(self, config, function, params, extra):
        places = ctypes.cast(params, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.string_at(places[i], size) for i, size in enumerate(self.sizes)]
        c = ctypes.cast(config, ctypes.POINTER(driver._Config)).contents
        self.seen.append(((c.grid_x, c.grid_y, c.grid_z, c.block_x, c.shared, c.stream), values))
        return self.code


SIGNATURE = {"x": "tensordesc<fp8e4nv[64, 128]>", "y": "*fp32", "z": "*i32", "n": "i32", "one": "constexpr"}
SIGNATURE |= {"s": "fp32", "D": "constexpr"}
META = {"swizzle": 3, "elem_size": 1, "elem_type": 0, "block_size": [64, 128], "fp4_padded": False}


def stand_in(monkeypatch, sizes, **changes):
    """A Launch of a kernel that has SIGNATURE, with x and y moving, on a Recorder."""
    cuda = Recorder(sizes)
    monkeypatch.setattr(driver, "cuda", lambda: cuda)
    meta = {"num_warps": 12, "num_ctas": 1, "shared": 1000, "tensordesc_meta": [META], "launch_pdl": False}
    meta |= {"launch_cooperative_grid": False, "global_scratch_size": 0, "profile_scratch_size": 0} | changes
    compiled = SimpleNamespace(src=SimpleNamespace(signature=SIGNATURE), metadata=SimpleNamespace(**meta), function=7)
    x = SimpleNamespace(base=torch.zeros(256, 128).to(torch.float8_e4m3fn), shape=[256, 128], strides=[128, 1])
    z = torch.arange(4)
    args = (x, torch.zeros(3), z, 5, 1, 0.5)
    return cuda, z, driver.Launch.of(compiled, (9, 2, 1), args, 2)


GOOD = [128, 4, 4, 8, 8, 8, 8, 4, 4, 8, 8]


def test_arguments_arrive(monkeypatch):
    cuda, z, launch = stand_in(monkeypatch, GOOD)
    for stream, addresses in ((0x10, (0x1000, 0x2000)), (0x20, (0x3000, 0x2000)), (0x20, (0x3000, 0x4000))):
        assert launch_config.move(addresses) == 0 and launch_config.start(stream) == 0
        config, values = cuda.seen[-1]
        assert config == (9, 2, 1, 384, 1000, stream)
        numbers = [int.from_bytes(value, "little") for value in values]
        assert numbers[0] & (2**64 - 1) == addresses[0]
        assert numbers[1:7] == [256, 128, 128, 1, addresses[1], z.data_ptr()]
        assert numbers[7] == 5 and values[8] == ctypes.string_at(ctypes.byref(ctypes.c_float(0.5)), 4)
        assert numbers[9:] == [0, 0]
    assert cuda.encoded == (0, 2, [128, 256], [128], [128, 64], (0, 3, 2, 0))


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        (GOOD[:-1], {}),
        ([*GOOD, 8], {}),
        ([128, 4, 4, 8, 8, 8, 8, 8, 4, 8, 8], {}),
        (GOOD, {"num_ctas": 2}),
        (GOOD, {"launch_pdl": True}),
        (GOOD, {"global_scratch_size": 8}),
    ],
    ids=["one more", "one less", "another size", "a cluster", "dependent launch", "scratch memory"],
)
def test_an_unfamiliar_kernel_is_left_to_triton(monkeypatch, sizes, changes):
    assert stand_in(monkeypatch, sizes, **changes)[2] is None


def test_an_error_of_the_driver_is_raised(monkeypatch):
    cuda, _, launch = stand_in(monkeypatch, GOOD)
    cuda.code = 719
    launch_config.move((0x1000, 0x2000))
    with pytest.raises(RuntimeError, match="719"):
        driver.checked(launch_config.start(0))
