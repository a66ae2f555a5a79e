"""The command lines of tools that need a GPU, and of what turns rows into tables."""

from __future__ import annotations

import runpy
import sys
from importlib import import_module

import pytest
import torch

ON_GPU = {"decoder": [], "forward_profile": [], "power": ["out"], "precision_speed": [], "products": []}
TOOLS = [f"tools.{name}" for name in (*ON_GPU, "kernel_choices")]


@pytest.mark.parametrize("module", [*TOOLS, "fpsgen.report.kernel", "fpsgen.report.steps"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_help_measures_nothing(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code and f"python -m {module}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ON_GPU)
def test_without_a_gpu_it_says_so(name, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        import_module(f"tools.{name}").main(ON_GPU[name])
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert ended.value.code == 6 and not said.out and len(lines) == 2 and "GPU" in lines[0]


@pytest.mark.parametrize("module", ["fpsgen.report.kernel", "fpsgen.report.steps"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_file_without_rows_is_named(module, monkeypatch, capsys, tmp_path):
    (tmp_path / "broken.jsonl").write_text("none\n")
    for name in ("broken.jsonl", "missing.jsonl"):
        monkeypatch.setattr(sys, "argv", [module, str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == 4 and len(lines) == 2 and name in lines[0]
