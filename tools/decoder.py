"""The VAE's decoder against diffusers', 81 frames, random weights of Wan2.1's shape, as figures/vae.json.

`python -m tools.decoder` prints the file, on a GPU. PSNR is over all pixels,
against diffusers in fp32 on the same latents.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from fpsgen.bench.provenance import provenance
from fpsgen.models.wan.vae import decode_chunks
from tools.command_line import parse_on_gpu, parser_of
from tools.density_table import SIZES

COLUMNS = {
    "shape": "Shape",
    "how": "Decoder",
    "median": "s, median",
    "range": "smallest-largest",
    "first": "first call",
    "psnr_cell": "PSNR to fp32, dB",
    "mem": "GPU memory",
}
FRAMES = 81


@torch.no_grad()
def run(device: torch.device, calls: int = 4, vae: Any = None) -> list[dict[str, Any]]:
    """Rows for diffusers in fp32, as it comes, and in bf16, and for ours, at all SIZES. calls: of ours, others two."""
    torch.manual_seed(0)
    vae = (vae or AutoencoderKLWan()).to(device).eval()
    narrow = copy.deepcopy(vae).bfloat16()
    base = {"schema": "fpsgen.bench.decoder/1", **provenance(device)}
    rows = []
    for name, (width, height) in SIZES.items():
        latents = torch.randn(1, vae.config.z_dim, (FRAMES - 1) // 4 + 1, height // 8, width // 8, device=device)

        def stock(model: Any, latents=latents) -> torch.Tensor:
            return model.decode(latents.to(model.dtype), return_dict=False)[0]

        def ours(latents=latents) -> torch.Tensor:
            return torch.cat(list(decode_chunks(vae, latents, torch.bfloat16)), 2)

        exact = None
        for how, call, times in (
            ("diffusers, fp32", partial(stock, vae), 2),
            ("diffusers, bf16", partial(stock, narrow), 2),
            ("ours, bf16", ours, calls),
        ):
            seconds, video, memory = timed(call, times, device)
            exact = video.float() if exact is None else exact
            found = "" if how == "diffusers, fp32" else f"{psnr(video, exact):.1f}"
            rest = seconds[1:]
            row = {"shape": f"{name}, {FRAMES} frames", "how": how, "seconds": seconds, "psnr_cell": found}
            row |= {"first": f"{seconds[0]:.2f}", "median": f"{statistics.median(rest):.2f}"}
            row |= {"range": f"{min(rest):.2f}-{max(rest):.2f}", "mem": f"{memory / 1e9:.1f} GB" if memory else ""}
            rows.append(base | row)
    return rows


def timed(
    call: Callable[[], torch.Tensor], times: int, device: torch.device
) -> tuple[list[float], torch.Tensor, int | None]:
    """Seconds of each call, the last result, the most memory that was allocated in bytes (None on a CPU)."""
    gpu, seconds, video = device.type == "cuda", [], torch.empty(0)
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(times):
        del video
        begin = time.perf_counter()
        video = call()
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return seconds, video, torch.cuda.max_memory_allocated(device) if gpu else None


def psnr(video: torch.Tensor, exact: torch.Tensor) -> float:
    """dB, of values in [-1, 1]."""
    errors = (part.float().clamp(-1, 1) - other.clamp(-1, 1) for part, other in zip(video[0], exact[0], strict=True))
    return 10 * math.log10(4 / statistics.mean(float(error.square().mean()) for error in errors))


def main(arguments: Sequence[str] | None = None) -> None:
    parse_on_gpu(parser_of("decoder", __doc__), arguments)
    print(json.dumps({"columns": COLUMNS, "rows": run(torch.device("cuda"))}, indent=1))


if __name__ == "__main__":
    main()
