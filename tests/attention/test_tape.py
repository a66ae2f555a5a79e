"""Calls on tape: parameters as the compiler has them and as a driver gets them; on a GPU, the same bits."""

import ctypes
import math
import re
import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from fpsgen.attention import AttentionPlan, attend
from fpsgen.attention.function import call_key
from fpsgen.attention.kernels import driver
from fpsgen.attention.kernels import tape as tapes
from fpsgen.attention.kernels.launch import Pack, pack_slots, select_hopper
from fpsgen.attention.rotary import NormRotary

from .cases import Case
from .gpu import needs_hopper

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


@pytest.mark.parametrize("name", ["measure_inputs", "quantize_inputs", "fp8", "16 bit"])
def test_parameters_are_those_of_the_compiled_kernel(name):
    """With the Triton at hand; on a GPU, the driver is asked as well."""
    from .compiled import hopper_source, prepare_source, translate

    if name.endswith("inputs"):
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
        shape, strides, box, _ = (ctypes.cast(x, ctypes.POINTER(ctypes.c_uint64)) for x in arrays[:4])
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
        assert launch.move(addresses) == 0 and launch.start(stream) == 0
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
    launch.move((0x1000, 0x2000))
    with pytest.raises(RuntimeError, match="719"):
        driver.checked(launch.start(0))


