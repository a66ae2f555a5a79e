"""What the cache holds where files belong, and in which order files come: small ones first, and judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hub import COMMIT, NAME, WEIGHTS, digest_of, refused

from fpsgen.errors import DISK, MODEL
from fpsgen.models.catalog.cache import RepositoryCache, hub_settings
from fpsgen.models.catalog.pull import pull
from fpsgen.models.catalog.verify import verify_folder

ODD = {  # where a file belongs, by what is to be known of it: (place, made by)
    "partial pipe": lambda blob, store: (blob.with_name(f"{blob.name}.incomplete"), os.mkfifo),
    "partial folder": lambda blob, store: (blob.with_name(f"{blob.name}.incomplete"), os.makedirs),
    "blob pipe": lambda blob, store: (blob, os.mkfifo),
    "blob folder": lambda blob, store: (blob, os.makedirs),
    "name pipe": lambda blob, store: (store.snapshot_path(COMMIT, "model_index.json"), os.mkfifo),
    "name folder": lambda blob, store: (store.snapshot_path(COMMIT, "model_index.json"), os.makedirs),
    "ref pipe": lambda blob, store: (store.folder / "refs" / "main", os.mkfifo),
    "ref folder": lambda blob, store: (store.folder / "refs" / "main", os.makedirs),
    "lock folder": lambda blob, store: (store._locks / f"{blob.name}.lock", os.makedirs),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ODD)
def test_pipes_and_folders_where_files_belong(hub, what):
    """A pipe is put away, a folder of somebody is named: nothing waits, nothing but files is removed."""
    store = RepositoryCache(hub_settings().cache, NAME)
    path, make = ODD[what](store.blob(digest_of(hub, WEIGHTS)), store)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    if make is os.makedirs:
        refused(DISK, path.name[:8] if what != "blob folder" else WEIGHTS, "HF_HOME")
        assert path.is_dir()
    else:
        assert verify_folder(pull(NAME, "main").folder) == [] and store.snapshot("main")


def edit(folder: Path, name: str, **values) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


SMALL = {
    "code": lambda f: edit(f, "text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}),
    "latents_mean": lambda f: edit(f, "vae/config.json", latents_mean=[0.0] * 3),
    "num_layers": lambda f: edit(f, "transformer/config.json", num_layers=0),
    "text_dim": lambda f: edit(f, "transformer/config.json", text_dim=33),
    "num_train_timesteps": lambda f: edit(f, "scheduler/scheduler_config.json", num_train_timesteps=-1),
    "quantized": lambda f: edit(f, "transformer/config.json", quantization_config={"quant_method": "bitsandbytes"}),
    "not JSON": lambda f: (f / "vae/config.json").write_text("{"),
    "vae/config.json is missing": lambda f: (f / "vae/config.json").unlink(),
    "tokenizer's files": lambda f: (f / "tokenizer/tokenizer.json").unlink(),
    "2 of 3 weight files": lambda f: (f / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"weight_map": {"a": Path(WEIGHTS).name, "b": "x.safetensors", "c": "y.safetensors"}})
    ),
}


@pytest.mark.parametrize("word", SMALL)
def test_small_files_are_judged_before_weights_are_fetched(hub, word):
    """Weights are many GB; these say beforehand that they could not be used."""
    SMALL[word](hub.repositories[NAME])
    refused(MODEL, word)
    assert hub.asked and not [line for line in hub.asked if ".safetensors" in line and not line.endswith(".json")]


def test_small_files_come_first(hub):
    pull(NAME, "main")
    fetched = [line for line in hub.asked if "/resolve/" in line]
    first = next(number for number, line in enumerate(fetched) if line.endswith(".safetensors"))
    assert all(line.endswith(".safetensors") for line in fetched[first:]) and first > 5
