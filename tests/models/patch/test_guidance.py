"""Both branches of guidance in one forward give what two forwards give."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import wan_cases as case

from fpsgen import apply
from fpsgen.models.patch.guidance import guidance_in_one_batch
from fpsgen.models.wan.load import load


@pytest.fixture
def pipe(tiny_dir):
    pipe = load(tiny_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def samples(pipe) -> list[int]:
    """Samples of each forward of the transformer."""
    seen: list[int] = []
    pipe.transformer.patch_embedding.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    return seen


def video(pipe, batched: bool, guided_steps: int = 3, **changes) -> torch.Tensor:
    """Latents of a loop of 3 steps, of which the first have guidance."""
    texts = pipe.encode_prompt("a cat", "a dog with a hat", max_sequence_length=16)
    context = nullcontext()
    if batched:
        context = guidance_in_one_batch(pipe.transformer, *texts, lambda: pipe.do_classifier_free_guidance)

    def after_step(pipe, index, timestep, tensors):
        pipe._guidance_scale = 3.0 if index + 1 < guided_steps else 1.0
        return tensors

    given = {"prompt": None, "negative_prompt": None, "callback_on_step_end": after_step}
    given |= {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1]}
    settings = {"height": 96, "width": 112, "num_frames": 17, "output_type": "latent", "max_sequence_length": 16}
    with context:
        return pipe(
            num_inference_steps=3,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            **settings | given | changes,
        ).frames


@pytest.mark.parametrize("profile", [None, case.DENSE, case.SPARSE, case.FP8])
def test_the_same_video(pipe, samples, profile):
    with nullcontext() if profile is None else apply(pipe, case.one(profile), strict=True):
        two = video(pipe, False)
        assert samples == [1] * 6
        one = video(pipe, True)
        assert samples[6:] == [2] * 3
    # an FP8 code may round to its neighbour where a sum has another order
    assert case.difference(one, two) < (2e-2 if profile is case.FP8 else 2e-5) < float(two.std()) / 20


def test_without_guidance_a_step_has_one_sample(pipe, samples):
    two = video(pipe, False, guided_steps=1)
    samples.clear()
    one = video(pipe, True, guided_steps=1)
    assert samples == [2, 1, 1]
    assert case.difference(one, two) < 2e-5


def test_the_record_counts_one_call_for_both(pipe):
    with apply(pipe, case.one(case.SPARSE), strict=True) as handle:
        video(pipe, True)
        steps = handle.report()["steps"]
        assert [step["index"] for step in steps] == [0, 1, 2]
        assert [step["calls"] for step in steps] == [2, 2, 2]  # layers
        video(pipe, True)
        assert handle.report()["steps"] == steps


def test_afterwards_nothing_is_left(pipe, samples):
    before = set(vars(pipe.transformer))
    with pytest.raises(RuntimeError, match="stop"), guidance_in_one_batch(pipe.transformer, *texts(pipe), lambda: True):
        raise RuntimeError("stop")
    video(pipe, False)
    assert samples == [1] * 6
    assert pipe.transformer._diffusers_hook.hooks == {}
    assert set(vars(pipe.transformer)) - before <= {"_diffusers_hook", "forward"}


def texts(pipe) -> tuple[torch.Tensor, torch.Tensor]:
    return pipe.encode_prompt("a cat", "x", max_sequence_length=16)
