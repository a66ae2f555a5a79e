"""A dry run tells what a video would take, also for a model that is not here: from rows and file sizes, or unknown."""

from __future__ import annotations

import pytest

from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.machine import Machine
from fpsgen.pipeline import estimate, memory
from fpsgen.pipeline.dry_run import foresee
from fpsgen.pipeline.plan import plan
from fpsgen.settings.gather import Settings

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def outlook(tmp_path, monkeypatch):
    """foresee() on a machine with this GPU (GB, name), or none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def call(gpu: float | None, name: str = H100, **asked):
        machine = Machine((gpu,) if gpu else (), 64.0)
        for module in (estimate, memory):
            monkeypatch.setattr(module, "this_machine", lambda: machine)
        monkeypatch.setattr(estimate, "device_name", lambda device: name)
        choice = choose(asked["model"], asked.get("res"), missing_ok=True)
        return foresee(plan("a cat", Settings(asked), choice))

    return call


def test_a_model_that_is_not_here(outlook):
    found = outlook(80.0, model="wan2.1-14b", res="720p")
    shown = found.as_json()
    assert shown["token_grid"] == (21, 45, 80) and shown["tokens"] == 75600 and shown["settings"]["model_path"] is None
    assert sum(profile["steps"] for profile in shown["profiles"]) == 50
    assert all(0 < profile["density"] <= 1 for profile in shown["profiles"])
    assert shown["estimate"]["fetch"] == 80_400_000_000 and shown["estimate"]["free_disk"] > 0
    assert shown["estimate"]["refusal"] == "" and shown["estimate"]["denoise_s"] is None  # the 14B model has no rows
    names = [name for name, _, _ in found.rows()]
    assert {"to fetch", "GPU memory", "this machine", "denoising"} <= set(names)


def test_a_machine_that_cannot_is_told(outlook):
    assert "CUDA GPU" in outlook(None, model="wan2.1-1.3b").estimate.refusal
    small = outlook(16.0, model="wan2.1-1.3b")
    assert "24 GB" in small.estimate.refusal and small.estimate.short_gb == 8.0
    assert "does not fit: 8 GB short" in {name: text for name, text, _ in small.rows()}["this machine"]
    assert outlook(80.0, model="wan2.1-1.3b").estimate.short_gb == 0.0
    for device, gpu in (("cuda", None), ("cuda:1", 80.0)):
        found = outlook(gpu, model="nano", device=device)
        assert device in found.estimate.refusal
        assert device in {name: text for name, text, _ in found.rows()}["this machine"]


def test_a_disk_that_is_too_small_is_told(outlook, monkeypatch):
    monkeypatch.setattr(estimate, "free_disk", lambda: 80_000_000_000)
    rows = {name: text for name, text, _ in outlook(80.0, model="wan2.1-14b").rows()}
    assert "does not fit: 400.0 MB short" in rows["to fetch"]


def test_every_row_says_something(outlook):
    assert all(text.strip() for _, text, _ in outlook(None, model="nano").rows())


def test_origins_are_of_this_command_alone(outlook):
    origins = outlook(None, model="nano").as_json()["origins"]
    assert {"res", "width", "seconds", "steps"} <= set(origins)
    assert not {"repeats", "heads", "compare", "yes", "lora_rank"} & set(origins)


def rows_of(outlook, seconds: dict[str, float], density: float = 1.0, guidance: float = 1.0) -> tuple[dict, ...]:
    """One row, as if this plan had been measured. density: factor on that of each profile."""
    request = outlook.plan.request
    video = request.video
    profiles = [
        {"profile": p.name, "method": p.method, "density": p.density * density, "step_s": {"median": seconds[p.name]}}
        for p in outlook.profiles
    ]
    common = {"model": request.model.spec.name, "device": H100, "dtype": "bfloat16", "guidance": guidance}
    common |= {"width": video.width, "height": video.height, "frames": video.frames, "tokens": outlook.tokens}
    common |= {"linear": "fp8" if outlook.schedule.fp8_linear else "bf16"}
    common |= {"schedule": outlook.schedule.name, "profiles": profiles, "peak_memory": {"cuda_bytes": 4.6e9}}
    return (common,)


def test_time_comes_from_rows_of_the_same_card_size_and_schedule(outlook, monkeypatch):
    asked = {"model": "wan2.1-1.3b", "res": "480p", "schedule": "paper", "shift": 3.0, "steps": 8, "guidance": 1.0}
    measured = outlook(80.0, **asked)
    seconds = {"early": 1.0, "middle": 3.0, "late": 2.0}
    rows = rows_of(measured, seconds)
    monkeypatch.setattr(estimate, "bench_rows", lambda: rows)
    wanted = sum(seconds[profile.name] * profile.steps for profile in measured.profiles)
    assert outlook(80.0, **asked).estimate.denoise_s == wanted
    assert outlook(80.0, **asked | {"guidance": 5.0}).estimate.denoise_s == 2 * wanted
    for other in (
        {"frames": 33},
        {"schedule": "safe"},
        {"dtype": "fp16"},
        {"res": (1024, 480)},
        {"method": "bf16"},
        {"linear": "bf16"},
        {"exact": True},
        {"cache": "first-block"},
        {"cfg_until": 0.5},
    ):
        assert outlook(80.0, **asked | other).estimate.denoise_s is None
    assert outlook(80.0, name="another card", **asked).estimate.denoise_s is None
    assert outlook(None, **asked).estimate.denoise_s is None
    rows = rows_of(measured, seconds, guidance=5.0)  # so a step ran the model twice
    assert outlook(80.0, **asked | {"guidance": 5.0}).estimate.denoise_s == wanted
    assert outlook(80.0, **asked).estimate.denoise_s == wanted / 2
    rows = rows_of(measured, seconds, 0.5)  # measured when the schedule's windows were smaller
    assert outlook(80.0, **asked).estimate.denoise_s is None


def test_memory_of_a_measured_shape_is_what_was_measured_and_the_text_encoder(outlook, monkeypatch):
    asked = {"model": "wan2.1-1.3b", "res": "480p"}
    rows = rows_of(outlook(80.0, **asked), {"early": 1.0, "middle": 1.0, "late": 1.0})
    monkeypatch.setattr(estimate, "bench_rows", lambda: rows)
    memory_gb = outlook(80.0, **asked).estimate.memory_gb
    assert memory_gb["load"] == pytest.approx(28.9 / 2, abs=0.1)
    assert memory_gb["denoise"] == pytest.approx(28.9 / 2 + 4.6 - 2 * 1.4, abs=0.2)
    monkeypatch.setattr(estimate, "bench_rows", tuple)
    assert outlook(80.0, **asked).estimate.memory_gb["denoise"] is None


def test_committed_rows_are_read():
    assert all({"device", "profiles", "tokens", "peak_memory"} <= row.keys() for row in estimate.bench_rows())
    assert estimate.bench_rows()
