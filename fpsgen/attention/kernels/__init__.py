"""Triton kernels: prepare (quantize into padded blocks) and forward (walk lists of key blocks). Needs triton; see
launch_config.py for every choice of block size, warps and stages.
"""

from fpsgen.attention.kernels.attend_portable import attend_taped, attention_triton
from fpsgen.attention.kernels.launch_config import LaunchConfig, select
from fpsgen.attention.kernels.quantize_qkv import prepare_inputs

__all__ = ["LaunchConfig", "attend_taped", "attention_triton", "prepare_inputs", "select"]
