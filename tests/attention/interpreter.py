"""Run Triton kernels on a CPU in Triton's interpreter, with its known faults mended for the time of a test.

Mended (triton 3.6): casts to and from FP8 lose carries and do not saturate; bf16 products multiply raw bits; loop
bounds that are tensors fail with numpy 2.4 and newer. Kernels need not have been imported under TRITON_INTERPRET:
their compiled forms are exchanged for interpreted ones.
"""

import contextlib

import numpy as np
import torch

FLOATS = {
    "fp8e4nv": (torch.float8_e4m3fn, torch.uint8, 448.0),
    "fp8e5": (torch.float8_e5m2, torch.uint8, 57344.0),
    "fp16": (torch.float16, torch.int16, None),
    "bf16": (torch.bfloat16, torch.int16, None),
    "fp32": (torch.float32, torch.int32, None),
}


def _as_torch(data: np.ndarray, kind: str) -> torch.Tensor:
    dtype, carrier, _ = FLOATS[kind]
    raw = np.ascontiguousarray(data).view(f"int{8 * dtype.itemsize}").copy()
    return torch.from_numpy(raw).view(carrier).view(dtype)


def _convert(data: np.ndarray, source, target, rounding, fallback) -> np.ndarray:
    if source.name not in FLOATS or target.name not in FLOATS:
        return fallback(data, source, target, rounding)
    dtype, carrier, largest = FLOATS[target.name]
    values = _as_torch(data, source.name).float()
    values = values if largest is None else values.clamp(-largest, largest)
    bits = values.to(dtype).view(carrier).numpy()
    return bits.view(f"uint{8 * dtype.itemsize}").reshape(data.shape)


def install(monkeypatch, *modules) -> None:
    """Interpret every Triton function of `modules` and of triton's own library until `monkeypatch` is undone."""
    import triton.experimental.gluon  # noqa: F401  (loaded lazily by launches, and only from compiled forms)
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    for module in (tl, tl.standard, *modules):
        for name, item in list(vars(module).items()):
            if isinstance(item, JITFunction):
                monkeypatch.setattr(module, name, interpreter.InterpretedFunction(item.fn))

    plain = interpreter._convert_float
    monkeypatch.setattr(interpreter, "_convert_float", lambda *args: _convert(*args, plain))

    plain_dot = interpreter.InterpreterBuilder.create_dot

    def dot(self, a, b, d, precision, imprecise):
        if a.dtype.name != "bf16":
            return plain_dot(self, a, b, d, precision, imprecise)
        left, right = (_as_torch(x.data, "bf16").float().numpy() for x in (a, b))
        return interpreter.TensorHandle(np.matmul(left, right) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)

    plain_tensor = interpreter._patch_lang_tensor

    def tensor(kind, scope):
        plain_tensor(kind, scope)
        scope.set_attr(kind, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", tensor)


def kernel_modules() -> tuple:
    """All that hold Triton functions; those in Gluon cannot be interpreted."""
    from fpsgen.attention.kernels import (
        attend_portable,
        backward_portable,
        backward_prepare,
        norm_rope_quantize,
        quantize_parts,
        quantize_qkv,
    )

    quantizing = (norm_rope_quantize, quantize_parts, quantize_qkv)
    return attend_portable, backward_portable, backward_prepare, *quantizing


@contextlib.contextmanager
def interpreted(*modules):
    """The interpreter leaves parts of triton.language patched, which breaks every later compilation: put them back."""
    import pytest
    import triton.language as tl

    places = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base, tl.core.dtype)
    before = [dict(vars(place)) for place in places]
    try:
        with pytest.MonkeyPatch.context() as patch:
            install(patch, *modules)
            yield
    finally:
        for place, names in zip(places, before, strict=True):
            for name, value in list(vars(place).items()):
                if name not in names and name != "__annotations__":
                    delattr(place, name)
                elif name in names and names[name] is not value:
                    setattr(place, name, names[name])
