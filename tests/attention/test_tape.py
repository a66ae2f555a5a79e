"""Calls on tape: what is recorded, what is played; on a GPU, the same bits."""

import math
import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from fpsgen.attention import AttentionPlan, attend
from fpsgen.attention.kernels import driver
from fpsgen.attention.kernels import tape as tapes
from fpsgen.attention.kernels.launch_config import Pack, pack_slots
from fpsgen.attention.norm_rope import NormRotary
from fpsgen.attention.op import call_key

from .cases import Case
from .gpu import needs_hopper


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
    tape = tapes.Tape((q, k, v))
    tape.begin(out, None, pack, 256)
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


@pytest.mark.parametrize("return_lse", [True, False], ids=["lse", "no lse"])
@pytest.mark.parametrize(
    ("kind", "fp8", "turn"), [("float32", True, True), ("float32", True, False), ("bfloat16", False, False)]
)
def test_every_tensor_of_a_call_is_found_again(kind, fp8, turn, return_lse, interpreted_here, monkeypatch):
    """Of the portable kernel, in the interpreter: (place, offset) of each launch's moving arguments."""
    tape = record(
        Case("taped", (4, 4, 4), (2, 4, 4), dim=64), kind, fp8, turn, return_lse, interpreted_here, monkeypatch
    )
    assert tape.whole
    *prepared, (_, last) = tape._launches
    norms = [(3, 0), (4, 0), (5, 0)] if turn else None
    given = [(0, 0), (1, 0), (2, 0)]
    begins = [[*given, *norms] if norms else [(2, 0)], given] if fp8 else []
    for (_, sources), begin in zip(prepared, begins, strict=True):
        assert sources[: len(begin)] == begin
        assert all(place == tapes.WORK for place, _ in sources[len(begin) :])
    assert fp8 or last[:3] == [(0, 0), (1, 0), (2, 0)]
    assert last[3] == (tapes.OUT, 0) and last[4][0] == (tapes.LSE if return_lse else tapes.WORK)
    assert not fp8 or all(place == tapes.WORK for place, _ in (*last[:3], *last[5:]))


@pytest.mark.parametrize(
    ("dim", "kind", "fp8", "turn"),
    [
        (24, "float32", True, False),
        (64, "float32", False, False),
        (64, "bfloat16", False, True),
        (24, "float32", True, True),
    ],
    ids=["padded", "converted", "turned before", "padded and turned"],
)
def test_a_call_that_changes_its_inputs_first_is_not_taped(dim, kind, fp8, turn, interpreted_here, monkeypatch):
    case = Case("taped", (4, 4, 4), (2, 4, 4), dim=dim)
    assert not record(case, kind, fp8, turn, True, interpreted_here, monkeypatch).whole


def record(case, kind, fp8, turn, return_lse, attend_portable, monkeypatch):
    """A tape of attention_triton as if on a GPU."""
    dtype = getattr(torch, kind)
    q, k, v = case.inputs(dtype)
    rotary = case.rotary(dtype) if turn else None
    monkeypatch.setattr(tapes.Launch, "of", lambda *_: object())
    tape = tapes.Tape((q, k, v, *(rotary[:3] if rotary else ())))
    tape.whole = True
    out, lse = attend_portable.attention_triton(
        q, k, v, case.lay(), fp8, rotary=rotary, return_lse=return_lse, tape=tape
    )
    assert out.dtype == dtype and (lse is not None) == return_lse
    return tape


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
