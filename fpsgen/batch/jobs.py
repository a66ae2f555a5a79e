"""A file of prompts, checked as a whole before anything is made: every line becomes a job with nothing left open.

A job's key is a hash of all that decides its video. Where the line sets no output, the key is part of the file's name;
so running the same command again finds what is done, and a line that was changed gets a new file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.pipeline.output import OUTPUT_FOLDER, check_writable, slug
from fpsgen.pipeline.plan import plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.settings.gather import Settings, gather
from fpsgen.text import show

STDIN = "-"
LINES, OBJECTS = ".txt", ".jsonl"
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Job:
    """One line of the file. number: counted from 1. key: 16 hex digits. named: the line itself sets its output."""

    number: int
    key: str
    named: bool
    request: GenerateRequest


@dataclass(frozen=True)
class Batch:
    """jobs in the order of the file; folder: where videos without a name of their own go, with the ledger."""

    jobs: tuple[Job, ...]
    folder: Path
    warnings: tuple[str, ...]


def choose_on_disk(settings: Settings) -> ModelChoice:
    """The model of `settings`, which has to be on this machine."""
    return choose(settings.model, settings.res, settings.device)


def read_batch(
    source: str,
    flags: Mapping[str, str | bool | None],
    overwrite: bool = False,
    choose_model: Callable[[Settings], ModelChoice] = choose_on_disk,
) -> Batch:
    """All jobs of a file: .txt (a prompt per line; blank lines and lines that begin with # are left out), .jsonl (an
    object per line: "prompt" and any setting of fpsgen.toml), or "-" for either on standard input.

    flags: the command line, the default of every line. choose_model: asked once for each model and size.
    A line without a seed gets one from its prompt and from how
    often that prompt came before, so that equal prompts differ and runs repeat.
    Raises FpsgenError: BAD_INPUT naming the line, USAGE for the command line, MODEL, DISK.
    """
    lines = read_lines(source)
    shared = gather(flags)
    folder = Path(shared.output or OUTPUT_FOLDER)
    if folder.suffix.lower() == ".mp4":
        raise FpsgenError(f"-o {show(folder)} is one file, for many videos", "name a folder with -o", USAGE)
    if folder.exists() and not folder.is_dir():
        raise FpsgenError(f"-o {show(folder)} is not a folder", "name another with -o", USAGE)
    check_writable(folder)
    chosen: dict[Any, ModelChoice] = {}
    repeats: Counter[str] = Counter()
    wrong: list[FpsgenError] = []
    jobs: list[Job] = []

    def choose_once(settings: Settings) -> ModelChoice:
        asked = (settings.model, settings.res, settings.device)
        if asked not in chosen:
            chosen[asked] = choose_model(settings)
        return chosen[asked]

    for number, values in lines:
        where = f"{'stdin' if source == STDIN else show(source)} line {number}"
        try:
            jobs.append(_job(number, where, dict(values), flags, folder, choose_once, repeats, overwrite))
        except FpsgenError as error:
            if error.code not in (USAGE, BAD_INPUT):
                raise
            text = error.message if where in error.message else f"{where}: {error.message}"
            wrong.append(FpsgenError(text, error.remedy, BAD_INPUT))
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        tail = f" (and {more} more line{'s' * (more > 1)} cannot be used)" if more else ""
        raise FpsgenError(first.message + tail, first.remedy, BAD_INPUT)
    _check_distinct(jobs)
    return Batch(tuple(jobs), folder, shared.warnings)


def read_lines(source: str) -> list[tuple[int, dict[str, Any]]]:
    """(number, settings with "prompt") of every line that asks for a video. Raises FpsgenError BAD_INPUT."""
    name = "stdin" if source == STDIN else show(source)
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if source == STDIN else _read(Path(source))
    except OSError as error:
        raise FpsgenError(f"{name} cannot be read: {error.strerror}", "name a .txt or .jsonl file", BAD_INPUT) from None
    if len(raw) > MAX_BYTES:
        raise FpsgenError(f"{name} is larger than {MAX_BYTES >> 20} MiB", "split it", BAD_INPUT)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise FpsgenError(f"{name} line {line} is not UTF-8 text", "save the file as UTF-8", BAD_INPUT) from None
    kind = Path(source).suffix.lower() if source != STDIN else OBJECTS if text.lstrip()[:1] == "{" else LINES
    if kind not in (LINES, OBJECTS):
        raise FpsgenError(f"{name} is neither {LINES} nor {OBJECTS}", "one prompt per line in a .txt file", BAD_INPUT)
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a prompt may hold other separators
        line = line.strip()
        if not line or (line.startswith("#") and kind == LINES):
            continue
        found.append((number, {"prompt": line} if kind == LINES else _object(line, f"{name} line {number}")))
    if not found:
        raise FpsgenError(f"{name} holds no prompt", 'write one per line, for example "a cat surfing"', BAD_INPUT)
    return found


def job_key(request: GenerateRequest) -> str:
    """16 hex digits of what decides the video. Device, folder and file name are not among it."""
    return hashlib.sha256(json.dumps(request.deciding(), sort_keys=True).encode()).hexdigest()[:16]


def derived_seed(prompt: str, repeat: int) -> int:
    """The seed of the `repeat`-th line (from 0) with this prompt, where the file and the command line set none."""
    return int.from_bytes(hashlib.sha256(f"{repeat}:{prompt}".encode()).digest()[:4], "big") >> 1


def _job(
    number: int,
    where: str,
    values: dict[str, Any],
    flags: Mapping[str, str | bool | None],
    folder: Path,
    choose_once: Callable[[Settings], ModelChoice],
    repeats: Counter[str],
    overwrite: bool,
) -> Job:
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        raise FpsgenError(f"{where} has no prompt", 'for example {"prompt": "a cat surfing", "seed": 1}', BAD_INPUT)
    settings = gather(flags, line=(where, values))
    own = values.get("output")
    if settings.seed is None:
        settings = settings.replace(seed=derived_seed(prompt, repeats[prompt]))
        repeats[prompt] += 1
    output = str(folder / str(own)) if own is not None else f"{folder}/"
    planned = plan(prompt, settings.replace(output=output, overwrite=True), choose_once(settings))
    request = planned.request.replace(output={"overwrite": overwrite, "numbered": own is None})
    key = job_key(request)
    if own is None:
        path = folder / f"{slug(request.prompt.text)}-{request.sampling.seed}-{key[:8]}.mp4"
        request = request.replace(output={"path": path})
    return Job(number, key, own is not None, request)


def _check_distinct(jobs: list[Job]) -> None:
    seen: dict[Any, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.request.output.path.absolute(), job)
        if other is not job and other.key == job.key and not job.named:
            what = f"lines {other.number} and {job.number} ask for the same video"
            raise FpsgenError(what, "remove one, or give them different seeds", BAD_INPUT)
        if other is not job:
            what = f"lines {other.number} and {job.number} both write {show(job.request.output.path)}"
            raise FpsgenError(what, "give each its own output", BAD_INPUT)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", "too deep")
        example = '{"prompt": "a cat surfing", "seed": 1}'
        raise FpsgenError(f"{where} is not JSON: {what}", f"for example {example}", BAD_INPUT) from None
    if not isinstance(value, dict):
        raise FpsgenError(f"{where} is not a JSON object", 'for example {"prompt": "a cat surfing"}', BAD_INPUT)
    return value
