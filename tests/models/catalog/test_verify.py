"""A changed file is found by verify, and refused by loading at the cost of milliseconds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hub import NAME
from limits import no_permission
from refusal import refused, refuses
from safetensors.torch import load_file, save_file

from fpsgen.assets import weights_dir
from fpsgen.errors import MODEL, FpsgenError
from fpsgen.models.catalog import verify
from fpsgen.models.catalog.folder import MANIFEST, model_files
from fpsgen.models.catalog.manifest import read_manifest, write_manifest
from fpsgen.models.catalog.pull import pull
from fpsgen.models.catalog.verify import check_intact, has_digests, verify_folder
from fpsgen.models.wan.load import load

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tiny_dir, tmp_path) -> Path:
    """A model with a manifest."""
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (folder / "schedule.toml").write_text("# none\n")
    write_manifest(folder)
    return folder


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def intact(folder: Path) -> bool:
    try:
        check_intact(folder)
    except FpsgenError as error:
        assert error.code == MODEL and "\n" not in error.message
        return False
    return True


def test_what_comes_with_fpsgen_is_intact():
    folder = weights_dir() / "nano"
    assert verify_folder(folder) == [] and intact(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert set(manifest) | {MANIFEST} == {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}


def test_a_flipped_bit_is_found_in_each_file_of_a_manifest(folder):
    assert verify_folder(folder) == [] and intact(folder)
    files = model_files(folder)
    assert len(files) == 12
    for path in files:
        size = path.stat().st_size * 8
        for bit in (0, size // 2 + 3, size - 1):
            flip(path, bit)
            wrong = verify_folder(folder)
            assert wrong and path.name in " ".join(wrong) and not intact(folder), (path, bit)
            flip(path, bit)
    assert verify_folder(folder) == [] and intact(folder)


def test_a_flipped_bit_is_found_in_each_file_from_the_hub(hub):
    folder = pull(NAME, "main").folder
    assert verify_folder(folder) == [] and has_digests(folder)
    for path in model_files(folder):
        flip(path.resolve(), 11)
        assert path.name in " ".join(verify_folder(folder)) and not intact(folder), path
        flip(path.resolve(), 11)
    assert verify_folder(folder) == [] and intact(folder)


def test_files_that_are_missing_or_unknown(folder):
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    extra = folder / "text_encoder" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, extra)
    assert extra.name in verify_folder(folder)[0] and not intact(folder)
    extra.unlink()
    vae.unlink()
    assert "vae/diffusion_pytorch_model.safetensors" in verify_folder(folder)[0] and not intact(folder)


def test_a_model_that_is_intact_is_read_once(folder, monkeypatch):
    read = []
    true = verify.mismatch
    monkeypatch.setattr(verify, "mismatch", lambda path, *given: read.append(path) or true(path, *given))
    assert intact(folder)
    assert len(read) == 11
    assert intact(folder) and len(read) == 11
    os.utime(folder / "vae" / "config.json")
    assert intact(folder) and len(read) == 22


@pytest.mark.parametrize("kept", ["size", "size and time", "all but bytes"])
def test_a_change_is_seen_by_size_time_or_inode(folder, kept):
    assert intact(folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    was = path.stat()
    if kept == "all but bytes":
        flip(path, 4000)
    else:
        copy = path.with_name("copy")
        shutil.copyfile(path, copy)
        flip(copy, 4000)
        os.replace(copy, path)
    if kept != "size":
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert not intact(folder)


def test_the_stamp_is_not_in_the_folder_and_may_be_lost(folder, tmp_path, monkeypatch):
    before = sorted(folder.rglob("*"))
    assert intact(folder) and sorted(folder.rglob("*")) == before
    stamp = next((tmp_path / "cache").rglob("*.json"))
    for text in ("", "[]", '{"files": 1}', "{" * 9999, "\xff"):
        stamp.write_text(text)
        assert intact(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
    assert intact(folder)
    flip(folder / "schedule.toml", 1)
    assert not intact(folder)


def test_a_file_that_changes_while_it_is_read_does_not_pass_the_next_time(folder, tmp_path, monkeypatch):
    true = verify.mismatch

    def late(path: Path, *given: str) -> str:
        found = true(path, *given)
        if path.name == "schedule.toml":
            flip(folder / "schedule.toml", 1)
        return found

    monkeypatch.setattr(verify, "mismatch", late)
    assert intact(folder)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not intact(folder)


def test_a_folder_without_digests_is_judged_by_its_structure(tiny_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "plain"))
    assert verify_folder(folder) == [] and intact(folder) and not has_digests(folder)
    assert not list(tmp_path.rglob("cache/**/*.json"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for data in (whole + b"\0", whole[:-1], whole[:50], b"", b"\xff" * 64):
        path.write_bytes(data)
        assert "vae/diffusion_pytorch_model.safetensors" in verify_folder(folder)[0] and not intact(folder), len(data)


def test_a_manifest_says_what_write_manifest_wrote(folder):
    path = folder / MANIFEST
    text = path.read_text()
    rows = json.loads(text)["files"]
    assert [row["name"] for row in rows][:2] == ["model_index.json", "schedule.toml"]
    for change in (text + " ", text.replace("  ", " ", 1), text.replace('"size"', '"Size"', 1), "{}", "", text[:-9]):
        path.write_text(change)
        assert verify_folder(folder) and not intact(folder)
    path.write_text(text)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert not intact(folder)
    write_manifest(folder)
    assert intact(folder)


@pytest.mark.parametrize(
    "name", ["transformer", "tokenizer/tokenizer.json", "vae/config.json", "manifest.json", "vocabulary.json"]
)
def test_what_may_not_be_read_is_named(folder, name):
    unreadable(folder / name)
    with refuses(MODEL, name):
        wrong = verify_folder(folder)
        assert name in wrong[0]
        check_intact(folder)


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "vae/config.json", "vae", "manifest.json"])
def test_what_this_user_may_not_read_is_not_said_to_be_broken(tiny_dir, name, digests):
    with TemporaryDirectory() as place:  # a folder that other users may enter
        os.chmod(place, 0o755)
        folder = Path(shutil.copytree(tiny_dir, Path(place) / "model", copy_function=shutil.copyfile))
        write_manifest(folder)
        if not digests and name != MANIFEST:
            (folder / MANIFEST).unlink()
        with no_permission(folder / name):
            for check in (verify_folder, check_intact):
                refused(
                    lambda check=check: check(folder), MODEL, name, "may not be read", remedy="check its permissions"
                )
            if name != MANIFEST:
                refused(lambda: load(folder), MODEL, name, "may not be read", remedy="check its permissions")


def test_a_digest_that_was_changed_is_told_from_a_file_that_was(folder):
    """The manifest is named then: either of the two may be the one that changed."""
    name, (_, digest) = next(iter((read_manifest(folder) or {}).items()))
    path = folder / MANIFEST
    listed = json.loads(path.read_text())
    row = next(row for row in listed["files"] if row["name"] == name)
    assert row["sha256"] == digest
    row["sha256"] = ("0" if digest[0] != "0" else "1") + digest[1:]
    path.write_text(json.dumps(listed, indent=1) + "\n")
    (wrong,) = verify_folder(folder)
    assert name in wrong and MANIFEST in wrong


def unreadable(path: Path) -> None:
    """Put a link in its place that nobody, root neither, can follow: opening it is no FileNotFoundError."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to("x" * 300)
