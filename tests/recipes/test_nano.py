"""The world can be read back, captions leave nothing to guess, the embedded model is whole and has its schedule."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import islice, product

import pytest
import torch

from fpsgen.assets import weights_dir
from fpsgen.attention.schedule import Schedule
from fpsgen.evaluate.nano import captions, world
from fpsgen.evaluate.nano.meter import Meter, score
from fpsgen.evaluate.nano.prompts import unseen
from fpsgen.train.sigmas import draw_sigmas
from recipes.nano import __main__ as recipe
from recipes.nano import autoencoder, denoiser
from recipes.nano.evaluate import psnr
from recipes.nano.optim import orthogonalize
from recipes.nano.release import LIMIT
from recipes.nano.train_denoiser import Windows

NANO = weights_dir() / "nano"


@pytest.fixture(scope="module")
def clips():
    """A few scenes and their clips [B, 3, T, H, W], every subject and motion among them."""
    scenes = [
        world.Scene(subject, colour, motion, background)
        for subject, colour, motion, background in (
            ("ball", "red", "bouncing", "grass"),
            ("star", "blue", "circling", "night"),
            ("cat", "orange", "surfing", "sea"),
            ("fish", "green", "left", "gray"),
            ("boat", "white", "right", "teal"),
            ("triangle", "purple", "growing", "beige"),
            ("square", "yellow", "up", "black"),
            ("bird", "pink", "shrinking", "gray"),
        )
    ]
    video, mask = world.Renderer(seed=3).render(scenes)
    return scenes, video, mask


def test_the_world_has_its_size_and_moves(clips):
    scenes, video, mask = clips
    assert video.shape == (len(scenes), 3, world.FRAMES, world.HEIGHT, world.WIDTH) and video.abs().max() <= 1
    assert ((video[:, :, 0] - video[:, :, 7]).abs().amax((1, 2, 3)) > 0.3).all()
    assert 0.002 < mask.mean() < 0.3


def test_the_meter_reads_clean_renders(clips):
    scenes, video, _ = clips
    some = [0, 1, 2, 4, 7]  # a clip takes the meter seconds
    figures = score(Meter(torch.device("cpu"))(video[some]), [scenes[i] for i in some])
    assert all(figures[axis] == 100 for axis in ("subject", "colour", "motion", "background", "direction"))


def test_the_meter_sees_what_is_wrong(clips):
    scenes, video, _ = clips
    meter = Meter(torch.device("cpu"))
    assert score(meter(video[3:4].flip(2)), scenes[3:4])["direction"] == 0  # time reversed
    assert score(meter(video[:2, [2, 1, 0]]), scenes[:2])["colour"] == 0  # red and blue exchanged
    assert score(meter(torch.zeros_like(video[:1])), scenes[:1])["subject"] == 0


def test_equal_seeds_equal_clips():
    scenes = [world.random_scene(random.Random(1))]
    a, b, c = (world.Renderer(seed=seed).render(scenes)[0] for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_training_never_sees_held_out_combinations():
    rng = random.Random(0)
    seen = {(s.subject, s.colour, s.motion) for s in (world.random_scene(rng) for _ in range(20_000))}
    kept = {(s.subject, s.colour, s.motion) for s in unseen(216)}
    assert kept and not kept & seen
    assert len({captions.plain(scene) for scene in unseen(216)}) == 216 and unseen(216) == unseen(216)


def test_captions_stay_in_the_vocabulary_and_leave_things_out():
    words = set(captions.vocabulary())
    lengths, rng = Counter(), random.Random(2)
    for _ in range(3000):
        text, _scene = captions.random_example(rng)
        assert set(text.replace(",", " ").split()) <= words, text
        lengths[len(text.split())] += 1
    assert len(lengths) >= 5
    tokenizer = denoiser.build_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids(tokenizer.unk_token)
    ids = denoiser.token_ids(tokenizer, ["a cat surfing", "a red ball bouncing over grass", "a zebra"])
    assert unknown not in ids[:2] and unknown in ids[2]


def test_a_whole_clip_at_once_equals_chunks():
    """The fast decoder of training gives what stock diffusers gives, frame by frame with caches."""
    torch.manual_seed(0)
    vae = autoencoder.build().eval()
    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        stock = vae.encode(video).latent_dist.mode()
        stock_back = vae.decode(stock).sample
        whole = autoencoder.whole_clip(vae)
        latents = autoencoder.encode_clip(whole, video)[0]
        torch.testing.assert_close(latents, stock, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(autoencoder.decode_clip(whole, stock).clamp(-1, 1), stock_back, atol=1e-4, rtol=1e-3)


def test_sigmas_stay_in_their_window_and_follow_the_law():
    for low, high in ((0.0, 1.0), (0.2, 0.5), (0.93, 1.0)):
        sigma = draw_sigmas(4096, denoiser.FLOW_SHIFT, low, high)
        assert sigma.min() >= low - 1e-6 and sigma.max() <= high + 1e-6
    t = torch.sigmoid(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    law = 3 * t / (1 + 2 * t)
    drawn = draw_sigmas(200_000, denoiser.FLOW_SHIFT)
    for share in (0.1, 0.5, 0.9):
        assert abs(drawn.quantile(share) - law.quantile(share)) < 0.01


def test_windows_cover_the_schedule():
    plan = Schedule.from_file(recipe.SCHEDULE)
    windows = Windows(None, plan, random.Random(0))
    drawn = Counter()
    for _ in range(300):
        sigma = windows.draw(8, torch.device("cpu"))[1]
        names = {plan.profile_at(float(s)).name for s in sigma.clamp(max=1.0)}
        assert len(names) == 1  # a step belongs to one profile
        drawn.update(names)
    assert set(drawn) == {"early", "middle", "late"} and min(drawn.values()) > 30


def test_muon_orthogonalizes():
    g = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(g).float())
    assert singular.min() > 0.5 and singular.max() < 1.4


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 4, 8, 8)
    b = a + torch.tensor([0.02, 0.2]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(a, b), torch.tensor([40.0, 20.0]), atol=1e-3, rtol=0)


def test_the_embedded_model_is_whole_and_small():
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= LIMIT == 16_000_000
    assert not list(NANO.rglob("*.bin")) and not list(NANO.rglob("*.pt"))
    for config in NANO.rglob("*config.json"):
        assert "_name_or_path" not in config.read_text()


def test_stock_diffusers_loads_the_embedded_model():
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(NANO, dtype=torch.float32)
    kinds = {name: type(part).__name__ for name, part in pipe.components.items() if part is not None}
    assert kinds["transformer"] == "WanTransformer3DModel" and kinds["vae"] == "AutoencoderKLWan"
    assert kinds["text_encoder"] == "UMT5EncoderModel" and kinds["scheduler"] == "UniPCMultistepScheduler"


def test_the_embedded_model_carries_the_schedule_it_was_trained_with():
    own, recorded = Schedule.from_file(NANO / "schedule.toml"), Schedule.from_file(recipe.SCHEDULE)
    assert own == recorded and own.trained
    assert replace(own, trained=False) != own


def test_its_autoencoder_keeps_the_picture():
    """One clip there and back, at reduced size; the full gate runs in training (train_autoencoder.py)."""
    from diffusers import AutoencoderKLWan

    vae = autoencoder.whole_clip(AutoencoderKLWan.from_pretrained(NANO / "vae", dtype=torch.float32).eval())
    video, _ = world.Renderer(seed=9).render([world.Scene("cat", "orange", "surfing", "sea")])
    video = video[:, :, :9, :96, :128]
    with torch.no_grad():
        back = autoencoder.decode_clip(vae, autoencoder.encode_clip(vae, video)[0])
    assert psnr(video, back.clamp(-1, 1)).item() > 30


def test_the_recipe_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Stages in order, done ones skipped, a missed gate ends it."""
    ran = []

    class Done:
        returncode = 0

    def run(command):
        name, marker, _ = next(stage for stage in recipe.stages(tmp_path) if command[3:] == stage[2][1:])
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("{}")
        if name == "measurement":
            row = {"run": "fps", "colour": 99.0, "subject": 59.0, "direction": 99.0}
            marker.write_text(json.dumps({"rows": [row]}))
        ran.append(name)
        return Done

    monkeypatch.setattr(recipe.subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["nano", "--out", str(tmp_path)])
    first = next(iter(recipe.stages(tmp_path)))[1]
    first.parent.mkdir(parents=True)
    first.write_text("{}")
    assert recipe.main() == 1 and "subject 59.0 % < 60.0 %" in capsys.readouterr().err
    assert ran == [name for name, _, _ in islice(recipe.stages(tmp_path), 1, None)]


def test_every_palette_colour_is_far_from_every_background():
    for colour, ground in product(world.COLOURS.values(), world.PLAIN.values()):
        assert sum((a - b) ** 2 for a, b in zip(colour, ground, strict=True)) > 900, (colour, ground)
