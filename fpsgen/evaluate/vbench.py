"""Videos under the names that VBench expects, so that it runs on them unchanged.

FOLDER/<variant>/<prompt>-<index>.mp4, as VBench's standard mode looks for them, and FOLDER/<variant>.json, the prompt
of each file, for its mode custom_input (--prompt_file). The files are links to the videos, copies where a file system
has none. A prompt that no file can be named by (a slash, more than 200 bytes) is named by its number and stands in the
JSON alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpsgen.files import make_folder, write_text

LONGEST = 200  # bytes of a prompt in a file name; file systems allow 255


def export(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """The folders of all variants. rows: each with variant, prompt and video (a path). What lies there is replaced."""
    made = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        place = folder / variant
        if place.is_dir():
            shutil.rmtree(place)
        make_folder(place)
        seen: Counter[str] = Counter()
        prompts = {}
        for number, row in enumerate(each for each in rows if each["variant"] == variant):
            prompt = row["prompt"]
            stem = prompt if "/" not in prompt and len(prompt.encode()) <= LONGEST else f"prompt {number:05d}"
            target = place / f"{stem}-{seen[prompt]}{Path(row['video']).suffix}"
            seen[prompt] += 1
            _link(Path(row["video"]), target)
            prompts[target.name] = prompt
        write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n", folder / f"{variant}.json", overwrite=True)
        made.append(place)
    return made


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
