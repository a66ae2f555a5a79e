"""A whole preparation on the tiny model: what the shards hold, what is dropped, what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import largest_file
from refusal import refuses
from safetensors import safe_open
from safetensors.torch import load_file
from stop import Stop

from fpsgen.errors import BAD_INPUT, DISK, LOCKED, FpsgenError
from fpsgen.files import lock
from fpsgen.train.events import Silent
from fpsgen.train.prep import shards
from fpsgen.train.prep.filters import Filters
from fpsgen.train.prep.frames import Box, clip_frames
from fpsgen.train.prep.run import prepare, sample_bytes
from fpsgen.train.prep.sources import find_sources
from fpsgen.train.prep.videos import PrepConfig

pytest.importorskip("cv2")
CPU = torch.device("cpu")
CONFIG = PrepConfig(64, 64, 9, 16, held_out=0.5)
VIDEOS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five good videos, two of them of two clips, and one for each reason to drop it."""
    from .conftest import write_clip

    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(VIDEOS):
        write_clip(folder / f"{name}.mp4", number, f"video {name}", frames=20 if name in "be" else 12)
    write_clip(folder / "f-again.mp4", 2)
    write_clip(folder / "f-empty.mp4", 6, caption=" ")
    write_clip(folder / "f-short.mp4", 7, frames=8)
    write_clip(folder / "f-slow.mp4", 8, fps=8)
    write_clip(folder / "f-small.mp4", 9, width=48, height=48)
    write_clip(folder / "f-still.mp4", 10, speed=0)
    (folder / "f-torn.mp4").write_bytes((folder / "a.mp4").read_bytes()[:3000])
    (folder / "f-torn.txt").write_text("torn")
    return folder


def run(data, choice, folder, events=None, **changes):
    return prepare(find_sources(data), replace(CONFIG, **changes), choice, folder, CPU, events or Silent())


@pytest.fixture(scope="module")
def done(data, tiny_choice, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prep") / "done"
    return folder, run(data, tiny_choice, folder)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder: Path) -> dict[str, str]:
    """Digest of each file."""
    files = [path for path in folder.iterdir() if path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_kept_is_in_the_shards(done, data, tiny_dir, tiny_choice):
    from fpsgen.models.wan.load import load

    folder, table = done
    assert json.loads((folder / "data.json").read_text()) == table
    rows = lines(folder / "captions.jsonl")
    assert [row["source"] for row in rows] == [f"{name}.mp4" for name in VIDEOS]
    assert [row["caption"] for row in rows] == [f"video {name}" for name in VIDEOS]
    [entry] = table["shards"]
    path = folder / entry["name"]
    assert entry["size"] == path.stat().st_size and entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["samples"] == table["samples"] == 5
    found = load_file(path)
    assert found["latents"].shape == (5, 4, 3, 8, 8) and found["latents"].dtype == torch.float16
    assert found["text"].dtype == torch.bfloat16
    pipe, length = load(tiny_dir), tiny_choice.spec.max_sequence_length
    for number, name in enumerate(VIDEOS):
        frames = clip_frames(data / f"{name}.mp4", 0, 9, 16, (64, 64), Box(1 / 12, 0, 10 / 12, 1))  # 96 x 80: 80 of 96
        video = torch.tensor(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        wanted = pipe.vae.encode(video).latent_dist.mean
        torch.testing.assert_close(found["latents"][number].float(), wanted[0], atol=2e-3, rtol=2e-3)
        text, _ = pipe.encode_prompt(f"video {name}", do_classifier_free_guidance=False, max_sequence_length=length)
        torch.testing.assert_close(found["text"][number], text[0].bfloat16())
    null, _ = pipe.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=length)
    torch.testing.assert_close(load_file(folder / "null.safetensors")["text"], null.bfloat16())


def test_latents_are_normalized_as_the_transformer_sees_them(tiny_dir):
    from fpsgen.models.wan.load import load
    from fpsgen.train.prep.encode import Encoder

    pipe = load(tiny_dir, transformer=False)
    assert pipe.transformer is None
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3)).astype(np.uint8)
    plain = Encoder(pipe, 8).latents(frames).float()
    mean, std = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 4.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    scaled = Encoder(pipe, 8).latents(frames).float()
    back = scaled * torch.tensor(std).view(4, 1, 1, 1) + torch.tensor(mean).view(4, 1, 1, 1)
    torch.testing.assert_close(back, plain, atol=5e-3, rtol=5e-3)


