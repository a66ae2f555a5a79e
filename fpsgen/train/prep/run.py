"""Prepare videos from top to bottom: judge each, encode what is kept, write shards. What is done is not done again.

A video is decoded twice: small, to judge its clips, and at the data's size where a clip is kept. One clip is in memory
at a time. The outcome follows from the data and the settings alone: a run that was killed ends in the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import lock, make_folder, read_json
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.models.wan.load import load
from fpsgen.signals import check_stop
from fpsgen.text import show
from fpsgen.train.disk import check_space
from fpsgen.train.events import Events
from fpsgen.train.prep.encode import Encoder
from fpsgen.train.prep.filters import Dropped, Filters, enlargement, judge_clip, judge_picture
from fpsgen.train.prep.frames import Box, Picture, centre, clip_frames, probe
from fpsgen.train.prep.identity import check_identity, of_model, of_sources
from fpsgen.train.prep.measures import Measures, check_opencv, distances, measure, small_size
from fpsgen.train.prep.shards import DATA, DROPPED, Shards
from fpsgen.train.prep.sources import Source, video_file


@dataclass(frozen=True)
class PrepConfig:
    """width, height in pixels; frames of a clip; fps: its rate. clips: at most so many of a video, one behind the
    other from its start on. held_out: share of the videos that are for validation alone.
    """

    width: int
    height: int
    frames: int
    fps: int
    clips: int = 1
    held_out: float = 0.05
    filters: Filters = field(default_factory=Filters)


def prepare(
    sources: Sequence[Source],
    config: PrepConfig,
    choice: ModelChoice,
    folder: Path,
    device: torch.device,
    events: Events,
) -> dict[str, Any]:
    """Latents and text embeddings of all videos, in `folder`. choice: a model on this machine. Returns what data.json
    holds.

    Raises FpsgenError: BAD_INPUT where the folder holds other data or nothing was kept, ENVIRONMENT, DISK where it does
    not fit or cannot be written, LOCKED, NUMERIC.
    """
    if config.filters.flow is not None:
        check_opencv()
    make_folder(folder)
    with lock(folder / ".lock", f"{show(folder)} is used by another run", "wait for it, or name another with -o"):
        digest = check_identity(folder, {**_settings(config), **of_model(choice), **of_sources(sources)})
        if (folder / DATA).exists():
            return read_json(folder / DATA, 1 << 30, str(folder / DATA))
        size = sample_bytes(choice, config)
        shards = Shards(folder, size)
        todo = sum(not shards.done(source.name) for source in sources)
        check_space(folder, todo * size, f"{todo} clips")  # of a video there may be more, or none
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        pipe = load(choice, device=device, dtype=dtype, transformer=False)
        encoder = Encoder(pipe, choice.spec.max_sequence_length)
        _Run(config, encoder, shards, events).all(sources, todo)
        return _finish(sources, config, choice, shards, encoder.text(""), digest)


def sample_bytes(choice: ModelChoice, config: PrepConfig) -> int:
    """What one clip takes on the disk."""
    assert choice.pipeline is not None
    configs, geometry = choice.pipeline.configs, choice.geometry
    frames = (config.frames - 1) // geometry.temporal + 1
    cells = frames * (config.height // geometry.spatial) * (config.width // geometry.spatial)
    text = choice.spec.max_sequence_length * configs["transformer"]["text_dim"]
    return 2 * (configs["vae"]["z_dim"] * cells + text)


class _Run:
    """The pass over all videos. It goes by their order, so that a run that goes on decides as one from the start."""

    def __init__(self, config: PrepConfig, encoder: Encoder, shards: Shards, events: Events) -> None:
        self.config, self.encoder, self.shards, self.events = config, encoder, shards, events
        self.size = config.width, config.height
        self.hashes = bytearray()  # of all clips kept so far, and their videos
        self.names: list[str] = []
        self.kept_videos = 0

    def all(self, sources: Sequence[Source], todo: int) -> None:
        done = 0
        for source in sources:
            check_stop()
            if self.shards.done(source.name):
                rows = self.shards.rows.get(source.name, [])
                for row in rows:
                    self._remember(row["hash"], source.name)
            else:
                rows = self._one(source)
                done += 1
                self.events.step(done - 1, todo, f"{show(source.name)}: {f'{len(rows)} kept' if rows else 'dropped'}")
            self.kept_videos += bool(rows)
        self.shards.flush()

    def _one(self, source: Source) -> list[dict[str, Any]]:
        """Judge a video and encode what is kept of it; its rows."""
        if source.problem is not None:
            self._drop(source, Dropped(*source.problem, ""), 0, 1)
            return []
        with video_file(source, self.shards.folder) as path:
            picture, verdicts = self._judge(source, path)
            rows = []
            for clip, verdict in enumerate(verdicts):
                why = verdict if isinstance(verdict, Dropped) else self._duplicate(verdict.hash)
                if why is not None:
                    self._drop(source, why, clip, len(verdicts))
                else:
                    self._remember(verdict.hash, source.name)
                    rows.append(self._row(source, picture, verdict, clip, len(verdicts)))
                    if rows[-1] not in self.shards.rows.get(source.name, []):
                        box = centre(picture, verdict.box, self.size)
                        frames = self._clip(path, clip, self.size, box)
                        self.shards.add(self.encoder.latents(frames), self.encoder.text(source.caption), rows[-1])
        return rows

    def _judge(self, source: Source, path: Path) -> tuple[Picture, list[Dropped | Measures]]:
        """The verdict on each clip of a video, duplicates apart."""
        config, filters = self.config, self.config.filters
        picture = Picture(0, 0, 0.0)
        verdicts: list[Dropped | Measures] = []
        try:
            picture = probe(path)
            wrong = judge_picture(picture, config.fps, filters)
            if wrong is not None:
                return picture, [wrong]
            for clip in range(config.clips):
                frames = self._clip(path, clip, small_size(picture), Box())
                if len(frames) < config.frames:
                    if not clip:
                        verdicts.append(Dropped("duration", len(frames) / config.fps, config.frames / config.fps))
                    break
                motion = filters.flow is not None and config.frames > 1
                found = measure(frames, filters.bars is not None, motion)
                verdicts.append(judge_clip(picture, found, self.size, filters) or found)
        except FpsgenError as error:
            if error.code != BAD_INPUT:
                raise
            return picture, [Dropped("unreadable", error.message.removeprefix(show(path)).strip(), "")]
        return picture, verdicts

    def _clip(self, path: Path, clip: int, size: tuple[int, int], box: Box) -> np.ndarray:
        config = self.config
        return clip_frames(path, clip * config.frames / config.fps, config.frames, config.fps, size, box)

    def _row(self, source: Source, picture: Picture, found: Measures, clip: int, clips: int) -> dict[str, Any]:
        config = self.config
        every = round(1 / config.held_out) if config.held_out else 0
        return {
            "source": source.name,
            "clip": clip,
            "clips": clips,
            "start": clip * config.frames / config.fps,
            "caption": source.caption,
            "held_out": bool(every) and self.kept_videos % every == every - 1,
            "width": picture.width,
            "height": picture.height,
            "fps": round(picture.fps, 3),
            "bars": round(1 - found.box.area, 4),
            "enlargement": round(enlargement(picture, found, self.size), 4),
            "colour": round(found.colour, 3),
            "flow": None if found.flow is None else round(found.flow, 4),
            "hash": found.hash,
        }

    def _drop(self, source: Source, why: Dropped, clip: int, clips: int) -> None:
        if all(row["clip"] != clip for row in self.shards.dropped.get(source.name, [])):
            self.shards.drop({"source": source.name, "clip": clip, "clips": clips} | asdict(why))

    def _duplicate(self, found: str) -> Dropped | None:
        limit = self.config.filters.duplicate
        if limit is None or not self.names:
            return None
        bits = distances(found, np.frombuffer(self.hashes, np.uint8).reshape(len(self.names), -1))
        nearest = int(bits.argmin())
        return (
            Dropped("duplicate", f"{bits[nearest]} bits from {self.names[nearest]}", limit)
            if bits[nearest] <= limit
            else None
        )

    def _remember(self, found: str, name: str) -> None:
        self.hashes += bytes.fromhex(found)
        self.names.append(name)


def _settings(config: PrepConfig) -> dict[str, Any]:
    return asdict(config) | {"filters": config.filters.as_json()}


def _finish(
    sources: Sequence[Source], config: PrepConfig, choice: ModelChoice, shards: Shards, null: torch.Tensor, digest: str
) -> dict[str, Any]:
    """Write what comes last; what data.json holds. Raises FpsgenError BAD_INPUT where nothing was kept."""
    dropped = Counter(row["filter"] for source in sources for row in shards.dropped.get(source.name, []))
    if not shards.rows:
        most = ", ".join(f"{name} {count}" for name, count in dropped.most_common(3))
        what = f"nothing of {len(sources)} videos was kept (dropped: {most})"
        raise FpsgenError(what, f"see {show(shards.folder / DROPPED)}, and change --filter or --res", BAD_INPUT)
    header = {"model": choice.spec.name, "width": config.width, "height": config.height, "frames": config.frames}
    header |= {"fps": config.fps, "videos": len(sources), "dropped": dict(dropped.most_common()), "digest": digest}
    return shards.finish([source.name for source in sources], header, null)
