"""One video from a tiny random model: the whole way, twice, with faults, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusal import refuses

from fpsgen.attention import METHODS, Profile, Schedule
from fpsgen.cli.progress import Quiet
from fpsgen.errors import ENVIRONMENT, INTERRUPTED, NUMERIC, TERMINATED, USAGE
from fpsgen.pipeline import decode
from fpsgen.pipeline import run as generate
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.video import count_frames, read_recipe

ROOT = Path(__file__).resolve().parents[2]


class KeptEvents(Quiet):
    """Keeps all events."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[int, int, str]] = []
        self.warnings: list[str] = []

    def stage_start(self, name: str) -> None:
        self.stages.append(name)

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        self.steps.append((index, total, note))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def make(request: GenerateRequest) -> tuple[generate.GenerateResult, KeptEvents]:
    events = KeptEvents()
    return generate.run(request, Timing(events)), events


def test_a_video_with_its_recipe_and_report(request_for):
    result, events = make(request_for())
    assert str(result.path) == os.path.join("outputs", "a-cat-surfing-7.mp4")
    assert sorted(os.listdir("outputs")) == ["a-cat-surfing-7.json", "a-cat-surfing-7.mp4"]
    assert count_frames(result.path) == 5
    assert events.stages == ["load", "text", "denoise", "vae", "mux"]
    assert [step[:2] for step in events.steps] == [(0, 3), (1, 3), (2, 3)] and all(step[2] for step in events.steps)

    recipe = read_recipe(result.path)
    assert recipe == result.recipe
    wanted = {"prompt": "a cat surfing", "seed": 7, "width": 64, "height": 48, "frames": 5, "fps": 8, "steps": 3}
    assert wanted.items() <= recipe.items()
    assert recipe["vae_dtype"] == "float32" and recipe["noise"] == "cpu" and recipe["versions"]["torch"]
    assert "[[windows]]" in recipe["schedule"]["toml"]

    assert result.sidecar
    beside = json.loads(result.sidecar.read_text())
    assert beside["recipe"] == recipe
    report = beside["report"]
    assert set(report["stages_s"]) == {"load", "text", "denoise", "vae", "mux"} and len(report["steps_s"]) == 3
    assert sum(report["steps_s"]) <= report["stages_s"]["denoise"] + 0.01
    assert report["peak_memory"]["rss_bytes"] > 1e7 and 0 < report["density"] <= 1
    assert len(report["attention"]["steps"]) == 3


def test_short_memory_decodes_in_tiles_and_says_so(request_for, monkeypatch):
    from diffusers import AutoencoderKLWan

    used: list[bool] = []
    whole = AutoencoderKLWan.decode
    monkeypatch.setattr(
        AutoencoderKLWan, "decode", lambda vae, *a, **k: used.append(vae.use_tiling) or whole(vae, *a, **k)
    )
    monkeypatch.setattr(decode, "free_bytes", lambda device: 1 << 40)
    roomy, events = make(request_for())
    assert not used and not events.warnings and "vae_tiles" not in roomy.recipe
    monkeypatch.setattr(decode, "free_bytes", lambda device: 1)
    result, events = make(request_for())
    assert used == [True] and any("tiles" in text for text in events.warnings)
    assert result.recipe["vae_tiles"] is True and count_frames(result.path) == 5


def test_same_seed_same_bytes(request_for):
    first, _ = make(request_for())
    second, _ = make(request_for())
    other, _ = make(request_for(seed=8))
    assert second.path.name == "a-cat-surfing-7-2.mp4"
    assert first.path.read_bytes() == second.path.read_bytes() != other.path.read_bytes()


def test_every_choice_reaches_the_video(request_for):
    videos = {make(request_for())[0].path.read_bytes()}
    for changes in ({"steps": 4}, {"guidance": 5.0}, {"shift": 9.0}, {"negative": "a dog"}):
        videos.add(make(request_for(**changes))[0].path.read_bytes())
    assert len(videos) == 5


