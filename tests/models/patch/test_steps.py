"""Where in a denoising loop a forward is: from the pipeline, else from the scheduler, else from the timesteps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wan_cases as case
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanVideoToVideoPipeline
from PIL import Image
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.models.patch.noise_level import NoiseLevels
from fpsgen.models.patch.stack import Run
from fpsgen.models.wan.load import load

MIXED = case.mixed(case.SPARSE, case.OTHER)


@pytest.fixture
def image_to_video(tiny_dir) -> WanImageToVideoPipeline:
    """Tells cache_context the branch, but neither step nor sigma."""
    parts = load(tiny_dir).components
    torch.manual_seed(0)
    parts["transformer"] = tiny_transformer(inputs=12)
    pipe = WanImageToVideoPipeline(**parts, image_processor=None, image_encoder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def video_to_video(tiny_dir) -> WanVideoToVideoPipeline:
    """Tells nothing: it does not use cache_context."""
    parts = load(tiny_dir).components
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe = WanVideoToVideoPipeline(**{name: parts[name] for name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture() -> Image.Image:
    return Image.fromarray(np.random.RandomState(1).randint(0, 255, (96, 112, 3), dtype=np.uint8))


def from_video(pipe, steps: int, guidance: float = 3.0) -> torch.Tensor:
    """Latents of a loop that leaves out the first 3/10 of the steps."""
    return pipe(
        video=[picture()] * 17,
        prompt="a cat",
        negative_prompt="x",
        height=96,
        width=112,
        strength=0.7,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        max_sequence_length=16,
    ).frames


def sigmas(pipe, first: int = 0) -> list[float]:
    return [round(float(sigma), 6) for sigma in pipe.scheduler.sigmas[first:-1]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_image_to_video_has_steps(image_to_video, guidance, monkeypatch):
    monkeypatch.setattr(NoiseLevels, "_read", lambda *_: pytest.fail("the timestep tensor was read"))
    handle = apply(image_to_video, MIXED)
    for steps in (6, 6, 1, 1, 4):
        case.video(image_to_video, steps, guidance, image=picture())
        rows = handle.report()["steps"]
        assert [row["index"] for row in rows] == list(range(steps))
        assert [row["sigma"] for row in rows] == sigmas(image_to_video)
        assert {row["calls"] for row in rows} == {4 if guidance > 1 else 2}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_video_to_video_has_steps(video_to_video, guidance):
    handle = apply(video_to_video, MIXED)
    for steps in (10, 10, 2, 2):
        from_video(video_to_video, steps, guidance)
        first, rows = steps - int(0.7 * steps), handle.report()["steps"]
        assert [row["index"] for row in rows] == list(range(first, steps))
        assert [row["sigma"] for row in rows] == sigmas(video_to_video, first)
        assert {row["calls"] for row in rows} == {4 if guidance > 1 else 2}


def test_a_scheduler_set_after_apply_is_followed(image_to_video):
    handle = apply(image_to_video, MIXED)
    image_to_video.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    case.video(image_to_video, 5, image=picture())
    rows = handle.report()["steps"]
    assert [row["index"] for row in rows] == list(range(5)) and [row["sigma"] for row in rows] == sigmas(image_to_video)


def test_steps_of_a_bare_transformer_follow_from_its_timesteps(video_to_video):
    handle = apply(video_to_video.transformer, MIXED)
    for _ in range(2):
        from_video(video_to_video, 10)
        rows = handle.report()["steps"]
        assert [row["index"] for row in rows] == list(range(7)) and {row["calls"] for row in rows} == {4}


def test_the_same_plans_with_and_without_cache_context(tiny_dir, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def silent(self, name, **values):
        yield

    pipe = load(tiny_dir)
    handle = apply(pipe, MIXED)
    video, report = case.video(pipe, steps=5), handle.report()
    monkeypatch.setattr(type(pipe.transformer), "cache_context", silent)
    assert torch.equal(case.video(pipe, steps=5), video)
    assert handle.report() == report


@pytest.fixture
def levels() -> NoiseLevels:
    return NoiseLevels(Run(MIXED, None, False), lambda: None)


def test_a_timestep_changed_in_place_has_a_new_sigma(levels, monkeypatch):
    """On a GPU a tensor is read once, and again when it was written to; on a CPU it is read each time."""
    timestep = torch.tensor([900.0])
    assert levels.position(timestep, training=False).sigma == pytest.approx(0.9)
    timestep.numpy()[:] = 300.0  # unseen by the tensor's count of writes
    assert levels.position(timestep, training=False).sigma == pytest.approx(0.3)

    class OnGpu:
        """Stands for a CUDA tensor: counts how often it is read."""

        device, dtype = SimpleNamespace(type="cuda"), torch.float32
        value, reads, _version = 900.0, 0, 0

        def is_inference(self):
            return False

        def aminmax(self):
            self.reads += 1
            return torch.tensor(self.value), torch.tensor(self.value)

    tensor = OnGpu()
    assert [levels._read(tensor)[1] for _ in range(3)] == [pytest.approx(0.9)] * 3 and tensor.reads == 1
    tensor.value, tensor._version = 300.0, 1
    assert levels._read(tensor)[1] == pytest.approx(0.3)
    other = OnGpu()
    assert levels._read(other)[1] == pytest.approx(0.9)


def test_an_inference_tensor_is_read_each_time(levels):
    with torch.inference_mode():
        timestep = torch.tensor([900.0])
        assert levels.position(timestep, training=False).sigma == pytest.approx(0.9)
        timestep.fill_(300.0)
        assert levels.position(timestep, training=False).sigma == pytest.approx(0.3)


def test_a_schedule_changed_in_place_is_read_again():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    levels = NoiseLevels(Run(MIXED, None, False), lambda: scheduler)

    def position(index: int):
        return levels.position(scheduler.timesteps[index].expand(2), training=False)

    assert [position(i).index for i in range(4)] == [0, 1, 2, 3]
    assert [position(i).sigma for i in range(4)] == pytest.approx(scheduler.sigmas[:4].tolist())
    scheduler.timesteps[2] = 10.0
    scheduler.sigmas[2] = 0.01
    assert position(2).sigma == pytest.approx(0.01)


def test_what_is_no_entry_of_the_schedule_is_read():
    """Planted: a view that starts where an entry does, but holds others; a copy; a value of no step."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    levels = NoiseLevels(Run(MIXED, None, False), lambda: scheduler)
    both = levels.position(scheduler.timesteps[1:3], training=False)
    assert both.index == 1 and (both.sigma, both.lowest) == pytest.approx(scheduler.sigmas[1:3].tolist())
    copied = levels.position(scheduler.timesteps[3].clone().expand(2), training=False)
    assert copied.index == 3 and copied.loop is scheduler.timesteps
    free = levels.position(torch.tensor([333.0]), training=False)
    assert free.sigma == pytest.approx(0.333) and free.loop is None


@pytest.mark.parametrize("with_steps", [False, True])
def test_a_scheduler_may_round_above_1(tiny_dir, image_to_video, with_steps):
    """FlowMatchEuler's first sigma is 1.0000954 at this shift."""
    pipe = load(tiny_dir) if with_steps else image_to_video
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=0.01)
    handle = apply(pipe, MIXED)
    case.video(pipe, 4, **({} if with_steps else {"image": picture()}))
    assert float(pipe.scheduler.sigmas[0]) > 1 + 1e-6
    assert [row["sigma"] for row in handle.report()["steps"]] == [1.0, *sigmas(pipe)[1:]]


def test_forwards_with_gradients_are_no_steps(tiny_dir):
    transformer = load(tiny_dir).transformer
    handle = apply(transformer, MIXED)
    for timestep in (900, 100, 900):
        transformer(**case.inputs() | {"timestep": torch.tensor([timestep] * 2)})
    rows = handle.report()["steps"]
    assert [(row["index"], row["profile"], row["calls"]) for row in rows] == [(None, "sparse", 4), (None, "other", 2)]
