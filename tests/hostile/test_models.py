"""Models under attack: flipped bits, hostile folders, a hub that dies. Each count has a control that must fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import NAME, Hub, serving
from safetensors.numpy import load_file, save_file

from fpsgen.assets import weights_dir
from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog.folder import model_files
from fpsgen.models.catalog.verify import check_intact, verify_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("own_cache")]


def refuses(act: Callable[[], object]) -> bool:
    try:
        act()
    except FpsgenError as error:
        assert error.code == MODEL and "\n" not in error.message + error.remedy
        return True
    return False


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_bit_flips(tmp_path, row):
    """1,000 single bits of the embedded model's files, at random places of files at random."""
    from safetensors import safe_open

    folder = Path(shutil.copytree(weights_dir() / "nano", tmp_path / "nano"))
    files, draw = model_files(folder), random.Random(0)
    check_intact(folder)
    verified = loaded = unseen = 0
    for number in range(1000):
        path = files[number % len(files)]
        bit = draw.randrange(path.stat().st_size * 8)
        flip(path, bit)
        wrong = verify_folder(folder)
        verified += bool(wrong) and path.name in " ".join(wrong)
        if number % 10 == 0:
            loaded += refuses(lambda: check_intact(folder))
            if path.suffix == ".safetensors":
                try:
                    with safe_open(path, framework="numpy") as file:
                        unseen += len(list(file.keys())) > 0
                except Exception:
                    pass
        flip(path, bit)
    check_intact(folder)
    assert (verified, loaded) == (1000, 100)
    assert unseen > 10  # the control: safetensors alone takes most of them
    row(
        "bits flipped in the embedded model",
        tried=1000,
        as_promised=verified,
        control=f"safetensors alone takes {unseen} of the weight files among 100 of them",
        detail="refused by models verify, the file named",
    )


ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    10**30,
    "",
    "x",
    "../../x",
    "\x1b[31m",
    "\u202e",
    [],
    [[]],
    {},
    {"a": 1},
    [0] * 5000,
)
CODE = {
    "_attn_implementation": "owner/kernel",
    "attn_implementation": "owner/kernel@main:f",
    "auto_map": {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None], "AutoConfig": "evil.C"},
    "quantization_config": {"quant_method": "torchao", "modules_to_not_convert": []},
    "trust_remote_code": True,
}
NUMBERS = {
    "transformer": (
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "num_layers",
        "rope_max_seq_len",
        "eps",
    ),
    "vae": ("z_dim", "base_dim", "dim_mult", "latents_mean", "latents_std", "temperal_downsample", "patch_size"),
    "text_encoder": ("d_model", "vocab_size", "num_layers", "num_heads", "model_type"),
}


def hostile_folder(folder: Path, draw: random.Random) -> str:
    """One fault of many kinds; what it is."""
    kind = draw.choice(["code", "class", "value", "text", "weights", "weights", "index", "file"])
    part = draw.choice(["transformer", "vae", "text_encoder"])
    config = folder / part / "config.json"
    for name in ("evil", "my_code", "modeling_evil", "pipeline"):
        (folder / f"{name}.py").write_text("import os; os._exit(77)\n")
        (folder / part / f"{name}.py").write_text("import os; os._exit(77)\n")
    if kind == "code":
        key = draw.choice(list(CODE))
        table = json.loads(config.read_text())
        config.write_text(json.dumps(table | {key: CODE[key]}))
        return f"{part} {key}"
    if kind == "class":
        index = json.loads((folder / "model_index.json").read_text())
        name = draw.choice([*NUMBERS, "tokenizer", "scheduler", "_class_name", "more"])
        value = draw.choice([["my_code", "Evil"], ["diffusers", "DiffusionPipeline"], ["transformers", "AutoModel"]])
        index[name] = draw.choice(["EvilPipeline", value]) if name == "_class_name" else value
        (folder / "model_index.json").write_text(json.dumps(index))
        return f"class of {name}"
    if kind == "value":
        key = draw.choice(NUMBERS[part])
        table = json.loads(config.read_text())
        value = draw.choice([odd for odd in ODD if odd is not None and odd != table[key]])
        if key == "eps" and value == 0:
            value = -1
        config.write_text(json.dumps(table | {key: value}))
        return f"{part} {key} {str(value)[:20]!r}"
    if kind == "text":
        name = draw.choice(["model_index.json", f"{part}/config.json", "scheduler/scheduler_config.json"])
        junk = [
            b"",
            b"[]",
            b"{" * 5000,
            b"\xff\xfe",
            b'{"a": NaN}',
            b'{"a": 1' + b"0" * 5000 + b"}",
            b'{"a":1,"a":2}',
            b"<html>",
        ]
        (folder / name).write_bytes(draw.choice(junk))
        return f"text of {name}"
    weights = next((folder / part).glob("*.safetensors"))
    if kind == "weights":
        data, tensors = weights.read_bytes(), load_file(weights)
        name = draw.choice(sorted(tensors))
        fault = draw.choice(["cut", "longer", "pickle", "pointer", "lacks", "extra", "zeros", "nan", "int"])
        if fault in ("cut", "longer", "pickle", "pointer"):
            pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"
            ends = {"cut": data[: len(data) // 2], "longer": data + b"\0", "pickle": b"\x80\x04c", "pointer": pointer}
            weights.write_bytes(ends[fault])
            return f"{part} weights {fault}"
        if fault == "lacks":
            del tensors[name]
        elif fault == "extra":
            tensors[name + ".scale_weight"] = tensors[name][:1].copy()
        elif fault == "zeros":
            tensors = {key: value * 0 for key, value in tensors.items()}
        elif fault == "nan":
            tensors[name] = tensors[name] * float("nan")
        else:
            tensors[name] = tensors[name].astype("int32")
        save_file(tensors, weights, {"format": "pt"})
        return f"{part} weights {fault} {name}"
    if kind == "index":
        weights.rename(weights.with_name("w.safetensors"))
        names = draw.choice([["../../../etc/passwd"], ["/etc/passwd"], ["w.bin"], ["absent.safetensors"], [7], []])
        index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
        weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
        return f"{part} index {names}"
    fault = draw.choice(["folder", "pipe", "absent", "bin"])
    path = draw.choice([config, weights])
    path.rename(path.with_suffix(".bin"))
    if fault == "folder":
        path.mkdir()
    elif fault == "pipe":
        os.mkfifo(path)
    return f"{part} {path.name} {fault}"


def test_hostile_folders(tiny_dir, tmp_path, monkeypatch, row):
    """100 folders with one fault each: exit 5, no code run, nothing asked of the network. The control: the folder
    that they were made from, with the same Python files beside it, is loaded.
    """
    from huggingface_hub import constants

    from fpsgen.models.wan.load import load

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    draw, wrong, kinds = random.Random(1), [], set()
    for number in range(100):
        folder = Path(shutil.copytree(tiny_dir, tmp_path / str(number)))
        what = hostile_folder(folder, draw)
        kinds.add(what)
        try:
            if not refuses(lambda folder=folder: load(folder)):
                wrong.append(f"{what}: taken")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    assert not wrong
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "control"))
    (folder / "evil.py").write_text("import os; os._exit(77)\n")
    assert load(folder) is not None
    row(
        "hostile model folders",
        tried=100,
        as_promised=100 - len(wrong),
        control="the folder without the fault loads",
        detail=f"{len(kinds)} different faults: exit 5, no code run, no connection",
    )


