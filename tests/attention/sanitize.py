"""Twelve small shapes through every kernel that ships here, for compute-sanitizer:

compute-sanitizer --tool memcheck python -m tests.attention.sanitize
"""

import os

from .cases import Case

SHAPES = [
    Case("one_tile", (4, 5, 6), (4, 5, 6), dim=128),
    Case("ragged_window", (9, 11, 13), (4, 5, 6), (3, 1, 3), heads=2, dim=128),
    Case("three_blocks", (6, 8, 9), (6, 8, 8), (1, 1, 1), dim=128),
    Case("ragged_three", (13, 17, 19), (6, 8, 8), (3, 3, 1), batch=2, dim=128),
    Case("even_three", (21, 18, 8), (21, 9, 2), (1, 1, 3), heads=2, dim=128),
    Case("full_blocks", (4, 16, 16), (4, 8, 8), (1, 1, 1), heads=2, dim=128),
    Case("unsorted", (6, 12, 18), (3, 6, 9), "unsorted", dim=128),
    Case("empty_rows", (6, 12, 18), (3, 6, 9), "empty", heads=2, dim=128),
    Case("per_batch_head", (6, 12, 18), (6, 8, 8), "per_batch_head", batch=2, heads=2, dim=128),
    Case("shared_scales", (9, 11, 13), (4, 5, 6), dim=128, granularity=3),
    Case("head_dim_64", (9, 11, 13), (4, 5, 6), (3, 3, 1), heads=3, dim=64),
    Case("head_dim_24", (5, 6, 7), (2, 4, 4), (3, 1, 1), heads=2, dim=24),
]


def main() -> None:
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # every tensor an allocation of its own, or its ends do not show
    import torch

    from fpsgen.attention.kernels import attention_triton, select

    for case in SHAPES:
        q, k, v = torch.stack(case.inputs(torch.bfloat16, "cuda"), 2).unbind(2)
        at = case.lay("cuda")
        for fp8 in (True, False):
            padded = 64 if case.dim <= 64 else 128
            for config in (None, select(padded, at.layout.block, fp8)):
                attention_triton(q, k, v, at, fp8, case.granularity, config)
        if case.dim in (64, 128):
            attention_triton(q, k, v, at, True, case.granularity, rotary=case.rotary(torch.bfloat16, "cuda"))
        torch.cuda.synchronize()
        print(case.name, flush=True)


if __name__ == "__main__":
    main()
