"""Batches under attack: kills, full disks, signals, broken ffmpegs, files that no one wrote by hand. The generator is a
fake, what surrounds it is the real code. Each count has a control that must fail.
"""

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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "batch"), str(HERE.parent)]

import fake_ffmpeg  # noqa: E402
import fake_generator  # noqa: E402

from fpsgen.batch.ledger import NAME  # noqa: E402
from fpsgen.ffmpeg import ffmpeg  # noqa: E402
from fpsgen.video import count_frames, read_recipe, whole_mp4  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SMALL = ("-m", "nano", "--frames", "5", "--steps", "1")


class Folder:
    """One batch of 30 lines, half of which name their file."""

    def __init__(self, place: Path, named: bool = True) -> None:
        place.mkdir()
        self.place, self.log = place, place / "begun"
        lines = [{"prompt": f"cat {i}"} | ({"output": f"sub/{i}.mp4"} if named and i % 2 else {}) for i in range(30)]
        (place / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
        self.count = len(lines)

    def start(self, **env: str) -> subprocess.Popen:
        line, around = fake_generator.command(self.log, "batch", "p.jsonl", *SMALL, "-o", "out")
        return subprocess.Popen(
            line,
            cwd=self.place,
            env=around | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def videos(self) -> list[Path]:
        return sorted((self.place / "out").rglob("*.mp4"))

    def faults(self) -> Counter[str]:
        """What is not as promised once a run has ended well."""
        found: Counter[str] = Counter()
        entered = set()
        ledger = self.place / "out" / NAME
        for line in ledger.read_bytes().split(b"\n") if ledger.exists() else ():
            try:
                entry = json.loads(line)
                entered |= {entry["path"]} if "bytes" in entry else set()
            except ValueError:
                continue
        for path in self.videos:
            beside = path.with_suffix(".json")
            found["corrupt"] += count_frames(path) != 5
            recipe = read_recipe(path)
            found["without sidecar"] += not beside.is_file() or json.loads(beside.read_text())["recipe"] != recipe
            found["without ledger entry"] += str(path.relative_to(self.place / "out")) not in entered
        prompts = Counter(str((read_recipe(path) or {}).get("prompt")) for path in self.videos)
        found["lost"] = self.count - len(prompts)
        found["made twice"] = sum(prompts.values()) - len(prompts)
        found["orphans"] = len(list((self.place / "out").rglob(".fpsgen-*.part*")))
        return found


def wait_for_work(process: subprocess.Popen) -> None:
    """Until the batch has said what it will do."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("batch"):
            return


def kill_at_random(folder: Folder, draw: random.Random, kills: int, **env: str) -> tuple[int, bool, int]:
    """(kills, whether the batch came to its end, broken files seen under a final name meanwhile)."""
    done = broken = 0
    while done < kills:
        process = folder.start(**env)
        wait_for_work(process)
        time.sleep(draw.uniform(0, 1.5))
        if process.poll() is not None:
            _, said = process.communicate()
            assert process.returncode == 0, said
            return done, True, broken
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done += 1
        broken += sum(not whole_mp4(path) for path in folder.videos)
    return done, False, broken


def finish(folder: Folder, **env: str) -> None:
    process = folder.start(**env)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def counted(total: Counter[str]) -> str:
    """The faults of all folders, each with its number."""
    names = ("corrupt", "lost", "made twice", "without sidecar", "without ledger entry", "orphans")
    return ", ".join(f"{total[name]} {name}" for name in names)


def test_kills(tmp_path, row):
    """200 kill -9 in batches of 30 videos. The control does not look for what a killed run left: 60 kills, or as many
    as it takes until one hits a moment that leaves something.
    """
    draw = random.Random(0)
    total: Counter[str] = Counter()
    kills = number = begun = jobs = 0
    while kills < 200:
        folder = Folder(tmp_path / f"b{number}")
        done, ended, broken = kill_at_random(folder, draw, 200 - kills)
        kills, number = kills + done, number + 1
        if not ended:
            finish(folder)
        finish(folder)  # once more: nothing is left to do, nothing lies about
        total += folder.faults() + Counter({"corrupt": broken})
        begun, jobs = begun + len(folder.log.read_text().splitlines()), jobs + folder.count
    control: Counter[str] = Counter()
    control_kills = 0
    while control_kills < 60 or (control_kills < 300 and not +control):
        folder, number = Folder(tmp_path / f"c{number}", named=False), number + 1
        control_kills += kill_at_random(folder, draw, 60 - control_kills % 60, FAKE_FORGETS="1")[0]
        finish(folder, FAKE_FORGETS="1")
        control += folder.faults()
    seen = {name: count for name, count in control.items() if count}
    redone = begun - jobs
    row(
        "kill -9 in a batch",
        tried=kills,
        as_promised=kills - sum(total.values()),
        control=f"{control_kills} kills, left-overs not looked for: {', '.join(f'{c} {n}' for n, c in seen.items())}",
        detail=f"{jobs} videos: {counted(total)}, {redone} begun again",
    )
    assert not +total, total
    assert redone <= kills and seen


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(tmp_path, row, number, code):
    """25 of each at random moments. The control is a process that they do not reach."""
    draw, good = random.Random(1), 0
    folder = Folder(tmp_path / "b")
    for _ in range(25):
        process = folder.start()
        wait_for_work(process)
        time.sleep(draw.uniform(0, 1))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        made = len(folder.videos) == folder.count
        if process.returncode == 0 or (made and process.returncode == -number):  # it had ended, or was on its way out
            folder = Folder(tmp_path / f"b{time.monotonic_ns()}")
            good += 1
            continue
        clean = not list(folder.place.rglob(".fpsgen-*.part*")) and "Traceback" not in said
        running = ("-r", "D,R,S,T")  # what has ended and waits to be reaped is no child left behind
        children = subprocess.run(["pgrep", *running, "-g", str(process.pid)], capture_output=True).stdout
        good += process.returncode == code and clean and not children
    folder = Folder(tmp_path / "deaf")
    process = folder.start(FAKE_DEAF="1")
    wait_for_work(process)
    while not folder.log.exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=300)
    row(
        f"{signal.Signals(number).name} in a batch",
        tried=25,
        as_promised=good,
        control=f"one that does not hear it: exit {process.returncode}",
        detail=f"exit {code}, no temporary, no child",
    )
    assert good == 25 and process.returncode == 0


def mount(place: Path, kilobytes: int, *more: str) -> None:
    options = ",".join((f"size={kilobytes}k", *more))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True)


def test_disk_sizes(tmp_path, row):
    """50 disks, from nothing to more than the batch needs; then there is room, and the same command goes on."""
    place, good, full = tmp_path / "disk", 0, 0
    place.mkdir()
    try:
        mount(place, 64)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a tmpfs")
    subprocess.run(["umount", str(place)], check=True)
    (tmp_path / "p.txt").write_text("a cat\na dog\na bug\n")
    line, env = fake_generator.command(tmp_path / "log", "batch", "p.txt", *SMALL, "-o", str(place / "out"))
    for step in range(50):
        mount(place, 4 + 16 * step)
        try:
            first = subprocess.run(line, cwd=tmp_path, env=env | {"FAKE_NOISE": "1"}, capture_output=True, text=True)
            videos = list(place.rglob("*.mp4"))
            kept = all(count_frames(path) == 5 for path in videos) and first.returncode in (0, 7)
            full += first.returncode == 7
            mount(place, 4096, "remount")
            again = subprocess.run(line, cwd=tmp_path, env=env | {"FAKE_NOISE": "1"}, capture_output=True, text=True)
            videos = sorted(place.rglob("*.mp4"))
            whole = [count_frames(path) == 5 and path.with_suffix(".json").is_file() for path in videos]
            clean = len(videos) == 3 and not list(place.rglob(".fpsgen-*.part*"))
            good += kept and again.returncode == 0 and all(whole) and clean
        finally:
            subprocess.run(["umount", str(place)], check=True)
    control = _unchecked_writes(place)
    row(
        "full disk in a batch",
        tried=50,
        as_promised=good,
        control=f"ffmpeg writing under the final name: {control} of 50 files broken or empty",
        detail=f"{full} runs ended with exit 7; all went on once there was room; no broken file under a final name",
    )
    assert good == 50 and 10 < full < 50 and control > 10


def _unchecked_writes(place: Path) -> int:
    """How many of 50 disks end with a broken file where ffmpeg writes it directly."""
    broken = 0
    for step in range(50):
        mount(place, 4 + 4 * step)
        try:
            path = place / "a.mp4"
            source = "nullsrc=s=128x128:r=8:d=0.625,geq=random(1)*255:128:128"
            subprocess.run([ffmpeg(), "-v", "quiet", "-f", "lavfi", "-i", source, "-crf", "18", str(path)])
            broken += path.exists() and count_frames(path) != 5
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return broken


def test_broken_ffmpegs(tmp_path, row, monkeypatch):
    """Each is named, before the first video where it can be seen then, and leaves no file under a final name."""
    (tmp_path / "p.txt").write_text("a cat\n")
    faults = fake_ffmpeg.BROKEN | fake_ffmpeg.FILES_ALONE
    good = []
    for number, (name, script) in enumerate(faults.items()):
        log = tmp_path / f"log{number}"
        path = fake_ffmpeg.install(tmp_path, script, monkeypatch)
        line, env = fake_generator.command(log, "batch", "p.txt", *SMALL, "-o", f"out{number}")
        start = "import fpsgen.ffmpeg as f, runpy, sys; f.PATIENCE = 2.0; sys.argv = sys.argv[1:]; "
        line = [sys.executable, "-c", start + "runpy.run_module('fake_generator', run_name='__main__')", *line[2:]]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        early = name in fake_ffmpeg.BROKEN
        named = str(path) in done.stderr if early else "error: " in done.stderr
        left = [entry for entry in (tmp_path / f"out{number}").iterdir() if not entry.name.startswith(".fpsgen-batch")]
        if done.returncode == (6 if early else 7) and named and log.exists() != early and not left:
            good.append(name)
        monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    line, env = fake_generator.command(tmp_path / "log", "batch", "p.txt", *SMALL, "-o", "out")
    control = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True).returncode
    row(
        "broken ffmpeg",
        tried=len(faults),
        as_promised=len(good),
        control=f"one that works: exit {control}",
        detail=f"{len(fake_ffmpeg.BROKEN)} found before the first video, the others when it was written",
    )
    assert len(good) == len(faults) and control == 0, set(faults) - set(good)


def test_generated_prompt_files(tmp_path, row, monkeypatch):
    """10,000 files put together at random: each is read or refused with its line, and nothing leads outside."""
    from fpsgen.batch import prompt_file
    from fpsgen.batch.jobs import read_batch
    from fpsgen.errors import BAD_INPUT, MODEL, USAGE, FpsgenError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def count(tried: int) -> tuple[int, int, int]:
        draw, internal, outside, read = random.Random(2), 0, 0, 0
        for _ in range(tried):
            kind, text = _prompt_file(draw)
            Path(f"p{kind}").write_bytes(text)
            try:
                batch = read_batch(f"p{kind}", {"model": "nano", "output": "out"})
            except FpsgenError as error:
                internal += error.code not in (BAD_INPUT, USAGE, MODEL) or "\x1b" in error.message
            except Exception:
                internal += 1
            else:
                read += 1
                inside = (Path("out").resolve() in job.path.resolve().parents for job in batch.jobs)
                outside += not all(inside)
        return internal, outside, read

    internal, outside, read = count(10_000)
    with monkeypatch.context() as patch:
        patch.setattr(prompt_file, "parse_json", lambda text, *rest, **more: json.loads(text))
        control = count(500)[0]
    row(
        "generated prompt files",
        tried=10_000,
        as_promised=10_000 - internal - outside,
        control=f"lines read by json.loads alone: {control} of 500 end in an internal error",
        detail=f"{read} read, {10_000 - read} refused by line; {internal} internal errors, {outside} files outside",
    )
    assert not internal and not outside and control and 500 < read < 9_500


WORDS = [
    "a cat",
    "--seed",
    "--w 16",
    "--h=16",
    "--n",
    "blur",
    "--",
    "# x",
    "\ufeff",
    "\u200b",
    "\u202e",
    "\0",
    "\x1b[31m",
]
WORDS += ["--steps", "20", "-5", "9" * 5000, "{n}", "{slug}", "\U0001f600", "e\u0301", "--output", "../x.mp4", "/a.mp4"]
KEYS = ["prompt", "seed", "steps", "output", "negative", "res", "guidance", "model", "strict", "x", "schedule", "fps"]
VALUES = ["a cat", "", 5, -1, 2.5, True, None, [1], {"a": 1}, "../a.mp4", "a.mp4", "sub/", "/a.mp4", "480p", "1" * 99]
VALUES += [
    "http://a/b.mp4",
    "{seed}.mp4",
    "{x}.mp4",
    "a\u202eb",
    "nano",
    "x" * 20_000,
    10**30,
    "~/a.mp4",
    "con.mp4",
    ".",
]
ENDS = ["\n", "\r\n", "\r", "\u2028", "\x85", "\n\n", "\n\ufeff"]


def _prompt_file(draw: random.Random) -> tuple[str, bytes]:
    kind = draw.choice((".txt", ".jsonl"))
    text = ""
    for _ in range(draw.randint(0, 4)):
        if kind == ".txt":
            text += " ".join(draw.choices(["a cat", "a dog", *WORDS], [9, 9] + [1] * len(WORDS), k=draw.randint(1, 4)))
        else:
            line = {"prompt": f"a cat {draw.random()}"} | {
                draw.choice(KEYS): draw.choice(VALUES) for _ in range(draw.randint(0, 2))
            }
            text += json.dumps(line)
            if draw.random() < 0.1:
                text = text.replace('"seed":', '"prompt": "b", "seed":')
            if draw.random() < 0.1:
                text = text[: draw.randint(0, len(text))]
            text = text.replace("1" * 30, "1" * 5000) if draw.random() < 0.02 else text
        text += draw.choice(ENDS)
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.05:
        place = draw.randint(0, len(data))
        data = data[:place] + bytes([draw.randint(0, 255)]) + data[place:]
    return kind, data
