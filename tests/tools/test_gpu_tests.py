import json
import re
import subprocess
from pathlib import Path

import pytest

from tools import gpu_tests

KERNEL = '''"""Doc."""
SCALE = 2

def attend(q, k):
    """Scores."""
    score = q @ k  # a product
    total = score.sum()
    return [score / total * SCALE for part in k]
'''


@pytest.fixture(params=gpu_tests.KERNELS)
def checkout(request, tmp_path, monkeypatch):
    """A repository with one kernel and a row of its first commit."""

    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *author, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    kernel = tmp_path / request.param / "attend.py"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(KERNEL)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    row = tmp_path / "row.json"
    row.write_text(json.dumps({"commit": git("rev-parse", "HEAD")}))
    return tmp_path, kernel, row


def test_all_kernels_are_looked_at():
    root = Path(__file__).resolve().parents[2]
    found = [path for path in root.glob("fpsgen/**/*.py") if "@triton.jit" in path.read_text(encoding="utf-8")]
    assert found and all(any(folder in path.as_posix() for folder in gpu_tests.KERNELS) for path in found)


def test_a_row_holds_until_a_kernel_changes(checkout):
    root, kernel, row = checkout
    (root / "other.py").write_text("2\n")
    assert gpu_tests.stale(row) == ""
    kernel.write_text("3\n")
    assert "attend.py" in gpu_tests.stale(row)


@pytest.mark.parametrize(
    ("old", "new", "holds"),
    [
        ("score", "qk", True),
        ("# a product", "", True),
        ('"""Scores."""', '"""Products."""', True),
        ("part", "line", True),
        ("score.sum()", "score.max()", False),
        ("score / total", "total / score", False),
        ("q @ k", "k @ q", False),
        ("SCALE", "score", False),
        ("k", "key", False),
    ],
)
def test_what_does_not_run_leaves_a_row_as_it_is(checkout, old, new, holds):
    _, kernel, row = checkout
    kernel.write_text(re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, KERNEL))
    assert kernel.read_text() != KERNEL and (gpu_tests.stale(row) == "") is holds


def test_a_row_of_no_commit_or_no_row_is_said(checkout):
    root, _, row = checkout
    row.write_text(json.dumps({"commit": "0" * 40}))
    assert gpu_tests.stale(row) and gpu_tests.stale(root / "none.json")


def test_outcomes_are_counted_once_for_each_test(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pytest.skip('x')\n"
        "def test_c(): assert False\n"
        "@pytest.mark.skip\ndef test_d(): pass\n"
    )
    counter = gpu_tests.Counter()
    pytest.main(["-q", "-p", "no:cacheprovider", str(tmp_path), "--rootdir", str(tmp_path)], plugins=[counter])
    assert counter.counts == {"passed": 1, "skipped": 2, "failed": 1}
