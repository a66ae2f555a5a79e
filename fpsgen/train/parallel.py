"""Several processes of one run, as torchrun starts them: each holds a part of the weights (FSDP2) and of a batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_PATIENCE = timedelta(days=1)  # the first process makes the teacher's pairs while the others wait


@dataclass(frozen=True)
class Processes:
    """rank: number of this one, from 0. count: how many there are. device: of this one."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Of a scalar over the processes."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def shard(self, transformer: Any) -> None:
        """Spread the weights over the processes, block by block; trained ones are fp32, and compute in the dtype that
        the transformer has.
        """
        if self.count == 1:
            return
        dtype = transformer.dtype
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in transformer.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(transformer, mesh=mesh, mp_policy=policy)


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Those that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or this one alone on `device`."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, device)
        return
    rank = int(os.environ["RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds; it shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_anew(transformer: Any) -> None:
    """After writing to its parameters: whole weights that are kept from the last forward are dropped."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def write(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Put values, which every process has whole, into a tensor."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    local(tensor).copy_(local(values))
