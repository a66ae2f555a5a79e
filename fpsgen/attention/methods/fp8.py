"""Dense attention in FP8: the quantized half of FPSAttention alone."""

from fpsgen.attention.methods.base import Method, Precision

METHOD = Method(
    name="fp8",
    summary="dense attention with Q, K, V and P in E4M3, one scale per group of key blocks",
    citation="FPSAttention (its FP8 alone), arXiv 2506.04648, table 1",
    colour="#2563eb",
    qk=Precision.E4M3,
    pv=Precision.E4M3,
)
