"""A file of prompts, checked as a whole before anything is made: every line becomes a job with nothing left open.

A job's key is a hash of all that decides its video. Where the line sets no output, the key is part of the file's name;
so running the same command again finds what is done, and a line that was changed gets a new file.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen.batch.prompt_file import Line, parse_line, read_lines
from fpsgen.errors import BAD_INPUT, MODEL, NUMERIC, USAGE, FpsgenError
from fpsgen.models.catalog.choice import ModelChoice, choose
from fpsgen.pipeline import output as out
from fpsgen.pipeline.plan import check_prompt, plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.settings.gather import Settings, gather_lines, refusal
from fpsgen.settings.table import SETTINGS
from fpsgen.text import show

_OWN = ("seed", "negative", "output")  # what lines set without having settings of their own


@dataclass(frozen=True, slots=True)
class Job:
    """One line of the file, kept small: there may be 100,000.

    number: counted from 1. key: 16 hex digits. negative: None is that of `shared`. own: the output that the line sets,
    a file or a folder (ending in /) within the batch's; None is the batch's folder. shared: what the job has in common
    with other lines, its output's folder among it.
    """

    number: int
    key: str
    prompt: str
    negative: str | None
    seed: int
    own: str | None
    shared: GenerateRequest

    @property
    def named(self) -> bool:
        """Whether the line itself names its file."""
        return self.own is not None and not self.own.endswith("/")

    @property
    def name(self) -> str:
        """The file within the batch's folder."""
        if self.own is not None and self.named:
            return self.own
        return f"{self.own or ''}{out.slug(self.prompt)}-{self.seed}-{self.key[:8]}{out.VIDEO}"

    @property
    def path(self) -> Path:
        return self.shared.output.path.parent / self.name

    @property
    def request(self) -> GenerateRequest:
        texts = {"text": self.prompt} | ({} if self.negative is None else {"negative": self.negative})
        where = {"path": self.path, "numbered": not self.named}
        return self.shared.replace(prompt=texts, sampling={"seed": self.seed}, output=where)


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
    """All jobs of a file, see prompt_file.

    flags: the command line, the default of every line; its output is a folder, or a name with fields ({n} is the
    line's number). choose_model: asked once for each model and size. A line without a seed gets one from its prompt
    and from how often that prompt came before, so that equal prompts differ and runs repeat.
    Raises FpsgenError: BAD_INPUT and NUMERIC (strict) naming the line, USAGE for the command line, MODEL, DISK.
    """
    reader = _Reader(flags, overwrite, choose_model)
    first, wrong = None, 0
    jobs: list[Job] = []
    for line in read_lines(source):
        try:
            jobs.append(reader.job(line))
        except FpsgenError as error:
            if error.code == NUMERIC:  # strict
                raise FpsgenError(f"{line.where}: {error.message}", error.remedy, NUMERIC) from None
            if error.code not in (USAGE, BAD_INPUT):
                raise
            text = error.message if line.where in error.message else f"{line.where}: {error.message}"
            first = first or FpsgenError(text, error.remedy, BAD_INPUT)
            wrong += 1
    if first:
        tail = f" (and {wrong - 1} more line{'s' * (wrong > 2)} cannot be used)" if wrong > 1 else ""
        raise FpsgenError(first.message + tail, first.remedy, BAD_INPUT)
    _check_distinct(jobs)
    return Batch(tuple(jobs), reader.folder, tuple(dict.fromkeys(reader.warnings)))


def job_key(request: GenerateRequest) -> str:
    """16 hex digits of what decides the video. Device, folder and file name are not among it."""
    return _key(_key_of_shared(request), request.prompt.text, request.prompt.negative, request.sampling.seed)


def derived_seed(prompt: str, repeat: int) -> int:
    """The seed of the `repeat`-th line (from 0) with this prompt, where the file and the command line set none."""
    return int.from_bytes(hashlib.sha256(f"{repeat}:{prompt}".encode()).digest()[:4], "big") >> 1


