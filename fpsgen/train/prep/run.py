"""Prepare videos from top to bottom: identity, disk, model, the pass over all of them, and what is written last.
What is done is not done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import make_folder, read_json, used_alone
from fpsgen.models.catalog.choice import ModelChoice
from fpsgen.models.wan.load import load
from fpsgen.text import plural, show
from fpsgen.train.disk import check_space
from fpsgen.train.events import Events
from fpsgen.train.prep.encode import Encoder
from fpsgen.train.prep.identity import check_identity, of_model, of_sources
from fpsgen.train.prep.measures import check_opencv
from fpsgen.train.prep.shards import DATA, DROPPED, Shards
from fpsgen.train.prep.source import Source
from fpsgen.train.prep.videos import PrepConfig, Videos


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
    with used_alone(folder):
        digest = check_identity(folder, {**_settings(config), **of_model(choice), **of_sources(sources)})
        if (folder / DATA).exists():
            return read_json(folder / DATA, 1 << 30, str(folder / DATA))
        size = sample_bytes(choice, config)
        shards = Shards(folder, size)
        todo = sum(not shards.done(source.name) for source in sources)
        check_space(folder, todo * size, plural(todo, "clip"))  # of a video there may be more, or none
        pipe = load(choice, device=device, transformer=False)
        encoder = Encoder(pipe, choice.spec.max_sequence_length)
        Videos(config, encoder, shards, events).all(sources, todo)
        return _finish(sources, config, choice, shards, encoder.text(""), digest)


def sample_bytes(choice: ModelChoice, config: PrepConfig) -> int:
    """What one clip takes on the disk."""
    assert choice.pipeline is not None
    configs, geometry = choice.pipeline.configs, choice.geometry
    frames = (config.frames - 1) // geometry.temporal + 1
    cells = frames * (config.height // geometry.spatial) * (config.width // geometry.spatial)
    text = choice.spec.max_sequence_length * configs["transformer"]["text_dim"]
    return 2 * (configs["vae"]["z_dim"] * cells + text)


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
