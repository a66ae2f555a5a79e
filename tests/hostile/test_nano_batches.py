"""Batches of real videos by the embedded model, killed at random moments of their work."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hostile.test_batches import SMALL, Folder, counted, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]
ROOT = Path(__file__).resolve().parents[2]


class NanoFolder(Folder):
    """One batch of 12 lines, made by nano itself."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        lines = [{"prompt": f"a red ball {i}"} | ({"output": f"sub/{i}.mp4"} if i % 2 else {}) for i in range(12)]
        (place / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
        self.count = len(lines)

    def start(self, **env: str) -> subprocess.Popen:
        around = {name: value for name, value in os.environ.items() if not name.startswith("FPSGEN_")}
        around |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(self.place / "none"), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "fpsgen", "batch", "p.jsonl", *SMALL, "-o", "out"],
            cwd=self.place,
            env=around | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def kill_at_work(folder: NanoFolder, draw: random.Random) -> bool:
    """Start a run and kill it within a video, after none to two others; False if it came to its end before."""
    process = folder.start()
    lines = draw.randint(1, 5)  # two a video: when it begins and when it ends
    assert process.stderr is not None
    for line in process.stderr:
        lines -= line.startswith("[")
        if not lines:
            break
    time.sleep(draw.uniform(0, 4))
    if process.poll() is not None:
        _, said = process.communicate()
        assert process.returncode == 0, said
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def test_kills_of_nano(tmp_path, row):
    """30 kill -9. The control is the same count before the run that completes what lacks."""
    draw = random.Random(3)
    total: Counter[str] = Counter()
    before: Counter[str] = Counter()
    kills = videos = number = 0
    while kills < 30:
        folder = NanoFolder(tmp_path / f"n{number}")
        number += 1
        while kills < 30 and kill_at_work(folder, draw):
            kills += 1
            found = folder.faults()
            total["corrupt"] += found["corrupt"]
            before += found
        finish(folder)
        finish(folder)
        total += folder.faults()
        videos += folder.count
    seen = ", ".join(f"{count} {name}" for name, count in before.items() if count)
    row(
        "kill -9 in a batch by nano",
        tried=kills,
        as_promised=kills - sum(total.values()),
        control=f"counted after each kill, before the next run: {seen}",
        detail=f"{videos} videos: {counted(total)}",
    )
    assert not +total, total
    assert before["lost"]