class _Reader:
    """Makes jobs of lines. Settings that lines have in common are settled once."""

    def __init__(
        self,
        flags: Mapping[str, str | bool | None],
        overwrite: bool,
        choose_model: Callable[[Settings], ModelChoice],
    ) -> None:
        self._settings_of = gather_lines(flags)
        shared = self._settings_of(None)
        self.warnings = list(shared.warnings)
        self.folder, self._template = _folder_and_template(shared.output)
        self._root = os.path.realpath(self.folder)
        self._overwrite = overwrite
        self._choose_model = choose_model
        self._chosen: dict[Any, ModelChoice] = {}
        self._groups: dict[str, tuple[Settings, GenerateRequest, Any] | FpsgenError] = {}
        self._places: set[str] = set()
        self._repeats: Counter[str] = Counter()

    def job(self, line: Line) -> Job:
        prompt, values = parse_line(line)
        prompt = check_prompt(prompt)
        settings, shared, key_of_shared = self._group(line.where, prompt, values)
        negative = _value_of_line("negative", values, line.where)
        seed = _value_of_line("seed", values, line.where)
        seed = settings.seed if seed is None else seed
        if seed is None:
            seed = derived_seed(prompt, self._repeats[prompt])
            self._repeats[prompt] += 1
        key = _key(key_of_shared, prompt, shared.prompt.negative if negative is None else negative, seed)
        own = _value_of_line("output", values, line.where) or self._template
        if own is not None:
            name = out.fill_fields(own, prompt, seed, line.number) if out.has_fields(own) else own
            own = self._inside(name, shared.video.frames, shared.video.fps)
        return Job(line.number, key, prompt, negative, seed, own, shared)

    def _group(self, where: str, prompt: str, values: dict[str, Any]) -> tuple[Settings, GenerateRequest, Any]:
        """(settings, request, its part of the key) of lines that set `values`, up to what each line has alone."""
        common = {name: value for name, value in values.items() if name not in _OWN}
        name = json.dumps(common, sort_keys=True) if common else ""
        if name not in self._groups:
            try:
                settings = self._settings_of((where, common))
                into_folder = settings.replace(output=f"{self.folder}/", overwrite=True)
                planned = plan(prompt, into_folder, self._model(settings))
                self.warnings += planned.notes
                request = planned.request.replace(output={"overwrite": self._overwrite})
                self._groups[name] = (settings, request, _key_of_shared(request))
            except FpsgenError as error:
                if "model" in common and error.code == MODEL:
                    error = FpsgenError(f"{where}: {error.message}", error.remedy, MODEL)
                self._groups[name] = error
        found = self._groups[name]
        if isinstance(found, FpsgenError):
            raise found
        return found

    def _model(self, settings: Settings) -> ModelChoice:
        asked = (settings.model, settings.res, settings.device)
        if asked not in self._chosen:
            self._chosen[asked] = self._choose_model(settings)
        return self._chosen[asked]

    def _inside(self, own: str, frames: int, fps: int) -> str:
        """A line's output, which has to lie in the batch's folder; folders end in /. Raises FpsgenError."""
        parts = own.replace("\\", "/").split("/")  # as Windows reads it too
        if not parts[0] or ".." in parts or ":" in parts[0]:
            what = f"output {show(own)!r} is not a name within the folder {show(self.folder)}"
            raise FpsgenError(what, "name a file or folder there, or choose another folder with -o", BAD_INPUT)
        full = os.path.normpath(os.path.join(self.folder, own))
        out.check_name(full, own)
        folder = out.is_folder(own) or os.path.isdir(full)
        if not folder:
            out.check_file_name(full, own, frames, fps)
        place = full if folder else os.path.dirname(full) or "."
        if place not in self._places:
            real = os.path.realpath(place)
            if real != self._root and not real.startswith(self._root.rstrip(os.sep) + os.sep):
                what = f"output {show(own)!r} leads out of the folder {show(self.folder)}, to {show(real)}"
                raise FpsgenError(what, "name a file or folder there, or choose another folder with -o", BAD_INPUT)
            out.check_writable(Path(place))
            self._places.add(place)
        name = os.path.normpath(own)
        return f"{name}/" if folder else name


