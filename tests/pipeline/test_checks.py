"""A video that is not one is caught, and one that is passes."""

from __future__ import annotations

import numpy as np
import pytest
import refusal
import torch

from fpsgen.errors import NUMERIC
from fpsgen.pipeline.checks import check_latents, latents_spread
from fpsgen.pipeline.decode import checked


def clip(seed: int = 0, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    """A smooth random video [1, 3, 5, 16, 24] in [low, high]."""
    coarse = torch.rand(1, 3, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    video = torch.nn.functional.interpolate(coarse, size=(5, 16, 24), mode="trilinear")
    return low + (high - low) * video


def frames_of(video: torch.Tensor) -> torch.Tensor:
    """As a video is decoded: in parts."""
    return torch.from_numpy(np.concatenate(list(checked(iter(video.split(2, dim=2))))))


def refused(function, *arguments) -> str:
    return refusal.refused(lambda: function(*arguments), NUMERIC, remedy="--method bf16").message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (0, 2, 4, 15, 23), (0, 1, 2, 8, 8)])
def test_one_bad_value_is_enough(value, place):
    latents, video = torch.randn(1, 3, 5, 16, 24), clip()
    latents[place] = video[place] = value
    assert "step 3 of 4" in refused(check_latents, float(latents_spread(latents)), "step 3 of 4")
    assert f"frame {place[2]}" in refused(frames_of, video)


@pytest.mark.parametrize("value", [-3.0, -1.0, 0.0, 0.3, 1.0, 7.0])
def test_flat_videos(value):
    assert "flat" in refused(frames_of, torch.full((1, 3, 5, 16, 24), value))
    assert "constant" in refused(
        check_latents, float(latents_spread(torch.full((1, 4, 2, 4, 4), value))), "step 1 of 4"
    )


def test_flat_frames_of_changing_brightness_are_flat():
    video = torch.linspace(-1, 1, 5).view(1, 1, 5, 1, 1).expand(1, 3, 5, 16, 24)
    assert "flat" in refused(frames_of, video)


def test_two_hundred_good_videos_pass():
    for seed in range(200):
        frames = frames_of(clip(seed, -0.2, 0.0))  # dim, little contrast
        assert frames.shape == (5, 16, 24, 3) and frames.dtype == torch.uint8
        check_latents(float(latents_spread(torch.randn(1, 4, 2, 4, 4) * 1e-3)), "the end")


def test_colours_and_order():
    video = torch.full((1, 3, 5, 16, 24), -1.0)
    video[0, 0, 2, :, 3:6] = 1.0
    frames = frames_of(video)
    assert frames[2, 5, 4].tolist() == [255, 0, 0] and int(frames[[0, 1, 3, 4]].sum()) == 0


def test_a_night_sky_with_one_star_passes():
    video = torch.full((1, 3, 5, 160, 256), -0.95)
    video[..., 40:44, 100:104] = 1.0
    frames_of(video)


def test_one_frame_that_is_not_flat_is_enough():
    video = torch.full((1, 3, 5, 16, 24), 0.3)
    video[:, :, 4] = clip()[:, :, 4]
    frames_of(video)
