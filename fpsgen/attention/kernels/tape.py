"""Calls on tape: what the first call of a kind launched, played again for the next ones with other addresses. The same
kernels with the same arguments, at a quarter of the host's time.

A call's kind is its plan and device, and function.call_key: all that checks, launches and arguments depend on.
"""

from __future__ import annotations

from typing import Any

import torch

from fpsgen.attention.kernels.driver import Launch, zero
from fpsgen.attention.kernels.launch import Pack
from fpsgen.attention.rotary import NormRotary

OUT, LSE, WORK = 6, 7, 8  # places of what a call makes, after q, k, v and the three tensors of a NormRotary


class Tape:
    """Records a call; afterwards, if `whole`, it is that call: tape(q, k, v, rotary) returns out and LSE (None where it
    was not asked for).

    given: q, k, v and the tensors of a NormRotary, as start() gets them. made: out, and the LSE if it is returned.
    pack: what else the call makes, of which the first `zeros` bytes are zero at the start.
    """

    def __init__(
        self,
        given: tuple[torch.Tensor, ...],
        made: tuple[torch.Tensor, torch.Tensor | None],
        pack: Pack,
        zeros: int,
    ) -> None:
        out, lse = made
        self._known = {id(x): i for i, x in enumerate(given)} | {id(out): OUT}
        self._known |= {id(lse): LSE} if lse is not None else {}
        self._base, self._size, self._zeros = pack.memory.data_ptr(), pack.memory.numel(), zeros
        self._shape, self._lse_shape = out.shape, None if lse is None else lse.shape
        self._launches: list[tuple[Launch, list[tuple[int, int]]]] = []
        self._device = out.device
        self.whole = out.is_cuda

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
        return self.whole

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: NormRotary | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._device.index != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                return self(q, k, v, rotary)
        out = q.new_empty(self._shape)
        lse = None if self._lse_shape is None else q.new_empty(self._lse_shape, dtype=torch.float32)
        work = q.new_empty(self._size, dtype=torch.uint8)
        stream = torch._C._cuda_getCurrentRawStream(self._device.index)
        base = work.data_ptr()
        turn = (0, 0, 0) if rotary is None else (rotary[0].data_ptr(), rotary[1].data_ptr(), rotary[2].data_ptr())
        places = (q.data_ptr(), k.data_ptr(), v.data_ptr(), *turn, out.data_ptr(), 0 if lse is None else lse.data_ptr())
        places += (base,)
        if self._zeros:
            zero(base, self._zeros, stream)
        for launch, sources in self._launches:
            launch(stream, [places[i] + offset for i, offset in sources])
        return out, lse
