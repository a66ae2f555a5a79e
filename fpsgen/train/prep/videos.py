"""The pass over all videos: each is judged clip by clip, and what is kept is encoded.

A video is decoded twice: small, to judge its clips, and at the data's size where a clip is kept. One clip is in memory
at a time. The outcome follows from the data and the settings alone: a run that was killed ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.signals import check_stop
from fpsgen.text import show
from fpsgen.train.events import Events
from fpsgen.train.prep.encode import Encoder
from fpsgen.train.prep.filters import Dropped, Filters, enlargement, judge_clip, judge_picture
from fpsgen.train.prep.frames import Box, Picture, centre, clip_frames, probe
from fpsgen.train.prep.measures import Measures, distances, measure, small_size
from fpsgen.train.prep.shards import Shards
from fpsgen.train.prep.source import Source
from fpsgen.train.prep.sources import video_file


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


class Videos:
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
                elif not isinstance(verdict, Dropped):
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
