"""The house rules: imports go down only, help comes at once, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fpsgen"
FLOORS = {"attention": 1, "fused": 1, "settings": 2, "models": 3, "pipeline": 4, "train": 4, "bench": 5, "batch": 5}
FLOORS |= {"cli": 6, "__main__": 7}
MAY_USE = {
    "fields": {"errors", "text"},
    "files": {"errors", "text", "fields"},
    "logs": {"errors", "text", "fields", "files"},
    "ffmpeg": {"errors", "text"},
    "pictures": {"errors", "text", "files"},
    "video": {"errors", "text", "files", "ffmpeg", "pictures"},
    "report": {"errors", "text", "fields", "files", "logs", "assets", "attention"},  # the names of methods
    "evaluate": {"errors", "text", "files", "ffmpeg", "video"},
}
LEAVES = {*MAY_USE, "errors", "text", "signals", "assets"}
ATTENTION_MAY = {"torch", "triton", "fpsgen"} | set(sys.stdlib_module_names)
LINES = 400
LONGER = {"attention/kernels/attend_fp8_sm90.py": 500}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def modules_imported(tree: ast.AST) -> set[str]:
    """Full dotted names of all imports, wherever they stand in the file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor_faults(relative: Path, imported: set[str]) -> list[str]:
    """Imports of `relative` (path inside the package) that go up or sideways."""
    own = relative.parts[0].removesuffix(".py")
    faults = []
    for name in imported:
        parts = name.split(".")
        if parts[0] != "fpsgen" or len(parts) < 2 or own == "__init__":
            continue
        other = parts[1]
        if other == own or other.startswith("__"):
            continue
        if own in LEAVES:
            wrong = other not in MAY_USE.get(own, set())
        elif own == "attention":
            wrong = True
        else:
            wrong = other not in LEAVES and FLOORS[other] >= FLOORS[own]
        if wrong:
            faults.append(f"{relative} imports {name}")
    return faults


def test_imports_go_down_only():
    faults = []
    for path in sources():
        relative = path.relative_to(PACKAGE)
        faults += floor_faults(relative, modules_imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert not faults


def test_the_floor_rule_sees_a_fault():
    assert floor_faults(Path("models/patch/apply.py"), {"fpsgen.pipeline.size"})
    assert floor_faults(Path("attention/tiles.py"), {"fpsgen.errors.FpsgenError"})
    assert floor_faults(Path("bench/kernel.py"), {"fpsgen.batch.run"})
    assert not floor_faults(Path("cli/app.py"), {"fpsgen.pipeline.size", "fpsgen.errors"})


def test_attention_needs_torch_and_triton_only():
    for path in sorted((PACKAGE / "attention").rglob("*.py")):
        tops = {name.split(".")[0] for name in modules_imported(ast.parse(path.read_text(encoding="utf-8")))}
        assert tops <= ATTENTION_MAY, path


def test_the_reference_is_free_of_triton_and_kernels_of_the_operator():
    reference = modules_imported(ast.parse((PACKAGE / "attention" / "reference.py").read_text(encoding="utf-8")))
    assert not [name for name in reference if "triton" in name or "kernels" in name]
    for path in sorted((PACKAGE / "attention" / "kernels").glob("*.py")):
        imported = modules_imported(ast.parse(path.read_text(encoding="utf-8")))
        assert not [name for name in imported if name.startswith("fpsgen.attention.op")], path


def test_files_stay_short():
    long = {}
    for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGER.get(str(path.relative_to(PACKAGE)) if PACKAGE in path.parents else "", LINES):
            long[str(path.relative_to(ROOT))] = lines
    assert not long


@pytest.mark.parametrize("module", ["fpsgen", "fpsgen.cli.app", "fpsgen.pipeline.plan", "fpsgen.bench.plan"])
def test_usage_is_judged_without_torch(module):
    heavy = ("torch", "diffusers", "transformers", "triton")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_no_pickle_and_no_remote_code():
    banned = ("pickle", "torch.load", "trust_remote_code=True", "yaml.load", "shell=True")
    found = []
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in banned if _calls(line, word)]
    assert not found


def _calls(line: str, word: str) -> bool:
    code = line.split("#", 1)[0]
    return f"{word}(" in code or f"import {word}" in code or ("=" in word and word in code)
