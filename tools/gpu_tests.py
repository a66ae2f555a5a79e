"""Run every test that needs a GPU and write what came of it to figures/gpu-tests.json, or say whether it still holds.

python -m tools.gpu_tests [pytest options]     on a machine with a CUDA device; exits as pytest does
python -m tools.gpu_tests --check              exits 0; warns on stderr if kernels changed since the row

Comments, docstrings and names of local variables are no part of what runs: a change of them leaves the row as it is.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROW = ROOT / "figures" / "gpu-tests.json"
KERNELS = ("fpsgen/attention/kernels", "fpsgen/fused")


class Counter:
    """A pytest plugin that counts outcomes of tests."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "skipped": 0, "failed": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped or report.when == "call":
            self.counts[report.outcome] += 1


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def run(commit: str, out: Path, options: list[str]) -> int:
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device, so no test to run.\nRun this on a machine with one.", file=sys.stderr)
        return 6
    counter, begin = Counter(), time.perf_counter()
    code = pytest.main(["-m", "gpu", "-q", *options, str(ROOT / "tests")], plugins=[counter])
    row = {"schema": "fpsgen.gpu-tests/1", "commit": commit or git("rev-parse", "HEAD"), **counter.counts}
    row |= {"seconds": round(time.perf_counter() - begin, 1), "device": torch.cuda.get_device_name()}
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row))
    return int(code)


def stale(row: Path = ROW) -> str:
    """Why the row does not hold for the kernels of this checkout, "" where it does."""
    if not row.is_file():
        return f"{row.name} is missing: no run of the GPU tests is on record"
    commit = json.loads(row.read_text(encoding="utf-8"))["commit"]
    if not git("cat-file", "-t", commit):
        return f"{row.name} is of commit {commit[:7]}, which this clone does not have"
    paths = git("diff", "--name-only", commit, "--", *KERNELS).splitlines()
    changed = [path for path in paths if not _same(git("show", f"{commit}:{path}"), ROOT / path)]
    return f"{row.name} is of commit {commit[:7]}; since then changed: {', '.join(changed)}" if changed else ""


def _same(before: str, path: Path) -> bool:
    """Whether a module runs as it did. before: its text then, "" if it was not there."""
    if path.suffix != ".py" or not path.is_file() or not before:
        return False
    return ast.dump(_plain(before)) == ast.dump(_plain(path.read_text(encoding="utf-8")))


def _plain(text: str) -> ast.Module:
    """A module without docstrings, its functions' local variables numbered in the order in which they appear."""
    module = ast.parse(text)
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            _number_locals(node)
    return module


def _number_locals(function: ast.FunctionDef) -> None:
    """Parameters keep their names, which callers give, and so do names of an outer scope. Names of a function within
    this one are numbered with its own.
    """
    inside = list(ast.walk(function))
    kept = {node.arg for node in inside if isinstance(node, ast.arg)}
    kept |= {name for node in inside if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    names = [node for node in inside if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)} - kept
    numbers: dict[str, str] = {}
    for node in names:
        if node.id in own:
            node.id = numbers.setdefault(node.id, f"${len(numbers)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="All other options are pytest's.")
    parser.add_argument("--check", action="store_true", help="run nothing; warn where the row no longer holds")
    parser.add_argument("--commit", default="", help="of a copy without git's folder")
    parser.add_argument("--out", type=Path, default=ROW, help="file for the row")
    chosen, options = parser.parse_known_args()
    if not chosen.check:
        return run(chosen.commit, chosen.out, options)
    if reason := stale():
        print(f"warning: {reason}.\nRun python -m tools.gpu_tests on a GPU, and commit its row.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
