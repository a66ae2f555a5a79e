"""What a GPU does without a compiler; the machine is pretended, the request is a real one."""

import shutil

import pytest
import torch
from refusal import refuses

from fpsgen.cli.progress import Quiet
from fpsgen.errors import ENVIRONMENT, USAGE
from fpsgen.pipeline import compiler
from fpsgen.pipeline.compiler import as_compiled
from fpsgen.pipeline.events import Timing

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def bare(monkeypatch):
    """A machine without a C compiler."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def is_plain(request):
    values = request.values()
    return (values["method"], values["linear"], values["exact"]) == ("bf16", "bf16", True)


def run(request, device):
    timing = Timing(Quiet())
    return as_compiled(request, device, timing), timing.warnings


@pytest.mark.parametrize("named", ["", "/nowhere/cc"])
def test_without_a_compiler_it_says_so_and_goes_on(request_for, bare, monkeypatch, named):
    if named:
        monkeypatch.setenv("CC", named)
    made, texts = run(request_for(schedule="paper", linear="fp8"), CUDA)
    assert is_plain(made)
    (text,) = texts
    assert "C compiler" in text and "gcc" in text


def test_without_triton_too(request_for, monkeypatch):
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    made, (text,) = run(request_for(schedule="paper"), CUDA)
    assert is_plain(made) and "riton" in text


def test_strict_is_an_error_instead(request_for, bare):
    with refuses(ENVIRONMENT):
        run(request_for(strict=True), CUDA)


def test_off_needs_no_compiler_and_warns_of_nothing(request_for, bare):
    made, texts = run(request_for(compile="off", schedule="paper", strict=True), CUDA)
    assert is_plain(made) and not texts


@pytest.mark.parametrize("asked", [{"method": "fps"}, {"linear": "fp8"}, {"method_impl": "triton"}])
def test_off_does_not_take_the_place_of_what_was_asked_for(request_for, asked):
    with refuses(USAGE, *map(str, asked.values())):
        request_for(compile="off", **asked)
    run(request_for(compile="off", method="bf16", linear="bf16"), CUDA)


def test_with_a_compiler_nothing_changes(request_for, monkeypatch):
    monkeypatch.setattr(compiler, "what_lacks", lambda: None)
    request = request_for(schedule="paper")
    assert run(request, CUDA) == (request, [])


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_a_cpu_compiles_nothing_anyway(request_for, bare, choice):
    request = request_for(compile=choice)
    assert run(request, CPU) == (request, [])


@pytest.mark.gpu
def test_a_video_without_a_compiler(request_for, bare):
    """The whole way on a GPU: nothing of Triton may be started."""
    import triton

    from fpsgen.pipeline import run as generate

    def refuse(*given, **named):
        raise AssertionError("a Triton kernel was started")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.runtime.jit.JITFunction, "run", refuse)
        result = generate.run(request_for(schedule="paper", steps=2, metadata=True), Timing(Quiet()))
    assert result.path.exists() and result.recipe["method"] == "bf16" and result.recipe["exact"] is True
    assert any("C compiler" in text for text in result.report["warnings"])
