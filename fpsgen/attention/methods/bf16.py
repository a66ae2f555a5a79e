"""Dense attention in the tensors' own type: the baseline."""

from fpsgen.attention.methods.base import Method

METHOD = Method(
    name="bf16",
    summary="dense attention in 16 bits, by PyTorch's scaled_dot_product_attention",
    citation="Vaswani et al., Attention Is All You Need, arXiv 1706.03762",
    colour="#6b7280",
)
