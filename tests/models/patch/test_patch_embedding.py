"""The patch embedding as a product gives what the convolution gives, where the blocks read it without a copy."""

import accelerated as case
import pytest
import torch

from fpsgen import apply
from fpsgen.models.patch.patch_embedding import PatchEmbedding, embed


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 3)])
def test_equals_the_convolution(patch):
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(6, 40, patch, stride=patch)
    latents = torch.randn(2, 6, 5, 9, 13)  # some sides are no multiples
    with torch.no_grad():
        wanted, made = convolution(latents), embed(latents, convolution.weight, convolution.bias)
    assert made.shape == wanted.shape
    assert torch.allclose(made, wanted, atol=1e-5)
    assert not torch.allclose(made.flip(-1), wanted, atol=1e-1)
    tokens = made.flatten(2).transpose(1, 2)
    assert tokens.is_contiguous() and tokens.data_ptr() == made.data_ptr()


def test_it_is_put_on_and_taken_off():
    transformer = case.transformer()
    with apply(transformer, case.DENSE, linear="bf16"):
        assert type(transformer.patch_embedding) is PatchEmbedding
    assert type(transformer.patch_embedding) is torch.nn.Conv3d
    with apply(transformer, case.DENSE, linear="bf16", exact=True):
        assert type(transformer.patch_embedding) is torch.nn.Conv3d
