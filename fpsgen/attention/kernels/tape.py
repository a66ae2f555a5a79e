"""Calls on tape: what the first call of a kind launched, played again for the next ones with other addresses. The same
kernels with the same arguments, at a quarter of the host's time.

A call's kind is its plan and device, and function.call_key: all that checks, launches and arguments depend on.
"""

from __future__ import annotations

import threading
from typing import Any, cast

import torch

from fpsgen.attention.kernels.driver import INVALID_CONTEXT, Launch, checked, cuda
from fpsgen.attention.kernels.launch_config import Pack
from fpsgen.attention.norm_rope import NormRotary

NEEDED = (  # of torch, which does not promise them: without one of them nothing is taped
    "_cuda_getDevice",
    "_cuda_getCurrentRawStream",
    "_cuda_cudaCachingAllocator_raw_alloc",
    "_cuda_cudaCachingAllocator_raw_delete",
)
OUT, LSE, WORK = 6, 7, 8  # places of what a call makes, after q, k, v and the three tensors of a NormRotary


class Tape:
    """Records a call; afterwards, if close() says so, it is that call: tape(q, k, v, rotary) returns out and LSE (None
    where it was not asked for). given: q, k, v and the tensors of a NormRotary. A launch that gets others in their
    place, converted or padded, spoils the tape.
    """

    def __init__(self, given: tuple[torch.Tensor, ...]) -> None:
        self._known = {id(x): i for i, x in enumerate(given)}
        self._places: tuple[int, ...] = ()  # addresses that the launches have
        self._lock = threading.Lock()  # from their addresses to their start
        self._launches: list[tuple[Launch, list[tuple[int, int]]]] = []
        self._device = given[0].device
        self.whole = given[0].is_cuda

    def begin(self, out: torch.Tensor, lse: torch.Tensor | None, pack: Pack, zeros: int) -> None:
        """What the call makes: out, the LSE if it is returned, and all else, whose first `zeros` bytes must be zero."""
        self._known |= {id(out): OUT} if lse is None else {id(out): OUT, id(lse): LSE}
        self._base, self._size, self._zeros = pack.memory.data_ptr(), pack.memory.numel(), zeros
        self._lse_shape = None if lse is None else lse.shape

    def record(self, compiled: Any, grid: tuple[int, int, int], moving: tuple, fixed: tuple) -> None:
        """One launch, just done by Triton (compiled is None in its interpreter)."""
        places = [self._place(getattr(x, "base", x)) for x in moving] if self.whole else [None]
        launch = None if None in places else Launch.of(compiled, grid, (*moving, *fixed), len(moving))
        self.whole = launch is not None
        if launch is not None:
            self._launches.append((launch, [place for place in places if place is not None]))

    def _place(self, x: torch.Tensor) -> tuple[int, int] | None:
        """Where another call finds it: one of its tensors and an offset."""
        if id(x) in self._known:
            return self._known[id(x)], 0
        offset = x.data_ptr() - self._base
        return (WORK, offset) if 0 <= offset < self._size else None

    def close(self) -> bool:
        """Recording is over; whether the tape is whole."""
        self._known = {}  # they belong to the recorded call alone
        self.whole = self.whole and all(hasattr(torch._C, name) for name in NEEDED)
        if self.whole:
            self._memset = cast(Any, cuda()).cuMemsetD8Async
        return self.whole

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: NormRotary | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._device.index != torch._C._cuda_getDevice():
            with torch.cuda.device(self._device):
                return self(q, k, v, rotary)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = None if self._lse_shape is None else q.new_empty(self._lse_shape, dtype=torch.float32)
        stream = torch._C._cuda_getCurrentRawStream(self._device.index)
        # as a tensor's memory, which may go back before the stream is done with it, at a third of a tensor's cost
        work = torch._C._cuda_cudaCachingAllocator_raw_alloc(self._size, stream) if self._size else 0
        try:
            norm_q, norm_k, table = (q, q, q) if rotary is None else rotary[:3]
            places = (
                *(q.data_ptr(), k.data_ptr(), v.data_ptr(), norm_q.data_ptr(), norm_k.data_ptr(), table.data_ptr()),
                *(out.data_ptr(), 0 if lse is None else lse.data_ptr(), work),
            )
            with self._lock:
                code = self._play(places, stream)
                if code == INVALID_CONTEXT:
                    torch.cuda.set_device(self._device)
                    code = self._play(places, stream)
        finally:
            if work:
                torch._C._cuda_cudaCachingAllocator_raw_delete(work)
        checked(code)
        return out, lse

    def _play(self, places: tuple[int, ...], stream: int) -> int:
        """The driver's code, 0 if all is well."""
        if places != self._places:
            self._places = ()  # until all have moved
            for launch, sources in self._launches:
                if code := launch.move([places[i] + offset for i, offset in sources]):
                    return code
            self._places = places
        if self._zeros and (code := self._memset(places[WORK], 0, self._zeros, stream)):
            return code
        for launch, _ in self._launches:
            if code := launch.start(stream):
                return code
        return 0
