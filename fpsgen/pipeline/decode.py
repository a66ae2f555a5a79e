"""From latents to frames, some at a time, so that a file is encoded while the rest is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch

from fpsgen.models.wan.vae import decode_chunks, decode_dtype, fits, tiling
from fpsgen.pipeline.checks import check_flat, check_spread, to_frames


class Frames:
    """The frames of a video, uint8 [H, W, 3], each decoded when it is first asked for; they may be read many times.

    shape: (frames, height, width) that they will have. ended: called once, when all are decoded.
    Reading raises FpsgenError NUMERIC for what is no picture, at the latest after the last frame.
    """

    def __init__(self, parts: Iterator[np.ndarray], shape: tuple[int, int, int], ended: Callable[[], None]) -> None:
        self.shape = shape
        self._parts = parts
        self._ended: Callable[[], None] | None = ended
        self._made: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        number = 0
        while number < len(self._made) or self._more():
            yield self._made[number]
            number += 1

    def _more(self) -> bool:
        part = next(self._parts, None)
        if part is not None:
            self._made += list(part)
            return True
        if self._ended is not None:
            found = (len(self._made), *self._made[0].shape[:2])
            if found != self.shape:
                raise ValueError(f"the VAE made frames of {found}, not {self.shape}")
            self._ended()
            self._ended = None
        return False


def decode(pipe: Any, latents: torch.Tensor, exact: bool, tiles: bool = False) -> Iterator[np.ndarray]:
    """Frames of latents [1, C, T, h, w], uint8 [t, H, W, 3] in order. exact: as diffusers decodes, in one piece. tiles:
    in blended tiles, which take less memory.
    """
    return checked(video_parts(pipe, latents, exact, tiles))


def needs_tiles(pipe: Any, latents: torch.Tensor, exact: bool) -> bool:
    """Whether the device lacks the memory to decode whole frames."""
    free = free_bytes(latents.device)
    return free is not None and not fits(pipe.vae, latents, decode_dtype(pipe.vae, exact), free)


def free_bytes(device: torch.device) -> int | None:
    """What a GPU has left, PyTorch's own cache included; None on a CPU, whose memory is judged before the work."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def frame_shape(pipe: Any, latents: torch.Tensor) -> tuple[int, int, int]:
    """(frames, height, width) that latents [1, C, T, h, w] become."""
    _, _, length, height, width = latents.shape
    scale = pipe.vae_scale_factor_spatial
    return (length - 1) * pipe.vae_scale_factor_temporal + 1, height * scale, width * scale


@torch.no_grad()
def video_parts(pipe: Any, latents: torch.Tensor, exact: bool, tiles: bool = False) -> Iterator[torch.Tensor]:
    """Latents [1, C, T, h, w] to video [1, 3, t, H, W] in [-1, 1], on the VAE's device."""
    vae = pipe.vae
    latents = latents.to(vae.device, vae.dtype)
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    latents = latents * std + mean
    if tiles:
        with tiling(vae):
            video = vae.decode(latents, return_dict=False)[0]
        yield video
    elif exact:
        yield vae.decode(latents, return_dict=False)[0]
    else:
        yield from decode_chunks(vae, latents, decode_dtype(vae, exact))


def checked(parts: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
    """Video [1, 3, t, H, W] in [-1, 1] as frames uint8 [t, H, W, 3].

    A GPU works on a part while the one before is read. Raises FpsgenError NUMERIC where a value is not finite, and
    after the last part where every frame is one flat colour.
    """
    waiting: _Copied | None = None
    largest, count = 0.0, 0
    for part in chain(parts, (None,)):
        following = None if part is None else _Copied(part)
        if waiting is not None:
            frames, spread = waiting.read()
            check_spread(spread, count)
            count += len(frames)
            largest = max(largest, *spread)
            yield frames
        waiting = following
    check_flat(largest)


class _Copied:
    """A part on its way to the CPU, where nothing waits for it before it is read."""

    def __init__(self, part: torch.Tensor) -> None:
        self._found = to_frames(part)
        self._event: torch.cuda.Event | None = None
        if part.is_cuda:
            self._found = tuple(
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in self._found
            )
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(part.device))

    def read(self) -> tuple[np.ndarray, list[float]]:
        """(frames, how much each varies), see to_frames."""
        if self._event is not None:
            self._event.synchronize()
        frames, spread = self._found
        return frames.numpy(), spread.tolist()