def test_what_is_dropped_has_its_reason(done):
    rows = {row["source"]: row for row in lines(done[0] / "dropped.jsonl")}
    wanted = {"again": "duplicate", "empty": "caption", "short": "duration", "slow": "fps", "small": "size"}
    wanted |= {"still": "flow", "torn": "unreadable"}
    assert {name: row["filter"] for name, row in rows.items()} == {f"f-{k}.mp4": v for k, v in wanted.items()}
    assert (rows["f-short.mp4"]["measure"], rows["f-short.mp4"]["threshold"]) == (0.5, 0.5625)
    assert "c.mp4" in rows["f-again.mp4"]["measure"]
    assert done[1]["dropped"] == dict.fromkeys(sorted(wanted.values()), 1) and done[1]["videos"] == 12
    assert "| dropped: flow |" in (done[0] / "summary.md").read_text()


def test_long_videos_give_several_clips_and_no_video_is_on_both_sides(data, tiny_choice, tmp_path):
    table = run(data, tiny_choice, tmp_path, clips=9, filters=Filters(duplicate=None))
    rows = lines(tmp_path / "captions.jsonl")
    assert [(row["source"], row["start"]) for row in rows if row["source"] in ("a.mp4", "b.mp4")] == [
        ("a.mp4", 0.0),
        *(("b.mp4", 9 * clip / 16) for clip in range(2)),
    ]
    sides = {(row["source"], row["held_out"]) for row in rows}
    assert len(sides) == len({name for name, _ in sides})
    assert sorted(name for name, out in sides if out) == ["b.mp4", "d.mp4", "f-again.mp4"]
    assert [number for number, row in enumerate(rows) if row["held_out"]] == table["held_out"]


def test_one_frame_has_no_motion_and_is_kept(tiny_choice, clip, tmp_path):
    clip(tmp_path / "in" / "a.mp4")
    run(tmp_path / "in", tiny_choice, tmp_path / "out", frames=1)
    assert lines(tmp_path / "out" / "captions.jsonl")[0]["flow"] is None
    assert load_file(tmp_path / "out" / "00000.safetensors")["latents"].shape == (1, 4, 1, 8, 8)


def test_black_bars_are_cropped(tiny_choice, tmp_path):
    from fpsgen.video import write_mp4

    from .conftest import moving

    frames = np.zeros((12, 160, 96, 3), np.uint8)
    frames[:, 40:120] = moving(1, 12)
    (tmp_path / "in").mkdir()
    write_mp4(frames, tmp_path / "in" / "a.mp4", 16)
    (tmp_path / "in" / "a.txt").write_text("a")
    for name, filters in (("cropped", Filters(bars=0.6)), ("whole", Filters(bars=None))):
        run(tmp_path / "in", tiny_choice, tmp_path / name, filters=filters)
    row = lines(tmp_path / "cropped" / "captions.jsonl")[0]
    assert row["bars"] == pytest.approx(0.5, abs=0.03)
    found = [load_file(tmp_path / name / "00000.safetensors")["latents"] for name in ("cropped", "whole")]
    assert not torch.allclose(found[0], found[1], atol=0.05)


@pytest.fixture(scope="module")
def unbroken(data, tiny_choice, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prep") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MOST", 2)
        run(data, tiny_choice, folder, clips=3)
    return folder


