"""Moving patches: exact, invertible, differentiable, and the same as moving tokens."""

from __future__ import annotations

import pytest
import torch

from fpsgen.models.patch.patch_permute import move_patches, patch_grid


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_moving_there_and_back(patch):
    x = torch.randn(2, 3, 4, 8, 12)
    length = 4 * 8 * 12 // (patch[0] * patch[1] * patch[2])
    index = torch.randperm(length)
    assert torch.equal(move_patches(move_patches(x, patch, index), patch, index.argsort()), x)
    assert not torch.equal(move_patches(x, patch, index), x)


def test_it_is_the_order_that_the_patch_embedding_sees():
    x = torch.randn(1, 3, 2, 7, 9)  # the last row and column do not fill a patch
    embed = torch.nn.Conv3d(3, 5, (1, 2, 2), (1, 2, 2))
    index = torch.randperm(2 * 3 * 4)
    assert patch_grid(x, (1, 2, 2)) == (2, 3, 4)
    tokens = embed(x).flatten(2)
    assert torch.allclose(embed(move_patches(x, (1, 2, 2), index)).flatten(2), tokens[:, :, index], atol=1e-6)


def test_the_gradient_goes_back_to_its_patch():
    x = torch.randn(1, 2, 2, 4, 4, dtype=torch.double, requires_grad=True)
    index = torch.randperm(2 * 2 * 2)
    assert torch.autograd.gradcheck(lambda y: move_patches(y, (1, 2, 2), index), x)
