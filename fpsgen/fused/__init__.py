"""FP8 linear layers and the element-wise passes around them, each in one reading of its rows. Torch and triton only."""

from fpsgen.fused.cross_attention import cross_attention
from fpsgen.fused.linear import FP8Weight, fold_channels, fp8_linear, fp8_product, quantize_weight
from fpsgen.fused.rows import (
    FP8Channels,
    FP8Rows,
    RowProduct,
    gelu_rows,
    norm_rows,
    quantize_rows,
    residual_norm_rows,
    residual_rows,
    rms_norm_rows,
)

__all__ = [
    "FP8Channels",
    "FP8Rows",
    "FP8Weight",
    "RowProduct",
    "cross_attention",
    "fold_channels",
    "fp8_linear",
    "fp8_product",
    "gelu_rows",
    "norm_rows",
    "quantize_rows",
    "quantize_weight",
    "residual_norm_rows",
    "residual_rows",
    "rms_norm_rows",
]