@pytest.mark.parametrize("stops", [[1], [5], [2, 2, 2], [11, 1]])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(unbroken, data, tiny_choice, tmp_path, monkeypatch, stops):
    monkeypatch.setattr(shards, "MOST", 2)
    for after in stops:
        with pytest.raises(KeyboardInterrupt):
            run(data, tiny_choice, tmp_path, Stop(after), clips=3)
    assert not (tmp_path / "data.json").exists()
    run(data, tiny_choice, tmp_path, clips=3)
    assert content(tmp_path) == content(unbroken)
    assert len(list(tmp_path.glob("0*.safetensors"))) == 4


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_change_nothing(data, tiny_choice, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST", 1)
    started = time.monotonic()
    run(data, tiny_choice, tmp_path / "unbroken")
    length = time.monotonic() - started
    chance = random.Random(0)
    for _ in range(12):
        child = os.fork()
        if not child:
            try:
                run(data, tiny_choice, tmp_path / "broken")
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run(data, tiny_choice, tmp_path / "broken")
    assert content(tmp_path / "broken") == content(tmp_path / "unbroken")


def test_what_is_done_is_not_done_again(done, data, tiny_choice, monkeypatch):
    before = content(done[0])
    monkeypatch.setattr("fpsgen.train.prep.run.load", None)
    assert run(data, tiny_choice, done[0]) == done[1]
    assert content(done[0]) == before


def test_a_torn_shard_is_named_and_made_again_when_it_is_gone(data, tiny_choice, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST", 2)
    run(data, tiny_choice, tmp_path)
    before = content(tmp_path)
    (tmp_path / "data.json").unlink()
    shard = tmp_path / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with refuses(BAD_INPUT, "00001"):
        run(data, tiny_choice, tmp_path)
    shard.unlink()
    run(data, tiny_choice, tmp_path)
    assert content(tmp_path) == before


def test_other_settings_or_videos_do_not_go_on_here(done, data, tiny_choice, clip, tmp_path):
    for changes, culprit in (
        ({"fps": 8}, "fps"),
        ({"filters": Filters(flow=None)}, "filters"),
        ({"clips": 2}, "clips"),
    ):
        with refuses(BAD_INPUT, culprit):
            run(data, tiny_choice, done[0], **changes)
    with refuses(BAD_INPUT, "videos and captions"):
        run(clip(tmp_path / "x.mp4").parent, tiny_choice, done[0])


def test_a_folder_in_use_is_refused(data, tiny_choice, tmp_path):
    with lock(tmp_path / ".lock", "busy", "wait"), refuses(LOCKED):
        run(data, tiny_choice, tmp_path)


def test_a_disk_that_is_too_small_is_said_before_the_work(data, tiny_choice, tmp_path, monkeypatch):
    need = 12 * sample_bytes(tiny_choice, CONFIG)
    sizes = []
    monkeypatch.setattr("fpsgen.train.prep.run.load", lambda *given, **more: sizes.append(1) or 1 / 0)
    for free, error in ((need - 1, FpsgenError), (need, ZeroDivisionError)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("U", (), {"free": free}))
        with pytest.raises(error) as caught:
            run(data, tiny_choice, tmp_path)
        assert error is not FpsgenError or (caught.value.code == DISK and not sizes)


def test_the_estimate_is_what_a_sample_takes(done, tiny_choice):
    with safe_open(done[0] / "00000.safetensors", framework="pt") as file:
        size = sum(file.get_tensor(name)[0].nbytes for name in ("latents", "text"))
    assert sample_bytes(tiny_choice, CONFIG) == size


def test_a_full_disk_ends_it_and_leaves_no_half_of_a_shard(data, tiny_choice, tmp_path, monkeypatch):
    true = shards.save_file

    def full(tensors, path, metadata=None):
        with largest_file(1000):
            true(tensors, path, metadata)

    monkeypatch.setattr(shards, "save_file", full)
    with refuses(DISK):
        run(data, tiny_choice, tmp_path)
    assert not list(tmp_path.glob("0*")) and not list(tmp_path.glob(".fpsgen*"))


@pytest.mark.parametrize("file", ["captions.jsonl", "dropped.jsonl", "null.safetensors", "summary.md"])
def test_data_json_comes_last(data, tiny_choice, tmp_path, monkeypatch, file):
    """A disk that is full when one of the other files is written leaves a folder that does not count."""
    for name in ("write_text", "atomic"):
        true = getattr(shards, name)

        def fails(*given, true=true, **more):
            if any(Path(value).name == file for value in given[:2] if isinstance(value, Path)):
                raise OSError(28, "No space left on device")
            return true(*given, **more)

        monkeypatch.setattr(shards, name, fails)
    with pytest.raises(OSError):
        run(data, tiny_choice, tmp_path, filters=Filters(flow=None))
    assert not (tmp_path / "data.json").exists() and (tmp_path / "00000.safetensors").exists()


def test_nothing_kept_is_an_error_that_says_why(tiny_choice, clip, tmp_path):
    clip(tmp_path / "in" / "a.mp4", speed=0)
    with refuses(BAD_INPUT, "flow 1"):
        run(tmp_path / "in", tiny_choice, tmp_path / "out")
    assert not (tmp_path / "out" / "data.json").exists()
