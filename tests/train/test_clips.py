"""Flow matching: noise levels, data folders, and what a step sees."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusal import refuses
from safetensors.torch import save_file

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT
from fpsgen.models.catalog.manifest import sha256
from fpsgen.train import clips as clips_module
from fpsgen.train.clips import Clips, TrajectoryEnds, open_folder
from fpsgen.train.data import Batch
from fpsgen.train.sigmas import draw_sigmas, share

from .conftest import SCHEDULE

PLAN = Schedule.from_toml(SCHEDULE)
SIZE = (64, 64, 9)
MODEL = {"in_channels": 4, "text_dim": 32}


def write_folder(folder: Path, counts=(3, 2), held_out=(4,), **changes) -> Path:
    """Sample N has latents and text of N."""
    folder.mkdir()
    shards, first = [], 0
    for number, count in enumerate(counts):
        path = folder / f"{number:05d}.safetensors"
        rows = torch.arange(first, first + count).float()
        tensors = {"latents": rows.view(-1, 1, 1, 1, 1).expand(-1, 4, 3, 8, 8).half().contiguous()}
        save_file(tensors | {"text": rows.view(-1, 1, 1).expand(-1, 4, 32).bfloat16().contiguous()}, path)
        shards.append({"name": path.name, "size": path.stat().st_size, "sha256": sha256(path), "samples": count})
        first += count
    save_file({"text": torch.full((1, 4, 32), -1.0).bfloat16()}, folder / "null.safetensors")
    table = {"schema": "fpsgen.data/1", "model": "tiny", "width": 64, "height": 64, "frames": 9, "fps": 8}
    table |= {"samples": first, "digest": "", "held_out": list(held_out), "shards": shards}
    (folder / "data.json").write_text(json.dumps(table | changes))
    return folder


@pytest.fixture
def clips(tmp_path) -> tuple[Clips, Clips]:
    return open_folder(write_folder(tmp_path / "data"), SIZE, MODEL, PLAN, 5.0)


def test_noise_levels_are_logit_normal_under_the_shift():
    """Median, and shares below cuts, against a sample drawn by the definition."""
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    plain = torch.sigmoid(normal)
    wanted = 5 * plain / (1 + 4 * plain)
    found = draw_sigmas(20_000, 5.0, generator=torch.Generator().manual_seed(1))
    for cut in (0.3, 0.6, 0.83, 0.95):
        assert float((found < cut).float().mean()) == pytest.approx(float((wanted < cut).float().mean()), abs=5e-3)
        assert share(cut, 5.0) == pytest.approx(float((wanted < cut).float().mean()), abs=5e-3)
    assert (share(0.0, 5.0), share(1.0, 5.0)) == (0.0, 1.0)
    parts = sorted(share(float(sigma), 5.0) * 40 for sigma in draw_sigmas(40, 5.0))  # one of each 40th part
    assert all(number - 0.01 <= part <= number + 1.01 for number, part in enumerate(parts))
    for low, high in ((0.9, 1.0), (0.9995, 1.0), (0.0, 0.0005)):  # the last two lie beyond nearly all levels
        within = draw_sigmas(100, 3.0, low, high)
        assert float(within.min()) >= low - 1e-7 and float(within.max()) <= high + 1e-7


def test_a_step_sees_rows_that_belong_together(clips):
    for step in range(30):
        batch = clips[0].draw(step, 3, 2, 0.3)
        clean = batch.latents - batch.sigmas.view(-1, 1, 1, 1, 1) * batch.velocity
        for number, text in zip(clean, batch.text, strict=True):
            sample = float(number.mean())
            assert number.std() < 1e-4 and round(sample) in (0, 1, 2, 3)
            assert float(text.float().mean()) in (-1.0, round(sample))
        assert {PLAN.profile_at(sigma).name for sigma in batch.sigmas.tolist()} == {batch.profile}
        assert torch.equal(batch.timesteps, 1000 * batch.sigmas)


def test_prompts_are_dropped_sample_by_sample(clips):
    texts = torch.cat([clips[0].draw(step, 0, 4, 0.25).text[:, 0, 0].float() for step in range(200)])
    assert 0.2 < float((texts < 0).float().mean()) < 0.3


def test_draws_follow_from_seed_and_step_alone(clips):
    first = [clips[0].draw(step, 3, 2, 0.5).latents for step in range(9)]
    again = [clips[0].draw(step, 3, 2, 0.5).latents for step in reversed(range(9))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], clips[0].draw(0, 4, 2, 0.5).latents)
    for name in clips[1].profiles:
        a, b = (next(clips[1].every(name, 1)) for _ in range(2))
        assert torch.equal(a.latents, b.latents)


def test_samples_held_out_are_not_trained_on(clips):
    assert (len(clips[0]), len(clips[1])) == (4, 1)
    held = next(clips[1].every("late", 1))
    assert float((held.latents - held.sigmas * held.velocity).mean()) == pytest.approx(4.0, abs=1e-4)


def test_rare_profiles_are_drawn_often(clips):
    """Levels from 0.9 up are 27 % of all at shift 5; half of the steps draw evenly."""
    mass = 1 - share(0.9, 5.0)
    found = [clips[0].draw(step, 0, 1, 0.0).profile for step in range(600)].count("early") / 600
    assert found == pytest.approx((0.5 + mass) / 2, abs=0.06)


def test_windows_of_one_profile_are_drawn_by_how_often_levels_fall_there(tmp_path):
    """At shift 5, levels from 0.9 up are 27 % of all, those up to 0.5 are 5 %."""
    names = [profile.name for profile in PLAN.profiles]
    plan = replace(PLAN, windows=((0.0, 0.5, names[0]), (0.5, 0.9, names[1]), (0.9, 1.0, names[0])))
    source, _ = open_folder(write_folder(tmp_path / "data"), SIZE, MODEL, plan, 5.0)
    drawn = [batch for step in range(300) if (batch := source.draw(step, 0, 1, 0.0)).profile == names[0]]
    low, high = share(0.5, 5.0), 1 - share(0.9, 5.0)
    assert sum(float(batch.sigmas) < 0.5 for batch in drawn) / len(drawn) == pytest.approx(low / (low + high), abs=0.1)


@pytest.mark.parametrize("fault", ["size", "bytes", "missing", "schema", "none", "model"])
def test_folders_that_are_not_whole_are_refused(tmp_path, fault):
    folder = write_folder(tmp_path / "data", **({"schema": "other"} if fault == "schema" else {}))
    shard = folder / "00001.safetensors"
    if fault == "bytes":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif fault == "missing":
        shard.unlink()
    elif fault == "none":
        (folder / "data.json").unlink()
    with refuses(BAD_INPUT):
        model = MODEL | {"text_dim": 64} if fault == "model" else MODEL
        open_folder(folder, (128, 64, 9) if fault == "size" else SIZE, model, PLAN, 5.0)


def test_digests_are_compared_again_where_a_file_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, read = write_folder(tmp_path / "data"), []
    monkeypatch.setattr(clips_module, "sha256", lambda path: read.append(path.name) or sha256(path))
    for count in (2, 2):  # shards that were read after the first and the second time
        open_folder(folder, SIZE, MODEL, PLAN, 5.0)
        assert len(read) == count
    shard = folder / "00001.safetensors"
    was = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(was.st_atime_ns, was.st_mtime_ns))
    for _ in range(2):  # what is broken gets no stamp
        with refuses(BAD_INPUT, shard.name):
            open_folder(folder, SIZE, MODEL, PLAN, 5.0)


def test_flow_to_the_ends_of_trajectories():
    class Pairs:
        profiles = ("late",)

        def draw(self, step, seed, batch, null_share):
            shape = (batch, 1, 1, 2, 2)
            sigmas = torch.full((batch,), 0.5)
            ones = torch.ones(shape)
            return Batch(9 * ones, 9 * ones, 3 * ones, sigmas, 1000 * sigmas, torch.zeros(batch, 1, 1), "late")

    batch = TrajectoryEnds(Pairs()).draw(1, 0, 2, 0.0)
    assert torch.allclose(batch.latents - 0.5 * batch.velocity, torch.full((2, 1, 1, 2, 2), 3.0))
    assert float((batch.velocity + 3.0).std()) > 0.5


def test_a_run_on_a_folder_of_videos(make_config, tmp_path):
    """No teacher, no prompts: nothing but flow matching."""
    from fpsgen.report.training import read_log
    from fpsgen.train.events import Silent
    from fpsgen.train.log import LOG
    from fpsgen.train.run import train

    folder = write_folder(tmp_path / "data")
    config = make_config(data=str(folder), distill=0.0, flow=1.0, prompts=(), held_out=0, steps=3)
    result = train(config, tmp_path / "run", torch.device("cpu"), Silent(), Silent())
    assert not (tmp_path / "run" / "pairs").exists()
    assert result.report["objective"] == "flow" and set(result.report["held_out_error"]["after"]) == {"early", "late"}
    assert [list(row["objectives"]) for row in read_log(tmp_path / "run" / LOG)] == [["flow"]] * 3