class Played:
    """A Launch that notes what is done to it. The first start of a thread without a context fails."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def move(self, addresses):
        self.log.append((self.name, "move", addresses))
        return 0

    def start(self, stream):
        self.log.append((self.name, "start", stream))
        return self.log.codes.pop() if self.log.codes else 0


class Log(list):
    codes: list[int]


@pytest.fixture
def taped(monkeypatch):
    """(tape of two kernels over CPU memory, its inputs, its pack, the log of what happens)."""
    log = Log()
    log.codes = []

    def memset(place, value, size, stream):
        log.append(("memset", place, size, stream))
        return 0

    monkeypatch.setattr(tapes, "cuda", lambda: SimpleNamespace(cuMemsetD8Async=memset))
    monkeypatch.setattr(tapes.Launch, "of", lambda compiled, *_: compiled and Played(log, compiled))
    for name, value in {
        "_cuda_getDevice": lambda: 0,
        "_cuda_getCurrentRawStream": lambda index: 77,
        "_cuda_cudaCachingAllocator_raw_alloc": lambda size, stream: 4096,
        "_cuda_cudaCachingAllocator_raw_delete": lambda place: log.append(("free", place)),
    }.items():
        monkeypatch.setattr(torch._C, name, value, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: log.append(("context", device.index)))
    q, k, v = (torch.zeros(1, 4, 2, 8) for _ in range(3))
    pack = Pack(pack_slots({"a": ((3,), torch.float32), "b": ((300,), torch.uint8)}), torch.device("cpu"))
    out = torch.zeros_like(q)
    tape = tapes.Tape((q, k, v), (out, None), pack, 256)
    tape.whole, tape._device = True, torch.device("cuda", 0)
    tape.record("first", (1, 1, 1), (SimpleNamespace(base=k), q, pack.b), (5,))
    tape.record("second", (1, 1, 1), (pack.a, out, v), ())
    return tape, (q, k, v), pack, log


def test_a_tape_moves_what_moved(taped):
    tape, (q, k, v), _, log = taped
    assert tape.close()
    out, lse = tape(q, k, v, None)
    moved = [
        ("first", "move", [k.data_ptr(), q.data_ptr(), 4096 + 256]),
        ("second", "move", [4096, out.data_ptr(), v.data_ptr()]),
    ]
    played = [("memset", 4096, 256, 77), ("first", "start", 77), ("second", "start", 77), ("free", 4096)]
    assert log == moved + played and lse is None and out.shape == q.shape
    log.clear()
    other = torch.zeros_like(k)
    out, _ = tape(q, other, v, None)
    assert log[0] == ("first", "move", [other.data_ptr(), q.data_ptr(), 4096 + 256]) and log[-4:] == played


def test_a_tape_finds_a_context_for_a_thread_and_frees_when_the_driver_refuses(taped):
    tape, inputs, _, log = taped
    tape.close()
    log.codes = [driver.INVALID_CONTEXT]
    tape(*inputs, None)
    assert ("context", 0) in log and [x[0] for x in log].count("memset") == 2
    log.clear()
    log.codes = [700]
    with pytest.raises(RuntimeError, match="700"):
        tape(*inputs, None)
    assert log[-1] == ("free", 4096)


def test_a_tape_with_foreign_memory_or_unknown_kernel_is_not_kept(taped):
    tape, _, pack, _ = taped
    tape.record("third", (1, 1, 1), (torch.zeros(5),), ())
    assert not tape.close()
    tape.whole = True
    tape.record(None, (1, 1, 1), (pack.a,), ())
    assert not tape.close()


@pytest.mark.parametrize("name", tapes.NEEDED)
def test_a_torch_that_lacks_something_has_no_tapes(taped, name, monkeypatch):
    tape, _, _, _ = taped
    monkeypatch.delattr(torch._C, name)
    assert not tape.close()


def test_what_a_call_depends_on_is_in_its_key():
    def key(change=lambda q, k, v, r: (q, k, v, r), lse=False):
        memory = torch.zeros(4, 2 * 3 * 64 + 8, dtype=torch.bfloat16)
        q, k, v = (memory[i, : 2 * 3 * 64].view(1, 2, 3, 64) for i in range(3))
        table = torch.zeros(2, 64)
        return call_key(*change(q, k, v, NormRotary(torch.ones(192), torch.ones(192), table, 1e-6)), lse)

    same = key()
    assert same == key()
    other = {
        "lse": key(lse=True),
        "dtype": key(lambda q, k, v, r: (q.half(), k.half(), v.half(), r)),
        "dtype of v": key(lambda q, k, v, r: (q, k, v.half(), r)),
        "stride": key(lambda q, k, v, r: (torch.zeros(1, 2, 6, 64, dtype=q.dtype)[:, :, :3], k, v, r)),
        "shape": key(lambda q, k, v, r: (q[:, :1], k, v, r)),
        "one tensor": key(lambda q, k, v, r: (q, q, v, r)),
        "no rotary": key(lambda q, k, v, r: (q, k, v, None)),
        "eps": key(lambda q, k, v, r: (q, k, v, r._replace(eps=1e-5))),
        "one norm": key(lambda q, k, v, r: (q, k, v, r._replace(norm_k=r.norm_q))),
        "type of table": key(lambda q, k, v, r: (q, k, v, r._replace(table=r.table.double()))),
    }
    assert len({same, *other.values()}) == len(other) + 1
    odd = torch.zeros(2 * 3 * 64 + 1, dtype=torch.bfloat16)[1:].view(1, 2, 3, 64)
    assert key(lambda q, k, v, r: (odd, k, v, r)) is None


PLAN = AttentionPlan((9, 20, 32), window=(0.5, 0.5, 0.5))


def inputs(seed: int, plan: AttentionPlan = PLAN):
    case = Case("tape", plan.grid, plan.tile, plan.window, 2, 4, 128)
    return case, case.inputs(torch.bfloat16, "cuda", seed)


@pytest.mark.parametrize("return_lse", [True, False], ids=["lse", "no lse"])
@pytest.mark.parametrize("turn", [True, False], ids=["rotary", "plain"])
@pytest.mark.parametrize("method", ["fps", "sta"])
@needs_hopper
def test_a_call_on_tape_gives_the_bits_of_the_first(method, turn, return_lse):
    """Other inputs, elsewhere in memory, on another stream, in a thread, in a graph."""
    plan = AttentionPlan(PLAN.grid, window=PLAN.window, method=method)
    at = plan.tensors(torch.device("cuda", 0))
    at.tapes.clear()
    case, first = inputs(1, plan)
    rotary = case.rotary(torch.bfloat16, "cuda") if turn else None

    def call(x, apart=False):
        if apart:
            at.tapes.clear()
        found = attend(*x, plan, return_lse, rotary)
        return found if return_lse else (found,)

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    wanted = [call(inputs(seed, plan)[1], apart=True) for seed in range(4)]
    call(first, apart=True)
    assert len(at.tapes) == (0 if turn and method == "sta" else 1)
    kept = [inputs(seed, plan)[1] for seed in range(4)]
    for seed in (2, 0, 3, 1):
        assert same(call(kept[seed]), wanted[seed])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert same(call(kept[2]), wanted[2])
    found = []
    thread = threading.Thread(target=lambda: found.append(call(kept[3])))
    thread.start()
    thread.join()
    assert same(found[0], wanted[3])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(kept[0])
    for x, y in zip(kept[0], kept[1], strict=True):
        x.copy_(y)
    graph.replay()
    assert same(captured, wanted[1])


@needs_hopper
def test_tapes_tell_one_tensor_from_three():
    at = PLAN.tensors(torch.device("cuda", 0))
    at.tapes.clear()
    _, (q, k, v) = inputs(5)
    alike = attend(q, q, q, PLAN)
    apart = attend(q, k, v, PLAN)
    assert torch.equal(attend(q, k, v, PLAN), apart) and torch.equal(attend(q, q, q, PLAN), alike)
    assert not torch.equal(apart, alike) and len(at.tapes) == 2


@needs_hopper
def test_fused_projections_and_fp32_on_tape():
    at = PLAN.tensors(torch.device("cuda", 0))
    at.tapes.clear()
    _, x = inputs(6)
    wanted = attend(*x, PLAN)
    for _ in range(2):
        assert torch.equal(attend(*torch.stack(x, 2).unbind(2), PLAN), wanted)
    plan = AttentionPlan(PLAN.grid, window=PLAN.window, method="sta")
    half = attend(*x, plan)
    for _ in range(2):  # fp32 is multiplied in bf16: made anew in every call, never taped
        wide = attend(*(y.float() for y in x), plan)
        assert wide.dtype == torch.float32 and torch.equal(wide.bfloat16(), half)


@needs_hopper
def test_outputs_are_written_whole():
    """A tape's output lies in memory that held NaN."""
    _, x = inputs(7)
    wanted = attend(*x, PLAN)
    torch.cuda.synchronize()
    for _ in range(3):
        poison = torch.full((wanted.numel(),), math.nan, dtype=wanted.dtype, device="cuda")
        del poison
        assert torch.equal(attend(*x, PLAN), wanted)
