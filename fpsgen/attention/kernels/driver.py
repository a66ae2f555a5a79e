"""Compiled kernels started once more, through the CUDA driver and with other addresses: about 4 us of the host, where
Triton's launcher, which looks at every argument anew, takes 20.

A Launch is made from one launch that Triton did. It passes what Triton passed, in the same order; the driver is asked
whether the kernel's parameters have those sizes, and where they have not, or anything else is unfamiliar, there is no
Launch. Structures and constants: CUDA driver API 12.4, cuda.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch

INVALID_CONTEXT = 201  # of a thread that has not called CUDA yet
_SCALARS = {
    "i1": ctypes.c_int8,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u1": ctypes.c_uint8,
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float,
    "f32": ctypes.c_float,
    "fp64": ctypes.c_double,
}
_TENSOR_MAP = 128  # bytes of a CUtensorMap, aligned to 64
_ELEMENTS = {torch.float8_e4m3fn: 0, torch.float16: 6, torch.bfloat16: 9}  # CUtensorMapDataType; bytes for FP8
_PROMOTE_L2_128B = 2


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attributes", ctypes.c_uint),
    )


@lru_cache(maxsize=1)
def cuda() -> ctypes.PyDLL | None:
    """The driver's library, None where there is none, or one that lacks what is needed. Calls keep the GIL: they are
    shorter than giving it away.
    """
    try:
        found = ctypes.PyDLL("libcuda.so.1")
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        found.cuLaunchKernelEx.argtypes = (pointer, pointer, pointer, pointer)
        found.cuMemsetD8Async.argtypes = (ctypes.c_uint64, ctypes.c_ubyte, size, pointer)
        found.cuTensorMapReplaceAddress.argtypes = (pointer, ctypes.c_uint64)
        found.cuFuncGetParamInfo.argtypes = (pointer, size, pointer, pointer)
        found.cuTensorMapEncodeTiled.argtypes = (
            *(pointer, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64, pointer, pointer, pointer, pointer),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint),
        )
    except (OSError, AttributeError):
        return None
    return found


def parameters(signature: dict[str, Any], maps: Sequence[dict[str, Any] | None]) -> list[type] | None:
    """C types of a kernel's parameters, None for what is not known here. signature, maps: as a compiled kernel has
    them in src.signature and metadata.tensordesc_meta. A descriptor is a map, its shape and its strides; two pointers
    to scratch memory come last.
    """
    types: list[type] = []
    left = list(maps)
    for kind in signature.values():
        if kind == "constexpr":
            continue
        if not isinstance(kind, str):
            return None
        if kind.startswith("tensordesc"):
            if not left or left[0] is None or left[0]["fp4_padded"]:
                return None
            rank = len(left.pop(0)["block_size"])
            types += [ctypes.c_byte * _TENSOR_MAP] + [ctypes.c_int32] * rank + [ctypes.c_int64] * rank
        elif kind.startswith("*"):
            types.append(ctypes.c_uint64)
        elif kind in _SCALARS:
            types.append(_SCALARS[kind])
        else:
            return None
    return [*types, ctypes.c_uint64, ctypes.c_uint64]


class Launch:
    """A kernel with its arguments, to be started again: move() gives the first ones, which are pointers or tensor
    descriptors, other addresses, start() launches. Both return the driver's code, 0 if all is well.
    """

    @classmethod
    def of(cls, compiled: Any, grid: tuple[int, int, int], args: Iterable[Any], moving: int) -> Launch | None:
        """From a compiled kernel of Triton and the arguments that it ran with, constants left out; the first `moving`
        of them move.
        """
        meta, driver = compiled.metadata, cuda()
        types = parameters(compiled.src.signature, meta.tensordesc_meta or ())
        alone = meta.num_ctas == 1 and not (meta.launch_pdl or meta.launch_cooperative_grid)
        alone = alone and not (meta.global_scratch_size or meta.profile_scratch_size)
        if driver is None or types is None or not alone or not _fits(driver, compiled.function, types):
            return None
        return cls(driver, compiled, grid, tuple(args), moving)

    def __init__(self, driver: Any, compiled: Any, grid: tuple[int, int, int], args: tuple, moving: int) -> None:
        meta, signature = compiled.metadata, compiled.src.signature
        self._kept = compiled, args[moving:]  # tensors whose addresses stay as they are
        self._launch, self._replace = driver.cuLaunchKernelEx, driver.cuTensorMapReplaceAddress
        self._config = _Config(*grid, 32 * meta.num_warps, 1, 1, meta.shared, None, None, 0)
        self._addresses = (ctypes.c_uint64 * moving)()
        self._maps: list[tuple[int, int]] = []  # which moving argument, address of its map
        maps = iter(meta.tensordesc_meta or ())
        values: list[Any] = []  # what parameters point to
        for i, (kind, value) in enumerate(zip(signature.values(), args, strict=False)):
            if kind == "constexpr":
                continue
            if kind.startswith("tensordesc"):
                memory = ctypes.create_string_buffer(_TENSOR_MAP + 64)
                place = -(-ctypes.addressof(memory) // 64) * 64
                _encode(driver, place, value, next(maps))
                if i < moving:
                    self._maps.append((i, place))
                    self._addresses[i] = value.base.data_ptr()
                values += [(memory, place), *map(ctypes.c_int32, value.shape), *map(ctypes.c_int64, value.strides)]
            elif kind.startswith("*") and i < moving:
                values.append((self._addresses, ctypes.addressof(self._addresses) + 8 * i))
            elif kind.startswith("*"):
                values.append(ctypes.c_uint64(value.data_ptr()))
            else:
                values.append(_SCALARS[kind](value))
        values += [ctypes.c_uint64(0), ctypes.c_uint64(0)]
        self._values = values
        places = [value[1] if isinstance(value, tuple) else ctypes.addressof(value) for value in values]
        self._params = (ctypes.c_void_p * len(places))(*places)
        self._call = (ctypes.addressof(self._config), compiled.function, ctypes.addressof(self._params), None)

    def move(self, addresses: Sequence[int]) -> int:
        for i, place in self._maps:
            if self._addresses[i] != addresses[i] and (code := self._replace(place, addresses[i])):
                return code
        self._addresses[:] = addresses
        return 0

    def start(self, stream: int) -> int:
        self._config.stream = stream
        return self._launch(*self._call)


def checked(code: int) -> None:
    """Raises RuntimeError where the driver refused."""
    if code:
        raise RuntimeError(
            f"the CUDA driver returned error {code}.\nRun fpsgen doctor, or with CUDA_LAUNCH_BLOCKING=1."
        )


def _fits(driver: Any, function: int, types: list[type]) -> bool:
    """Whether the kernel has parameters of just these sizes."""
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    for i, kind in enumerate(types):
        if driver.cuFuncGetParamInfo(function, i, ctypes.byref(offset), ctypes.byref(size)):
            return False
        if size.value != ctypes.sizeof(kind):
            return False
    return driver.cuFuncGetParamInfo(function, len(types), ctypes.byref(offset), ctypes.byref(size)) != 0


def _encode(driver: Any, place: int, value: Any, meta: dict[str, Any]) -> None:
    """The tensor map that Triton makes of its TensorDescriptor `value`; the driver counts axes from the last."""
    rank, size = len(value.shape), meta["elem_size"]
    shape = (ctypes.c_uint64 * rank)(*reversed(value.shape))
    strides = (ctypes.c_uint64 * rank)(*(stride * size for stride in reversed(value.strides[:-1])))
    box = (ctypes.c_uint32 * rank)(*reversed(meta["block_size"]))
    steps = (ctypes.c_uint32 * rank)(*[1] * rank)
    arrays = (ctypes.addressof(x) for x in (shape, strides, box, steps))
    fixed = (0, meta["swizzle"], _PROMOTE_L2_128B, 0)  # not interleaved; zeros beyond the ends
    kind, base = _ELEMENTS[value.base.dtype], value.base.data_ptr()
    checked(driver.cuTensorMapEncodeTiled(place, kind, rank, base, *arrays, *fixed))
