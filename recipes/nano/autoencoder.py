"""The nano model's video autoencoder: a small configuration of diffusers' AutoencoderKLWan (x8 space, x4 time).

Diffusers runs the class frame chunk by frame chunk with caches. Training wants the whole clip at once, so
`whole_clip` swaps the two time-aware resampling forwards of one instance; the result equals the chunked one to
rounding (a test holds it to 1e-4). The spatial attention of the middle blocks starts as zero and stays frozen:
the network is then purely convolutional, and what it learns on crops holds on whole frames.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' and transformers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    patchify,
    unpatchify,
)
from torch import Tensor

Z_DIM = 16
CONFIG = {
    "base_dim": 24,
    "decoder_base_dim": 32,
    "z_dim": Z_DIM,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * Z_DIM,
    "latents_std": [1.0] * Z_DIM,
}


def build(**overrides) -> AutoencoderKLWan:
    """A fresh autoencoder: residual branches start small, the middle attention at zero and frozen."""
    vae = AutoencoderKLWan(**{**CONFIG, **overrides})
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.data.mul_(0.3)
        if isinstance(module, WanAttentionBlock):
            torch.nn.init.zeros_(module.proj.weight)
            torch.nn.init.zeros_(module.proj.bias)
            module.requires_grad_(False)
    return vae


def _resample(self: WanResample, x: Tensor, feat_cache=None, feat_idx=None) -> Tensor:
    """`WanResample.forward` for a whole clip: the first frame has no past and skips the time convolution."""
    batch, channels, time, height, width = x.shape
    if self.mode == "upsample3d" and time > 1:
        later = self.time_conv(x[:, :, 1:]).view(batch, 2, channels, time - 1, height, width)
        later = later.transpose(1, 2).transpose(2, 3).reshape(batch, channels, 2 * (time - 1), height, width)
        x = torch.cat([x[:, :, :1], later], 2)
        time = x.shape[2]
    frames = x.transpose(1, 2).reshape(batch * time, channels, height, width)
    if self.mode.startswith("up") and isinstance(self.resample, torch.nn.Sequential):
        frames = self.resample[1](F.interpolate(frames, scale_factor=2, mode="nearest"))
    else:
        frames = self.resample(frames)
    x = frames.view(batch, time, *frames.shape[1:]).transpose(1, 2)
    if self.mode == "downsample3d" and time > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


def whole_clip(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Make `encode_clip` and `decode_clip` valid on this instance (diffusers' own encode/decode then is not)."""
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = MethodType(_resample, module)
    return vae


def encode_clip(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """video [B, 3, T, H, W] in [-1, 1] -> mean and log variance of the latents, each [B, z, (T-1)/4+1, H/8, W/8]."""
    return vae.quant_conv(vae.encoder(patchify(video, vae.config.patch_size))).chunk(2, 1)


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """latents [B, z, t, h, w] -> video [B, 3, 4(t-1)+1, 8h, 8w], not clamped."""
    out = vae.decoder(vae.post_quant_conv(latents), first_chunk=True)
    return unpatchify(out, vae.config.patch_size)
