"""Triton and Gluon kernels: quantize into padded blocks, then attention over lists of key blocks. Needs triton.

dispatch.py chooses a kernel, launch_config.py holds every block size and number of warps and stages.
"""

from fpsgen.attention.kernels.dispatch import attention_kernel, choose, launch
from fpsgen.attention.kernels.launch_config import PortableConfig, Sm90Config, choose_portable
from fpsgen.attention.kernels.quantize_qkv import quantize

__all__ = [
    "PortableConfig",
    "Sm90Config",
    "attention_kernel",
    "choose",
    "choose_portable",
    "launch",
    "quantize",
]
