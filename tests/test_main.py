"""`python -m fpsgen`: before and after the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def in_main(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process that runs `code` with `main` imported, started with no more than these OpenMP variables."""
    start = "import os, sys; sys.argv[1:] = ['--version']\nfrom fpsgen.__main__ import main\n"
    root = str(Path(__file__).resolve().parent.parent)
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTHONUNBUFFERED")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    line = [sys.executable, "-c", start + code]
    return subprocess.run(line, env={**clean, "PYTHONPATH": root, **environment}, capture_output=True, text=True)


def test_waiting_threads_leave_the_cores_to_others_unless_the_user_says_otherwise():
    code = "os.getloadavg = lambda: ({}, 0, 0)\nos.cpu_count = lambda: 4\n"
    code += "try: main()\nexcept SystemExit: print(os.environ.get('GOMP_SPINCOUNT'))"
    idle, busy = code.format(0.5), code.format(3)
    assert in_main(idle).stdout.split()[-1] == "20000"
    assert in_main(busy).stdout.split()[-1] == "1000"
    assert in_main(idle, OMP_WAIT_POLICY="ACTIVE").stdout.split()[-1] == "None"
    assert in_main(busy, GOMP_SPINCOUNT="7").stdout.split()[-1] == "7"


def test_the_end_loses_no_output_and_no_code():
    code = "import atexit; atexit.register(print, 'atexit')\nsys.modules['torch'] = sys\n"
    code += "import fpsgen.cli.app as app\napp.run = lambda: print('result') or 3\nmain()"
    done = in_main(code)
    assert (done.returncode, done.stdout.split()) == (3, ["result", "atexit"]), done.stderr


def test_a_python_without_its_packages_is_told_in_two_lines(tmp_path):
    """`python -m fpsgen` in a clone where nothing was installed yet. -S: no installed packages, -E: no PYTHONPATH."""
    root = Path(__file__).resolve().parent.parent
    line = [sys.executable, "-SE", "-m", "fpsgen", "--version"]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True)
    what, fix = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (6, "")
    assert what.startswith("error: fpsgen needs the package ") and fix.startswith("fix: ") and "pip install ." in fix


def test_an_interrupt_within_exec_also_ends_with_its_code(tmp_path):
    """As where a library makes a class from text: Python then ends `python -m` by the signal, whatever the code."""
    lines = ["import fpsgen.cli.app as app", "def run():", "    try: exec('raise KeyboardInterrupt')"]
    lines += ["    except KeyboardInterrupt: return 130", "app.run = run", "from fpsgen.__main__ import main", "main()"]
    (tmp_path / "interrupted.py").write_text("\n".join(lines))
    path = os.pathsep.join((str(Path(__file__).resolve().parent.parent), str(tmp_path)))
    done = subprocess.run([sys.executable, "-m", "interrupted"], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 130


@pytest.mark.parametrize("words", [["generate", "a cat", "--dry-run"], ["generate", "a cat", "--widht", "3"]])
def test_what_makes_no_video_does_not_wait_for_torch(words, tmp_path):
    code = f"sys.argv[1:] = {words!r}; os.chdir({str(tmp_path)!r})\n"
    done = in_main(code + "try: main()\nexcept SystemExit: print('torch' in sys.modules)")
    assert done.stdout.split()[-1] == "False", done.stderr