def samples_of_the_model(request, monkeypatch) -> tuple[generate.GenerateResult, list[int]]:
    """Samples of each call of the transformer for a video."""
    from diffusers import WanTransformer3DModel

    seen: list[int] = []
    forward = WanTransformer3DModel.forward

    def counting(*args, **inputs):
        seen.append(len(inputs["hidden_states"]))
        return forward(*args, **inputs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", counting)
    result, _ = make(request)
    monkeypatch.undo()
    return result, seen


@pytest.mark.parametrize(("until", "guided"), [(1.0, 4), (0.5, 2), (0.25, 1), (0.0, 1)])
def test_guidance_for_a_share_of_the_steps(request_for, monkeypatch, until, guided):
    result, seen = samples_of_the_model(request_for(steps=4, cfg_until=until), monkeypatch)
    assert seen == [2] * guided + [1] * (4 - guided)
    assert result.recipe["cfg_until"] == until and result.recipe["cfg_in_one_batch"] is True
    assert [step["calls"] for step in result.report["attention"]["steps"]] == [2] * 4  # layers


@pytest.mark.parametrize("changes", [{"exact": True}, {"cache": "first-block"}, {"res": (384, 256), "frames": 9}])
def test_guidance_runs_in_forwards_of_its_own(request_for, monkeypatch, changes):
    """With diffusers' rounding, with a step cache, and where a video is large."""
    result, seen = samples_of_the_model(request_for(steps=2, **changes), monkeypatch)
    assert set(seen) == {1} and len(seen) >= 3 and result.recipe["cfg_in_one_batch"] is False


def test_four_steps_without_guidance_run_by_their_noise_levels(request_for, monkeypatch):
    """As checkpoints distilled to few steps run: sigma 1.00, 0.94, 0.83, 0.63 at shift 5."""
    asked = {"steps": 4, "guidance": 1.0, "shift": 5.0, "schedule": "paper"}
    result, seen = samples_of_the_model(request_for(**asked), monkeypatch)
    steps = result.report["attention"]["steps"]
    assert seen == [1] * 4 and [step["profile"] for step in steps] == ["early", "middle", "middle", "middle"]
    assert [step["sigma"] for step in steps] == pytest.approx([1.0, 0.9375, 0.8333, 0.625], abs=1e-3)


@pytest.mark.parametrize("cache", ["first-block", "taylorseer"])
def test_a_step_cache_skips_and_says_so(request_for, cache):
    plain, _ = make(request_for(steps=8))
    result, _ = make(request_for(steps=8, cache=cache, strict=True))
    attention = result.report["attention"]
    assert result.recipe["cache"] == cache and attention["fallbacks"] == []
    if cache == "taylorseer":
        assert attention["skipped_by_cache"] > 0
    assert attention["skipped_by_cache"] + sum(step["calls"] for step in attention["steps"]) == 8 * 2 * 2
    assert plain.report["attention"]["skipped_by_cache"] == 0
    again, _ = make(request_for(steps=8))
    assert again.path.read_bytes() == plain.path.read_bytes()


def test_a_cache_that_does_not_know_the_model_is_refused(request_for):
    with refuses(USAGE):
        request_for(cache="magcache")


def test_a_cache_with_a_schedule_of_two_orders_is_refused_before_the_model_is_loaded(request_for, tmp_path):
    tiled = Profile("a", "fps", (1, 2, 2), (1, 1, 1))
    schedule = Schedule("two", (tiled, replace(tiled, name="b", tile=(2, 2, 1))), ((0.0, 0.9, "a"), (0.9, 1.0, "b")))
    (tmp_path / "two.toml").write_text(schedule.to_toml())
    with refuses(USAGE, "first-block", "two"):
        request_for(cache="first-block", schedule="two.toml")
    request_for(schedule="two.toml")
    request_for(cache="first-block", schedule="two.toml", method="bf16")  # has no order


def test_without_guidance_the_negative_prompt_is_not_read(request_for):
    first, _ = make(request_for(guidance=1.0))
    second, _ = make(request_for(guidance=1.0, negative="a dog", seed=7))
    assert torch.equal(*(torch.frombuffer(bytearray(read_frames(r.path)), dtype=torch.uint8) for r in (first, second)))


def read_frames(path: Path) -> bytes:
    from fpsgen.ffmpeg import ffmpeg

    command = [ffmpeg(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("method", ["bf16", "fp8", "sta", "sage", "sparge", "svg", "fps"])
def test_every_method_runs(request_for, method):
    result, _ = make(request_for(method=method, schedule="paper"))
    ran = {step["method"] for step in result.report["attention"]["steps"]}
    assert ran <= set(METHODS) and (method in ran or method == "sta")


def test_the_slow_reference_can_be_asked_for(request_for):
    kernels = {}
    for impl in ("auto", "reference"):
        result, _ = make(request_for(method_impl=impl, schedule="paper", device="cpu"))
        kernels[impl] = set(result.report["attention"]["kernels"])
        assert result.recipe["method_impl"] == impl
    assert kernels == {"auto": {"cpu"}, "reference": {"reference"}}


def test_dense_attention_runs_on_the_backend_that_was_named(request_for):
    plain, _ = make(request_for(method="bf16"))
    result, _ = make(request_for(method="bf16", bf16_backend="math"))
    assert result.report["attention"]["kernels"].keys() == {"_native_math"}
    assert [made.report["attention"]["bf16_backend"] for made in (plain, result)] == ["auto", "math"]
    assert result.recipe["bf16_backend"] == "math" and plain.recipe["bf16_backend"] == "auto"
    again, _ = make(request_for(method="bf16"))
    assert again.report["attention"]["kernels"] == plain.report["attention"]["kernels"] != {}
    with refuses(ENVIRONMENT, "fa3"):
        make(request_for(method="bf16", bf16_backend="fa3"))


def test_no_metadata(request_for):
    result, _ = make(request_for(metadata=False))
    assert read_recipe(result.path) is None and result.sidecar is None
    assert os.listdir("outputs") == ["a-cat-surfing-7.mp4"]
    assert b"surfing" not in result.path.read_bytes()


def test_a_prompt_longer_than_the_model_reads_is_said(request_for):
    _, events = make(request_for().replace(prompt={"text": "a cat " * 50}))
    assert any("prompt has" in text and "tokens" in text for text in events.warnings)


def test_what_does_not_run_as_asked_is_said(request_for, tmp_path, monkeypatch):
    """Once, and before the first step where it is known then."""
    schedule = Schedule("s", (Profile("all", "fps"),), ((0.0, 1.0, "all"),), dense_layers=(1, 99))
    (tmp_path / "s.toml").write_text(schedule.to_toml())
    denoise = generate.denoise
    before = []

    def skips_a_layer(pipe, handle, request, embeds, timing):
        before.extend(timing.warnings)
        handle._run.record.fallback("block", "made_up", [0], "a layer stays as it is")
        return denoise(pipe, handle, request, embeds, timing)

    monkeypatch.setattr(generate, "denoise", skips_a_layer)
    result, events = make(request_for(schedule="s.toml"))
    beyond, skipped = [text for text in events.warnings if "99" in text or "stays" in text]
    assert "2 layers" in beyond and beyond in before and skipped == "a layer stays as it is"
    assert {beyond, skipped} <= set(result.report["warnings"])


@pytest.mark.parametrize("name", ["cat.mp4", "cat.png", "cat.gif"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_bad_picture_is_never_written(request_for, monkeypatch, value, name):
    real = decode.video_parts

    def spoilt(*arguments):
        for part in real(*arguments):
            yield part.fill_(value)

    monkeypatch.setattr(decode, "video_parts", spoilt)
    with refuses(NUMERIC):
        make(request_for(output=name, frames=1 if name == "cat.png" else 5))
    assert not os.listdir()


def test_frames_are_encoded_while_others_are_decoded(request_for, monkeypatch):
    """The first frame is asked for by the writer before the last part is made."""
    seen: list[str] = []
    real = decode.video_parts

    def parts(*arguments):
        for part in real(*arguments):
            for frame in part.split(1, dim=2):
                seen.append("made")
                yield frame

    def write(frames, request, recipe):
        for _ in frames:
            seen.append("read")
        return real_write(frames, request, recipe)

    real_write = generate.write_output
    monkeypatch.setattr(decode, "video_parts", parts)
    monkeypatch.setattr(generate, "write_output", write)
    result, events = make(request_for())
    assert seen == ["made", "made", "read"] + 3 * ["made", "read"] + ["read"]
    assert count_frames(result.path) == 5 and events.stages[-2:] == ["vae", "mux"]


def test_bad_latents_end_the_run_at_their_step(request_for, monkeypatch):
    from diffusers import WanTransformer3DModel

    real, calls = WanTransformer3DModel.forward, []

    def broken(self, *arguments, **named):
        calls.append(1)
        (out, *rest) = real(self, *arguments, **named)
        return (out * float("nan"), *rest) if len(calls) > 1 else (out, *rest)

    monkeypatch.setattr(WanTransformer3DModel, "forward", broken)
    with refuses(NUMERIC, "step 2 of 3"):
        make(request_for())
    assert not os.listdir()


def command(tiny_dir, *more: str) -> list[str]:
    asked = ["--res", "64x48", "--frames", "5", "--steps", "3", "--seed", "7", *more]
    return [sys.executable, "-m", "fpsgen", "generate", "a cat surfing", "-m", str(tiny_dir), *asked]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FPSGEN_")}
    paths = os.pathsep.join(filter(None, (str(ROOT), clean.get("PYTHONPATH"))))
    return clean | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_streams_of_a_run(tmp_path, tiny_dir):
    done = subprocess.run(command(tiny_dir), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.path.join("outputs", "a-cat-surfing-7.mp4") + "\n"
    words = [line.split()[0] for line in done.stderr.splitlines()]
    for stage in ("model", "video", "import", "load", "text", "denoise", "vae", "mux", "saved"):
        assert stage in words
    assert "s/it" in done.stderr and "ETA" in done.stderr and "\r" not in done.stderr and "\x1b" not in done.stderr

    done = subprocess.run(command(tiny_dir, "-q"), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == os.path.join("outputs", "a-cat-surfing-7-2.mp4") + "\n"
    assert (tmp_path / "outputs" / "a-cat-surfing-7.mp4").read_bytes() == (tmp_path / done.stdout.strip()).read_bytes()

    more = ["--json", "-o", "x.mp4"]
    done = subprocess.run(command(tiny_dir, *more), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    body = json.loads(done.stdout)
    assert body["ok"] and body["results"][0]["path"] == "x.mp4" and body["results"][0]["report"]["total_s"] > 0


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
@pytest.mark.parametrize("stage", ["import", "denoise", "vae"])
def test_signals(tmp_path, tiny_dir, sent, code, stage):
    before = {"import": "video", "denoise": "denoise", "vae": "vae"}[stage]
    long = command(tiny_dir, "--steps", "40")
    with subprocess.Popen(long, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr
        for line in run.stderr:
            if line.startswith(before):
                run.send_signal(sent)
                break
        start = time.monotonic()
        said = run.stderr.read()
        assert run.wait(60) == code
        assert time.monotonic() - start < 30
    assert "Traceback" not in said and said.splitlines()[-1].endswith("no unfinished file was left")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]
