"""Twelve small shapes through every kernel that ships here, for compute-sanitizer:

compute-sanitizer --tool memcheck python -m tests.attention.sanitize
"""

import os

import torch

from .cases import HOPPER_CASES, Case

SHAPES = [case for case in HOPPER_CASES if case.name not in ("per_head", "head_dim_96")]
SHAPES += [
    Case("full_blocks", (4, 16, 16), (4, 8, 8), (1, 1, 1), heads=2, dim=128),
    Case("head_dim_64", (9, 11, 13), (4, 5, 6), (3, 3, 1), heads=3, dim=64),
    Case("head_dim_24", (5, 6, 7), (2, 4, 4), (3, 1, 1), heads=2, dim=24),
]


def main() -> None:
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # every tensor an allocation of its own, or its ends do not show
    from fpsgen.attention.kernels import attention_kernel, choose_portable

    for case in SHAPES:
        q, k, v = torch.stack(case.inputs(torch.bfloat16, "cuda"), 2).unbind(2)
        laid = case.lay("cuda")
        for fp8 in (True, False):
            padded = 64 if case.dim <= 64 else 128
            for config in (None, choose_portable(padded, laid.layout.block, fp8)):
                attention_kernel(q, k, v, laid.tables, laid.lists, fp8, case.granularity, config=config)
        if case.dim in (64, 128):
            attention_kernel(
                q,
                k,
                v,
                laid.tables,
                laid.lists,
                True,
                case.granularity,
                norm_rope=case.norm_rope(torch.bfloat16, "cuda"),
            )
        torch.cuda.synchronize()
        print(case.name, flush=True)


if __name__ == "__main__":
    main()
