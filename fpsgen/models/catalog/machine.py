"""What this machine has, and whether a model fits it. torch is imported only where a GPU's driver is there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpsgen.models.catalog.registry import ModelSpec


@dataclass(frozen=True)
class Machine:
    """gpus: memory of each CUDA GPU by its index; ram: the host's. In GB (1e9 bytes)."""

    gpus: tuple[float, ...]
    ram: float

    def gpu_memory(self, device: str = "auto") -> float:
        """GB of the GPU that `device` means, 0 without one: "cuda:1" that GPU, "auto" and "cuda" the largest."""
        if device == "cpu" or not self.gpus:
            return 0.0
        index = device.partition(":")[2]
        if index:
            return self.gpus[int(index)] if int(index) < len(self.gpus) else 0.0
        return max(self.gpus)

    def largest_gpu(self) -> int:
        """Index of the GPU with the most memory, the first of equal ones."""
        return max(range(len(self.gpus)), key=lambda index: (self.gpus[index], -index), default=0)


def this_machine() -> Machine:
    """What torch finds here."""
    ram = 0.0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if not _has_driver():
        return Machine((), ram)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = tuple(torch.cuda.get_device_properties(index).total_memory / 1e9 for index in range(count))
    return Machine(gpus, ram)


def driver_version() -> str | None:
    """Version of the NVIDIA driver, None where it does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.strip().splitlines()[0] if said.strip() else None


def lacks(spec: ModelSpec, machine: Machine, device: str = "auto") -> str:
    """What the machine lacks for a model at its default size, on that device; "" where it fits."""
    if not spec.min_memory_gb:
        return ""
    memory = machine.gpu_memory(device)
    if not memory:
        return "needs a CUDA GPU"
    if memory < spec.min_memory_gb:
        return f"needs {spec.min_memory_gb:g} GB of GPU memory, not {memory:.0f}"
    return ""


def _has_driver() -> bool:
    """Whether NVIDIA's driver can be loaded; without it torch finds no CUDA GPU, and need not be asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    names = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
    try:
        ctypes.CDLL(names[sys.platform])
    except (KeyError, OSError):
        return False
    return True
