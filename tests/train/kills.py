"""Kill a run with SIGKILL at random moments and let it go on, again and again; is it the unbroken run in the end?

    python tests/train/kills.py RUN.json FOLDER --kills 100 --seed 0

RUN.json: TrainConfig.to_json. Everything is imported once; each life of the run is a fork of this process. stdout: one
JSON object with kills, runs that came to an end, and how many of them equal the unbroken one to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from fpsgen.models.catalog.manifest import sha256
from fpsgen.report.training import read_log
from fpsgen.train.config import TrainConfig
from fpsgen.train.events import Silent
from fpsgen.train.log import LOG
from fpsgen.train.run import train


def life(config: TrainConfig, folder: Path, seconds: float | None) -> bool:
    """Run in a child until it ends or `seconds` have passed; whether it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            train(config, folder, torch.device("cpu"), Silent(), Silent())
            os._exit(0)
        finally:
            os._exit(1)
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status):
                sys.exit(f"a run that was to go on failed in {folder}")
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def result(folder: Path) -> tuple:
    """What must be equal: the log without times, the exported weights, the last checkpoint's tensors."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(folder / LOG)]
    last = sorted(folder.glob("step-*"))[-1]
    files = [*sorted((folder / "model" / "transformer").glob("*.safetensors")), *sorted(last.glob("*.safetensors"))]
    return rows, [(path.name, sha256(path)) for path in files], (folder / "before.json").read_text()


def place(folder: Path) -> str:
    """How far a killed run had come."""
    if (folder / "model").exists():
        return "after the export"
    if list(folder.glob(".*.part")):
        return "while a checkpoint or the export was written"
    if not (folder / "before.json").exists():
        return "before the first step"
    return "between steps"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config, chance = TrainConfig.from_json(args.run), random.Random(args.seed)
    began = time.monotonic()
    life(config, args.folder / "unbroken", None)
    whole = time.monotonic() - began
    wanted = result(args.folder / "unbroken")
    kills, runs, equal, places = 0, 0, 0, Counter()
    while True:
        folder = args.folder / f"killed-{runs}"
        ended = life(config, folder, chance.uniform(0.0, whole) if kills < args.kills else None)
        if not ended:
            kills += 1
            places[place(folder)] += 1
            continue
        runs += 1
        equal += result(folder) == wanted
        if kills >= args.kills:
            break
    print(json.dumps({"kills": kills, "runs": runs, "equal": equal, "steps": config.steps, "places": dict(places)}))


if __name__ == "__main__":
    main()