def _folder_and_template(output: str | None) -> tuple[Path, str | None]:
    """The batch's folder, and the name with fields within it, if -o is one. Raises FpsgenError USAGE, DISK."""
    output = output or out.OUTPUT_FOLDER
    template = None
    if out.has_fields(output):
        before, _, after = output.partition("{")
        place, _, start = before.rpartition("/")
        template = f"{start}{{{after}"
        output = place or ("/" if before.startswith("/") else ".")
    folder = Path(output)
    out.check_name(output, output)
    if template is None and folder.suffix.lower() in out.KINDS and not out.is_folder(output):
        remedy = "name a folder with -o, or use fields: -o '{slug}-{n}.mp4'"
        raise FpsgenError(f"-o {show(folder)} is one file, for many videos", remedy, USAGE)
    out.check_writable(folder)
    return folder, template


def _value_of_line(name: str, values: Mapping[str, Any], where: str) -> Any:
    """The value that a line sets, read as everywhere; None where it sets none. Raises FpsgenError BAD_INPUT."""
    if name not in values:
        return None
    try:
        return SETTINGS[name].read(values[name])
    except ValueError:
        raise refusal(SETTINGS[name], values[name], f"{name} in {where}", BAD_INPUT) from None


def _key_of_shared(request: GenerateRequest) -> Any:
    """The hash of all that decides a video but prompt, negative prompt and seed."""
    values = request.deciding()
    rest = {name: value for name, value in values.items() if name not in ("prompt", "negative", "seed")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode())


def _key(shared: Any, prompt: str, negative: str, seed: int) -> str:
    whole = shared.copy()
    whole.update(json.dumps([prompt, negative, seed]).encode())
    return whole.hexdigest()[:16]


def _check_distinct(jobs: list[Job]) -> None:
    """Raise FpsgenError BAD_INPUT where two lines would write one file, on any file system: names that differ in case
    or in how a letter is composed are one file on some.
    """
    _check_folders(jobs)
    named: dict[str, Job] = {}
    places: dict[str, str] = {}
    for job in jobs:
        if job.named:
            _refuse_same_file(named.setdefault(_same_file(job, places), job), job)
    unnamed: dict[tuple[str | None, int, str], Job] = {}
    for job in jobs:
        if job.named:
            continue
        other = unnamed.setdefault((job.own, job.seed, job.key[:8]), job)
        if other is not job and other.key == job.key:
            what = f"lines {other.number} and {job.number} ask for the same video"
            raise FpsgenError(what, "remove one, or give them different seeds", BAD_INPUT)
        if other is not job and other.name == job.name:
            _refuse_same_file(other, job)
        if named:
            _refuse_same_file(named.get(_same_file(job, places)), job)


def _check_folders(jobs: list[Job]) -> None:
    """Raise FpsgenError BAD_INPUT where the file of a line, or its sidecar, is a folder of another."""
    folders: dict[str, Job] = {}
    for job in jobs:
        place = os.path.dirname(job.own or "")
        while place and _normalized(place) not in folders:
            folders[_normalized(place)] = job
            place = os.path.dirname(place)
    for job in jobs if folders else ():
        for name in (job.name, str(out.sidecar(Path(job.name)))):
            if job.named and (other := folders.get(_normalized(name))):
                what = (
                    f"line {job.number} writes {show(job.path)}, and line {other.number} into the folder {show(name)}"
                )
                raise FpsgenError(what, "give each its own output", BAD_INPUT)


def _normalized(name: str) -> str:
    """A text that is equal for names which are one on some file system."""
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_same_file(other: Job | None, job: Job) -> None:
    if other is not None and other is not job:
        first, second = sorted((other, job), key=lambda one: one.number)
        what = f"lines {first.number} and {second.number} both write {show(second.path)}"
        names = [os.path.splitext(job.name)[0] for job in (first, second)]
        if names[0] != names[1] and _normalized(names[0]) == _normalized(names[1]):
            what += f": {show(first.path)} is that file too where upper and lower case, or forms of a letter, are one"
        raise FpsgenError(what, "give each its own output", BAD_INPUT)


def _same_file(job: Job, places: dict[str, str]) -> str:
    """A text that is equal for jobs whose files, or their sidecars, may be one file."""
    place, name = os.path.split(job.name)
    if place not in places:
        places[place] = os.path.realpath(job.path.parent)
    return _normalized(f"{places[place]}/{os.path.splitext(name)[0]}")
