"""Dense attention in FP8: the quantized half of FPSAttention alone.

Option `scale` says what shares a scale of Q and K: "tile" (what the GPU kernels do; granularity blocks), and for
comparisons (figure 3 of the paper) "token", "channel", "group" (as many tokens as a kernel block has, which follow each
other in raster order) or "tensor" (all tokens of a head). The latter run in plain torch.
"""

from fpsgen.attention.methods.base import Method, Precision

METHOD = Method(
    name="fp8",
    summary="dense attention with Q, K, V and P in E4M3, one scale per group of key blocks",
    citation="FPSAttention (its FP8 alone), arXiv 2506.04648, table 1",
    colour="#2563eb",
    qk=Precision.E4M3,
    pv=Precision.E4M3,
    options={"scale": "tile"},
    allowed={"scale": ("tile", "token", "channel", "group", "tensor")},
)