SIZE = 60_000_000


@pytest.fixture
def large_hub(tiny_dir, tmp_path):
    """The tiny model with a file of 60 MB, served at 12 MB/s."""
    import numpy as np

    folder = Path(shutil.copytree(tiny_dir, tmp_path / "served"))
    weights = folder / "text_encoder" / "model.safetensors"
    noise = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
    save_file({"decoder.noise": noise.view(np.uint8)} | load_file(weights), weights, {"format": "pt"})
    with serving(Hub()) as hub:
        hub.repositories[NAME] = folder
        hub.pace = 12e6
        yield hub


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("FPSGEN_", "HF_"))}
    return clean | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": url, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def killed_pulls(hub: Hub, tmp_path: Path, command: list[str], kills: int, file: str) -> None:
    """Start `command` again and again; kill it once it has brought some of `file`, and let the last one end."""
    draw = random.Random(2)
    share = SIZE // (kills + 1)
    for number in range(kills):
        before = hub.sent[file]
        wanted = before + draw.randrange(share // 2, share)
        process = subprocess.Popen(
            command, env=environment(tmp_path, hub.url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while hub.sent[file] < wanted and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, f"run {number} ended by itself"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment(tmp_path, hub.url), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kills", [8, 20])
def test_kills_in_a_download(large_hub, tmp_path, row, kills):
    """kill -9 in a file of 60 MB: at most 1.05 times its bytes come, and nothing is left over. The control:
    huggingface_hub's own download, killed likewise.
    """
    hub, file = large_hub, "text_encoder/model.safetensors"
    size = (hub.repositories[NAME] / file).stat().st_size
    killed_pulls(hub, tmp_path, [sys.executable, "-m", "fpsgen", "models", "pull", NAME], kills, file)
    times = hub.sent[file] / size
    left = [path for path in (tmp_path / "hf").rglob("*") if "incomplete" in path.name]
    folder = next((tmp_path / "hf").rglob("model_index.json")).parent
    assert verify_folder(folder) == []
    assert times <= 1.05 and not left, (times, left)
    shutil.rmtree(tmp_path / "hf")
    hub.sent.clear()
    code = f"from huggingface_hub import hf_hub_download; hf_hub_download({NAME!r}, {file!r})"
    hub.pace = 120e6
    killed_pulls(hub, tmp_path, [sys.executable, "-c", code], 3, file)
    theirs = hub.sent[file] / size
    orphans = [path for path in (tmp_path / "hf").rglob("*") if "incomplete" in path.name]
    assert theirs > 1.3 or orphans  # it begins anew each time
    row(
        f"{kills} kill -9 in the download of a 60 MB file",
        tried=kills,
        as_promised=kills,
        control=f"huggingface_hub alone, killed 3 times: {theirs:.2f} times the bytes, {len(orphans)} orphans",
        detail=f"{times:.3f} times the bytes, {len(left)} orphans, digest right",
    )
