"""What a machine cannot do is refused before anything is loaded, with exit 6."""

from __future__ import annotations

import pytest
from refusal import refuses

from fpsgen.errors import ENVIRONMENT
from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.machine import Machine
from fpsgen.pipeline.memory import check_device, check_machine
from fpsgen.pipeline.plan import plan
from fpsgen.settings.gather import Settings

LAPTOP, SMALL, LARGE = Machine((), 16.0), Machine((12.0, 16.0), 64.0), Machine((80.0,), 512.0)


def request(**asked):
    """A plan of a model that need not be here."""
    return plan("a cat", Settings(asked), choose(asked["model"], asked.get("res"), missing_ok=True)).request


@pytest.mark.parametrize(
    ("asked", "machine", "said"),
    [
        ({"model": "wan2.1-1.3b"}, LAPTOP, "CUDA GPU"),
        ({"model": "wan2.1-1.3b"}, SMALL, "24 GB"),
        ({"model": "wan2.1-14b"}, SMALL, "70 GB"),
        ({"model": "wan2.1-1.3b", "device": "cpu"}, LARGE, "CUDA GPU"),
        ({"model": "nano", "device": "cuda"}, LAPTOP, "no CUDA device"),
        ({"model": "nano", "device": "cuda:2"}, SMALL, "2 CUDA devices"),
        ({"model": "wan2.1-1.3b", "res": (8192, 8192), "frames": 801}, LARGE, "801 frames of 8192x8192"),
    ],
)
def test_a_machine_that_cannot_is_refused(tmp_path, monkeypatch, asked, machine, said):
    monkeypatch.chdir(tmp_path)
    with refuses(ENVIRONMENT, said):
        check_machine(request(**asked), machine)


def test_a_machine_that_can_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, machine in (("nano", LAPTOP), ("wan2.1-1.3b", LARGE), ("wan2.1-14b", LARGE)):
        check_machine(request(model=model), machine)
    check_device("cuda:1", SMALL)


def test_memory_that_runs_out_on_a_cpu_is_said_in_two_lines(tmp_path, tiny_dir, monkeypatch):
    import torch

    from fpsgen.cli.progress import Quiet
    from fpsgen.pipeline import run
    from fpsgen.pipeline.events import Timing

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "decode", lambda *asked: iter([torch.empty(1 << 52, dtype=torch.uint8)]))
    settings = Settings({"model": str(tiny_dir), "res": (32, 32), "frames": 5, "steps": 1, "device": "cpu"})
    with refuses(ENVIRONMENT, "stage vae"):
        run.run(plan("a cat", settings).request, Timing(Quiet()))


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path, tiny_dir, monkeypatch):
    """What Triton itself raises where it finds none."""
    from triton.runtime import build

    from fpsgen.cli.progress import Quiet
    from fpsgen.pipeline import run
    from fpsgen.pipeline.events import Timing

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)

    def denoise(*arguments):
        build._build("launcher", "launcher.c", str(tmp_path), [], [], [], [])

    monkeypatch.setattr(run, "denoise", denoise)
    settings = Settings({"model": str(tiny_dir), "res": (32, 32), "frames": 5, "steps": 1, "device": "cpu"})
    with refuses(ENVIRONMENT, "compiler", remedy="gcc"):
        run.run(plan("a cat", settings).request, Timing(Quiet()))


def test_what_only_a_gpu_can_do_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # outputs/ lies there
    asked = request(model="nano", method_impl="triton")
    with refuses(ENVIRONMENT, "triton"):
        check_machine(asked, LAPTOP)
    check_machine(asked, LARGE)
