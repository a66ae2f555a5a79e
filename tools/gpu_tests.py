"""Run every test that needs a GPU and write what came of it to figures/gpu-tests.json, or say whether it still holds.

python -m tools.gpu_tests [pytest options]     on a machine with a CUDA device; exits as pytest does
python -m tools.gpu_tests --check              exits 0; warns on stderr if kernels changed since the row
"""

from __future__ import annotations

import argparse
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
    changed = git("diff", "--name-only", commit, "--", *KERNELS).splitlines()
    return f"{row.name} is of commit {commit[:7]}; since then changed: {', '.join(changed)}" if changed else ""


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
