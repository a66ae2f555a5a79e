"""Triton kernels: prepare (quantize into padded blocks) and forward (walk lists of key blocks). Needs triton; see
launch.py for every choice of block size, warps and stages.
"""

from fpsgen.attention.kernels.forward import attention_triton
from fpsgen.attention.kernels.launch import LaunchConfig, select
from fpsgen.attention.kernels.prepare import Prepared, prepare_inputs

__all__ = ["LaunchConfig", "Prepared", "attention_triton", "prepare_inputs", "select"]
