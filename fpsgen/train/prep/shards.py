"""A folder of prepared data, from its first sample to its list of digests. What a kill leaves counts, or is not there.

A shard gets its name when it is whole, and its header has a row for each of its samples. What was dropped is a line of
dropped.jsonl at once. Both together say which videos are done. data.json comes last: a folder without it is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.files import atomic, open_tensors, sweep, write_text, writing_tensors
from fpsgen.logs import append_line, read_objects
from fpsgen.models.catalog.manifest import sha256
from fpsgen.text import show
from fpsgen.train.prep.summary import table as summary

SCHEMA = "fpsgen.data/1"
DATA, CAPTIONS, DROPPED, NULL = "data.json", "captions.jsonl", "dropped.jsonl", "null.safetensors"
SUMMARY = "summary.md"
TARGET = 128 << 20  # bytes of a shard: what is lost at most when a run is killed
MOST = 64  # samples of a shard
_LIMIT = 1 << 30  # bytes of what was dropped


class Shards:
    """The shards of a folder; those that are there already are read. sample_bytes: of one sample.

    rows: by name of the video, what is kept of it. dropped: by name of the video, what is left out of it.
    Raises FpsgenError BAD_INPUT for a shard that is not whole, DISK.
    """

    def __init__(self, folder: Path, sample_bytes: int) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.dropped: dict[str, list[dict[str, Any]]] = {}
        self._files: dict[int, dict[str, Any]] = {}  # what data.json says of each
        self._held: dict[int, list[dict[str, Any]]] = {}
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []
        self._each = max(1, min(MOST, TARGET // sample_bytes))
        sweep(folder)
        for path in sorted(folder.glob("[0-9]*.safetensors")):
            self._count(path, _rows_of(path))
        for row in read_objects(folder / DROPPED, _LIMIT):
            self.dropped.setdefault(row["source"], []).append(row)

    def judged(self, name: str) -> list[dict[str, Any]]:
        """Rows of a video's clips that are in shards or dropped."""
        return [*self.rows.get(name, []), *self.dropped.get(name, [])]

    def done(self, name: str) -> bool:
        """Whether nothing is left to do for a video. A row's "clips" is how many were judged of it."""
        judged = self.judged(name)
        return bool(judged) and len(judged) == judged[0]["clips"]

    def add(self, latents: torch.Tensor, text: torch.Tensor, row: dict[str, Any]) -> None:
        """latents: fp16 [C, T, H, W]; text: bf16 [L, D]."""
        self._waiting.append((latents, text, row))
        if len(self._waiting) == self._each:
            self.flush()

    def drop(self, row: dict[str, Any]) -> None:
        self.dropped.setdefault(row["source"], []).append(row)
        append_line(self.folder / DROPPED, json.dumps(row))

    def flush(self) -> None:
        """Write what waits as one shard, under the first free number."""
        if not self._waiting:
            return
        number = next(n for n in range(len(self._files) + 1) if n not in self._files)
        path = self.folder / f"{number:05d}.safetensors"
        latents, texts, rows = zip(*self._waiting, strict=True)
        tensors = {"latents": torch.stack(latents), "text": torch.stack(texts)}
        with atomic(path) as part, writing_tensors():
            save_file(tensors, part, metadata={"rows": json.dumps(rows)})
        self._count(path, list(rows))
        self._waiting = []

    def finish(self, sources: Sequence[str], header: dict[str, Any], null: torch.Tensor) -> dict[str, Any]:
        """Write captions.jsonl, a tidy dropped.jsonl, null.safetensors, summary.md, and data.json as the last. sources:
        names of all videos in order. null: text of the empty prompt, [L, D]. Returns what data.json holds.
        """
        self.flush()
        kept = [row for number in sorted(self._held) for row in self._held[number]]
        dropped = [row for name in sources for row in self.dropped.get(name, [])]
        for file, rows in ((CAPTIONS, kept), (DROPPED, dropped)):
            write_text("".join(json.dumps(row) + "\n" for row in rows), self.folder / file, overwrite=True)
        with atomic(self.folder / NULL, overwrite=True) as part, writing_tensors():
            save_file({"text": null[None]}, part)
        table = {"schema": SCHEMA} | header
        table["samples"] = len(kept)
        table["held_out"] = [number for number, row in enumerate(kept) if row["held_out"]]
        table["shards"] = [self._files[number] for number in sorted(self._files)]
        write_text("\n".join(summary(table)) + "\n", self.folder / SUMMARY, overwrite=True)
        write_text(json.dumps(table, indent=1) + "\n", self.folder / DATA, overwrite=True)
        return table

    def _count(self, path: Path, rows: list[dict[str, Any]]) -> None:
        size, digest = path.stat().st_size, sha256(path)
        number = int(path.stem)
        self._files[number] = {"name": path.name, "size": size, "sha256": digest, "samples": len(rows)}
        self._held[number] = rows
        for row in rows:
            self.rows.setdefault(row["source"], []).append(row)


def _rows_of(path: Path) -> list[dict[str, Any]]:
    try:
        with open_tensors(path) as file:
            rows = json.loads(file.metadata()["rows"])
            if len(rows) != file.get_slice("latents").get_shape()[0]:
                raise ValueError("it has not a row for each sample")
            return rows
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        what = f"{show(path)} is not a whole shard: {show(error, 120)}"
        raise FpsgenError(what, "remove it, and run again: its videos are encoded anew", BAD_INPUT) from error
