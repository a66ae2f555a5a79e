"""The attention operator alone, by a density and over lists of key blocks that a router of yours has chosen."""

import torch

import fpsgen

GRID, TILE, BLOCK = (4, 12, 16), (2, 12, 4), (2, 4, 4)  # (t, h, w) in tokens: the video, a query tile, a key block
TILES, BLOCKS = 2 * 1 * 4, 2 * 3 * 4  # how many there are
BATCH, HEADS, DIM, KEEP = 1, 4, 64, 8

device = "cuda" if torch.cuda.is_available() else "cpu"
q, k, v = (torch.randn(BATCH, 4 * 12 * 16, HEADS, DIM, device=device, requires_grad=True) for _ in range(3))

# FP8, and of all pairs of tokens about 30 %: the window that comes nearest on this grid. There is a gradient.
out = fpsgen.fps_attention(q, k, v, grid=GRID, density=0.3)
out.sum().backward()

# 16 bit, and for each head and query tile the KEEP key blocks that some score of yours ranks first.
score = torch.rand(BATCH, HEADS, TILES, BLOCKS, device=device)
index = score.topk(KEEP).indices.int()
count = torch.full(index.shape[:-1], KEEP, dtype=torch.int32, device=device)
lists = {"q2k_index": index, "q2k_count": count}
own, lse = fpsgen.fps_attention(q, k, v, grid=GRID, method="bf16", tile=TILE, block=BLOCK, return_lse=True, **lists)
print(f"out {list(out.shape)}, gradient {list(q.grad.shape)}, out over lists {list(own.shape)}, LSE {list(lse.shape)}")
