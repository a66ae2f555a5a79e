"""The decoder of many frames at a time gives diffusers' pixels, whatever its chunks."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode

from fpsgen.assets import weights_dir
from fpsgen.models.wan.vae import Decoder, _width, decode_chunks, decoded_chunks, fits, tiling

WAN21 = {"base_dim": 8, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
SHORT = {**WAN21, "base_dim": 96, "num_res_blocks": 0}  # 96 channels: padded for cuDNN
RESIDUAL = {  # as Wan2.2's and nano's
    **WAN21,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "dim_mult": [1, 2, 2],
    "temperal_downsample": [True, True],
}


def autoencoder(config):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**config).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            parameter.data.normal_(1, 0.3)
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    return vae


def decode(vae, z):
    return vae.decode(z, return_dict=False)[0]


def fast(vae, z, *more):
    with torch.no_grad():
        return torch.cat(list(decode_chunks(vae, z, *more)), 2)


def psnr(a, b):
    return (10 * torch.log10(4 / (a.float() - b.float()).square().mean())).item()


@pytest.mark.parametrize("config", [WAN21, RESIDUAL], ids=["wan21", "residual"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_chunks_of_any_size_give_the_same_pixels(config, frames):
    vae = autoencoder(config)
    z = torch.randn(2, 4, frames, 4, 6)
    wanted = decode(vae, z)
    for budget in (1, 1 << 17, 1 << 30):
        got = fast(vae, z, None, budget)
        assert got.shape == wanted.shape and psnr(got, wanted) > 100


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation gives within the block."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


@pytest.mark.parametrize("config", [WAN21, RESIDUAL], ids=["wan21", "residual"])
def test_a_chunk_takes_no_more_memory_than_it_may(config):
    vae, z = autoencoder(config), torch.randn(1, 4, 9, 4, 6)
    with torch.no_grad(), Largest() as one:
        list(decoded_chunks(vae, z, torch.float32, 1))
    for frames in (1, 4):
        with torch.no_grad(), Largest() as found:
            list(decoded_chunks(vae, z, torch.float32, frames * one.bytes))
        assert found.bytes <= 1.2 * frames * one.bytes  # but for the history in front of a convolution's input


@pytest.mark.parametrize("config", [WAN21, SHORT, RESIDUAL], ids=["wan21", "padded", "residual"])
def test_as_a_gpu_has_it_biases_later_and_channels_padded(config):
    vae = autoencoder(config)
    z = torch.randn(1, 4, 3, 2, 3)
    decoder = Decoder(vae, torch.float32, for_gpu=True)
    got = torch.cat([decoder.chunk(z[:, :, :2], False), decoder.chunk(z[:, :, 2:], True)], 2)
    assert psnr(got, decode(vae, z)) > 100


def test_channels_are_padded_where_that_costs_a_third_at_most():
    assert [_width(n) for n in (96, 192, 384, 64, 100, 12, 16, 32, 130)] == [128, 192, 384, 64, 128, 12, 16, 32, 130]


def test_a_mistake_in_what_was_seen_before_shows(monkeypatch):
    vae = autoencoder(WAN21)
    z = torch.randn(1, 4, 3, 4, 4)
    wanted = decode(vae, z)
    monkeypatch.setattr(Decoder, "_remember", lambda self, conv, padded: padded.index_fill_(1, torch.tensor([0, 1]), 0))
    got = torch.cat(list(decoded_chunks(vae, z, torch.float32, 1)), 2)
    assert psnr(got, wanted) < 60


def test_bf16_is_close():
    vae = autoencoder(WAN21)
    z = torch.randn(1, 4, 3, 6, 6)
    wanted = decode(vae, z)
    got = fast(vae, z, torch.bfloat16)
    assert got.dtype == torch.bfloat16 and 35 < psnr(got, wanted) < 100


def test_chunks_come_one_by_one():
    vae = autoencoder(WAN21)
    z = torch.randn(1, 4, 4, 2, 2)
    assert [part.shape[2] for part in decoded_chunks(vae, z, torch.float32, 1)] == [1, 4, 4, 4]


@pytest.mark.parametrize("size", [(6, 6), (6, 4), (4, 6)])  # tiles are 4 x 4 latents
def test_tiles_stay_diffusers_own(size):
    vae = autoencoder(WAN21)
    vae.enable_tiling(32, 32, 24, 24)
    z = torch.randn(1, 4, 2, *size)
    assert torch.equal(fast(vae, z), decode(vae, z))


def test_what_fits_is_twelve_times_the_largest_activation():
    """One latent frame of Wan2.1's shape becomes 4 frames of 8 x 8 pixels each, 192 channels wide at their widest."""
    vae = autoencoder(WAN21)
    z = torch.randn(1, 4, 3, 6, 6)
    samplers = [m for m in vae.decoder.modules() if hasattr(m, "resample")]
    largest = 6 * 6 * 64 * 4 * samplers[-1].dim * 2
    assert fits(vae, z, torch.bfloat16, 12 * largest) and not fits(vae, z, torch.bfloat16, 12 * largest - 1)
    assert not fits(vae, z, torch.float32, 12 * largest)


def test_tiles_are_off_again_afterwards():
    vae = autoencoder(WAN21)
    with pytest.raises(RuntimeError), tiling(vae):
        assert vae.use_tiling
        raise RuntimeError
    assert not vae.use_tiling


def test_nano():
    vae = AutoencoderKLWan.from_pretrained(weights_dir() / "nano" / "vae").eval()
    z = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert psnr(fast(vae, z), decode(vae, z)) > 100
