"""Dense attention in the tensors' own type: the baseline."""

from fpsgen.attention.methods.base import Method

# setting bf16_backend: what computes it, and how diffusers calls that; "auto": see models/patch/backend.py
BACKENDS = {
    "auto": "native",
    "cudnn": "_native_cudnn",
    "flash": "_native_flash",
    "fa3": "_flash_3",
    "efficient": "_native_efficient",
    "math": "_native_math",
}
GPU_BACKENDS = ("cudnn", "fa3", "efficient")

METHOD = Method(
    name="bf16",
    summary="dense attention in 16 bits, by PyTorch's scaled_dot_product_attention",
    citation="Vaswani et al., Attention Is All You Need, arXiv 1706.03762",
    colour="#6b7280",
)
