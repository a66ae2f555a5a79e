"""Wan's VAE decoder, many frames at a time and channels last, with nothing between the convolutions but one pass.

diffusers decodes a latent frame at a time, in fp32 or bf16 as it was loaded, and copies, pads and casts round every
convolution. The same numbers come from the same weights here: every causal convolution finds the last two frames of
before in front of its input, where the pass that norms wrote the rest; its padding in space is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualUpBlock, unpatchify

from fpsgen.fused.pixels import Sum, norm_silu, upsample

HISTORY = 2  # frames that a kernel of 3 in time sees of before
BUDGET = 1 << 30  # bytes of the largest activation of a chunk
PEAK = 12  # times its largest activation is what a chunk takes at most (measured on an H100, figures/vae.json)


class Decoder:
    """One decoding of one video (or tile): weights in `dtype`, and what convolutions saw last.

    Chunks of latent frames come in order through `chunk`; the last one says so, and nothing is kept then. for_gpu: as
    cuDNN likes it, with biases left to the next pass and channels padded.
    """

    def __init__(self, vae: Any, dtype: torch.dtype, for_gpu: bool) -> None:
        self.vae = vae
        self.dtype = dtype
        self.for_gpu = for_gpu
        self._weights: dict[Any, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._seen: dict[Any, torch.Tensor] = {}
        self._first = self._last = True

    def chunk(self, latents: torch.Tensor, last: bool) -> torch.Tensor:
        """latents [B, C, n, h, w] to frames [B, 3, 4 n, 8 h, 8 w] in [-1, 1], 4 n - 3 in the first chunk (sizes of
        Wan2.1), not contiguous.
        """
        vae, decoder = self.vae, self.vae.decoder
        self._last = last
        x = latents.to(self.dtype).permute(0, 2, 3, 4, 1).contiguous()
        parts = self._causal(decoder.conv_in, self._padded(decoder.conv_in, self._pixelwise(vae.post_quant_conv, x)))
        middle = decoder.mid_block
        parts = self._resnet(middle.resnets[0], parts)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            parts = self._resnet(resnet, self._attention(attention, parts))
        for block in decoder.up_blocks:
            parts = self._up(block, parts)
        _, x = self._normed(decoder.conv_out, decoder.norm_out, parts, keep=False)
        x = self._causal(decoder.conv_out, x).value()
        self._first = False
        x = x.permute(0, 4, 1, 2, 3)
        if vae.config.patch_size is not None:
            x = unpatchify(x, vae.config.patch_size)
        return x.clamp_(-1.0, 1.0)

    def _up(self, block: Any, parts: Sum) -> Sum:
        shortcut = None
        if isinstance(block, WanResidualUpBlock):
            sampler = block.upsampler
            if block.avg_shortcut is not None:
                parts = Sum(parts.value())
                shortcut = self._duplicated(block.avg_shortcut, parts.x)
        else:
            sampler = None if block.upsamplers is None else block.upsamplers[0]
        for resnet in block.resnets:
            parts = self._resnet(resnet, parts)
        if sampler is None:
            return parts
        return self._sampled(sampler, parts)._replace(other=shortcut)

    def _resnet(self, block: Any, parts: Sum) -> Sum:
        x, normed = self._normed(block.conv1, block.norm1, parts)
        _, normed = self._normed(block.conv2, block.norm2, self._causal(block.conv1, normed), keep=False)
        plain = isinstance(block.conv_shortcut, torch.nn.Identity)
        shortcut = x if plain else self._pixelwise(block.conv_shortcut, x)
        return self._causal(block.conv2, normed)._replace(other=shortcut)

    def _attention(self, block: Any, parts: Sum) -> Sum:
        """Within each frame, one head."""
        x, normed = norm_silu(parts, block.norm.gamma.view(-1), silu=False)
        batch, frames, height, width, channels = x.shape
        qkv = self._pixelwise(block.to_qkv, normed).view(batch * frames, 1, height * width, 3 * channels)
        q, k, v = qkv.chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)
        return Sum(self._pixelwise(block.proj, out.reshape(x.shape)), x)

    def _sampled(self, block: Any, parts: Sum) -> Sum:
        """Twice as high and wide; where the block has a convolution in time, twice as long but for the first frame of
        the video, which stays out of it.
        """
        if block.mode == "upsample3d":
            x = parts.value()
            single = x[:, :1] if self._first else x[:, :0]
            x = x[:, 1:] if self._first else x
            if x.shape[1]:
                pairs = self._causal(block.time_conv, self._padded(block.time_conv, x)).value()
                x = pairs.unflatten(-1, (2, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
            parts = Sum(torch.cat((single, x), 1) if len(single[0]) else x.contiguous())
        x, conv = upsample(parts), block.resample[1]
        weight, bias = self._weight(conv, x.shape[-1])
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        now, later = (None, bias) if self.for_gpu else (bias, None)
        out = F.conv2d(frames, weight, now, padding=1)
        return Sum(out.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]), None, later)

    def _duplicated(self, shortcut: Any, x: torch.Tensor) -> torch.Tensor:
        """DupUp3D: channels repeated and laid out over time and space."""
        batch, frames, height, width, _ = x.shape
        t, s = shortcut.factor_t, shortcut.factor_s
        x = x.repeat_interleave(shortcut.repeats, dim=-1).view(batch, frames, height, width, -1, t, s, s)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, frames * t, height * s, width * s, -1)
        return x[:, t - 1 :].contiguous() if self._first else x

    def _normed(self, conv: Any, norm: Any, parts: Sum, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, and its norm and SiLU as the input of a causal convolution."""
        width = _width(parts.x.shape[-1]) if self.for_gpu else None
        total, out = norm_silu(parts, norm.gamma.view(-1), keep=keep, history=HISTORY, width=width)
        return total, self._remember(conv, out)

    def _padded(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape[0], HISTORY + x.shape[1], *x.shape[2:])
        out[:, HISTORY:] = x
        return self._remember(conv, out)

    def _remember(self, conv: Any, padded: torch.Tensor) -> torch.Tensor:
        """Fills in the frames of before, and keeps the last ones."""
        seen = self._seen.pop(conv, None)
        padded[:, :HISTORY] = 0.0 if seen is None else seen
        if not self._last:
            self._seen[conv] = padded[:, -HISTORY:].clone()
        return padded

    def _causal(self, conv: Any, padded: torch.Tensor) -> Sum:
        """A WanCausalConv3d over an input that begins with its history. Padding in space is what it was made with."""
        weight, bias = self._weight(conv, padded.shape[-1])
        now, later = (None, bias) if self.for_gpu else (bias, None)  # cuDNN would add it in a pass of its own
        padding = (0, conv._padding[2], conv._padding[0])
        out = F.conv3d(padded.permute(0, 4, 1, 2, 3), weight, now, padding=padding)
        return Sum(out.permute(0, 2, 3, 4, 1), None, later)

    def _pixelwise(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """A convolution over one pixel: a matrix product."""
        weight, bias = self._weight(conv, x.shape[-1])
        return F.linear(x, weight.flatten(1), bias)

    def _weight(self, conv: Any, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """For an input of so many channels: zeros for those that pad it."""
        if conv not in self._weights:
            weight = conv.weight.detach().to(self.dtype)
            weight = F.pad(weight, (*[0, 0] * (weight.dim() - 2), 0, channels - weight.shape[1]))
            layout = torch.channels_last_3d if weight.dim() == 5 else torch.channels_last
            bias = None if conv.bias is None else conv.bias.detach().to(self.dtype)
            self._weights[conv] = weight.contiguous(memory_format=layout), bias
        return self._weights[conv]


def _width(channels: int) -> int:
    """Channels to give a convolution on a GPU: cuDNN has no kernel for Hopper's tensor cores unless they are multiples
    of 64, and runs 96 of them at 240 TFLOP/s where 192 take 550. Padded by a third at most.
    """
    padded = -(-channels // 64) * 64
    return padded if 3 * padded <= 4 * channels else channels


def decoded_chunks(vae: Any, latents: torch.Tensor, dtype: torch.dtype, budget: int = BUDGET) -> Iterator[torch.Tensor]:
    """Frames of latents [B, C, T, h, w] in order, [B, 3, t, H, W] in `dtype`, while later ones are not decoded yet.

    budget: bytes that the largest activation of a chunk may take, one latent frame at the least.
    """
    decoder = Decoder(vae, dtype, latents.is_cuda)
    frames = latents.shape[2]
    size = max(1, budget // _bytes_a_frame(vae, latents, dtype))
    for start in range(0, frames, size):
        yield decoder.chunk(latents[:, :, start : start + size], start + size >= frames)


def _bytes_a_frame(vae: Any, latents: torch.Tensor, dtype: torch.dtype) -> int:
    """Of the largest activation that one latent frame becomes: what the last upsampling writes."""
    samplers = [module for module in vae.decoder.modules() if hasattr(module, "resample")]
    times = 2 ** sum(module.mode == "upsample3d" for module in samplers)
    channels = max((module.dim for module in samplers[-1:]), default=latents.shape[1])
    return len(latents) * latents[0, 0, 0].numel() * 4 ** len(samplers) * times * channels * dtype.itemsize


def decode_dtype(vae: Any, exact: bool) -> torch.dtype:
    """What to decode in: bf16 on a GPU (51 dB to fp32 on random weights of Wan2.1's shape), else the VAE's own."""
    return torch.bfloat16 if vae.device.type == "cuda" and not exact else vae.dtype


def fits(vae: Any, latents: torch.Tensor, dtype: torch.dtype, free: int) -> bool:
    """Whether one latent frame at a time can be decoded in `free` bytes; tiles take less."""
    return PEAK * _bytes_a_frame(vae, latents, dtype) <= free


@contextmanager
def tiling(vae: Any) -> Iterator[None]:
    """Meanwhile, the VAE decodes in tiles, which it blends (diffusers)."""
    was, vae.use_tiling = vae.use_tiling, True
    try:
        yield
    finally:
        vae.use_tiling = was


def decode_chunks(
    vae: Any, latents: torch.Tensor, dtype: torch.dtype | None = None, budget: int = BUDGET
) -> Iterator[torch.Tensor]:
    """The frames of an AutoencoderKLWan in order, [B, 3, t, H, W] in [-1, 1], decoded in `dtype` (None: its own).

    Tiles, where they are enabled, are diffusers' own way, in one piece; so is fp32 on a GPU, for which cuDNN has no
    fast convolutions with channels last.
    """
    dtype = dtype or latents.dtype
    height, width = vae.tile_sample_min_height, vae.tile_sample_min_width
    ratio = vae.spatial_compression_ratio
    tiled = vae.use_tiling and (latents.shape[-1] > width // ratio or latents.shape[-2] > height // ratio)
    if tiled or (latents.is_cuda and dtype == torch.float32):
        yield vae.decode(latents, return_dict=False)[0]
    else:
        yield from decoded_chunks(vae, latents, dtype, budget)
