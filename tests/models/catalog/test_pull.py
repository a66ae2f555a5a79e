"""A hub that lies, breaks off or hangs writes nothing outside its repository's folder, and each fault has its code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hub import API, COMMIT, NAME, WEIGHTS, digest_of, refused
from refusal import refuses

from fpsgen.errors import DISK, LOCKED, MODEL, NETWORK, USAGE, FpsgenError
from fpsgen.models.catalog.cache import RepositoryCache, hub_settings
from fpsgen.models.catalog.pull import pull
from fpsgen.models.catalog.verify import verify_folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file outside the served model and the repository's own folder in the cache."""
    own = str(hub_settings().cache / "models--")
    skipped = (own, str(folder / "served"), str(hub_settings().cache / ".locks"))
    found = {}
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            if not path.startswith(skipped):
                found[path] = Path(path).read_bytes()
    return found


def blobs() -> list[Path]:
    return sorted((RepositoryCache(hub_settings().cache, NAME).folder / "blobs").iterdir())


def change_file(name: str, **values):
    def change(info: dict) -> dict:
        entry = next(entry for entry in info["siblings"] if entry["rfilename"] == name)
        entry |= values
        return info

    return change


def with_sha(sha: object):
    return lambda info: info | {"sha": sha}


HOSTILE = {
    "commit upwards": with_sha("../../../victim"),
    "commit absolute": with_sha("/tmp/victim"),
    "commit short": with_sha("a" * 39),
    "commit upper case": with_sha("A" * 40),
    "commit with line end": with_sha("a" * 40 + "\n"),
    "commit null": with_sha(None),
    "commit list": with_sha(["a" * 40]),
    "digest upwards": change_file(WEIGHTS, lfs={"sha256": "../../../../victim", "size": 1}),
    "digest absolute": change_file(WEIGHTS, lfs={"sha256": "/tmp/victim", "size": 1}),
    "digest short": change_file("vae/config.json", blobId="a" * 39),
    "digest of nothing": change_file("vae/config.json", blobId=""),
    "digest number": change_file(WEIGHTS, lfs={"sha256": 5}),
    "digest missing": change_file(WEIGHTS, lfs={"size": 5}),
    "lfs list": change_file(WEIGHTS, lfs=[1]),
    "size negative": change_file(WEIGHTS, size=-1),
    "size text": change_file(WEIGHTS, size="9"),
    "size endless": change_file(WEIGHTS, size=10**4000),
    "size true": change_file(WEIGHTS, size=True),
    "name number": change_file(WEIGHTS, rfilename=7),
    "siblings object": lambda info: info | {"siblings": {}},
    "siblings text": lambda info: info | {"siblings": ["x"]},
    "siblings missing": lambda info: {"sha": COMMIT},
    "list": lambda info: b"[]",
    "no JSON": lambda info: b"<html>",
    "no UTF-8": lambda info: b"\xff\xfe{",
    "deep": lambda info: b'{"siblings": ' + b"[" * 100_000,
    "nan": lambda info: b'{"sha": NaN}',
    "large": lambda info: b'{"sha": "' + b"a" * (9 << 20) + b'"}',
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_listing_is_refused_before_anything_is_written(hub, tmp_path, fault):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "victim").write_text("mine")
    before = tree(tmp_path)
    hub.listing = HOSTILE[fault]
    refused(MODEL)
    assert tree(tmp_path) == before and not (hub_settings().cache / "models--someone--wan-tiny").exists()
    assert not [line for line in hub.asked if "/resolve/" in line]


@pytest.mark.parametrize(
    "name", ["../victim.json", "transformer/../../victim.json", "/tmp/victim.json", "vae/..", "vae/.json"]
)
def test_files_with_other_names_are_not_fetched(hub, tmp_path, name):
    entry = {"rfilename": name, "size": 3, "blobId": "a" * 40}
    hub.listing = lambda info: info | {"siblings": [*info["siblings"], entry]}
    before = tree(tmp_path)
    pulled = pull(NAME, "main")
    assert {path: data for path, data in tree(tmp_path).items() if "/cache/" not in path} == before
    assert verify_folder(pulled.folder) == []


def test_headers_do_not_name_files(hub, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "victim").write_text("mine")
    hub.etag[WEIGHTS] = "../../../victim"
    hub.spoil.add(WEIGHTS)
    refused(MODEL, WEIGHTS, "digest")
    assert (tmp_path / "home" / "victim").read_text() == "mine"
    hub.spoil.clear()
    assert verify_folder(pull(NAME, "main").folder) == []


@pytest.mark.parametrize("part", ["blobs", "snapshots", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/vae", "refs"])
def test_links_in_the_cache_lead_nowhere_else(hub, tmp_path, part):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "main").write_text("mine")
    link = RepositoryCache(hub_settings().cache, NAME).folder / part
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    refused(MODEL, str(link), "HF_HOME")
    assert tree(outside) == {str(outside / "main"): b"mine"}


def test_a_linked_partial_file_is_not_written_through(hub, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    digest = digest_of(hub, WEIGHTS)
    store = RepositoryCache(hub_settings().cache, NAME)
    store.blob(digest).parent.mkdir(parents=True)
    store.blob(digest).with_name(f"{digest}.incomplete").symlink_to(victim)
    pull(NAME, "main")
    assert victim.read_bytes() == b""


@pytest.mark.parametrize("revision", ["../../x", "a/../../b", "", "/x", "a b", "x" * 300])
def test_revisions_stay_inside(hub, tmp_path, revision):
    before = tree(tmp_path)
    with pytest.raises(FpsgenError) as caught:
        pull(NAME, revision)
    assert caught.value.code in (USAGE, MODEL) and tree(tmp_path) == before


@pytest.mark.parametrize("name", ["a/..", "a/b/c", "a", "../x", "a--b/c", "a/b..c", "/a/b"])
def test_repositories_have_two_names(hub, name):
    with refuses(MODEL):
        pull(name, "main")
    assert not hub.asked


def test_pickles_and_other_kinds_are_refused_before_weights_are_fetched(hub):
    folder = hub.repositories[NAME]
    (folder / WEIGHTS).rename((folder / WEIGHTS).with_suffix(".bin"))
    refused(MODEL, "pickle", "diffusion_pytorch_model.bin")
    assert not [line for line in hub.asked if "/resolve/" in line]
    (folder / WEIGHTS).with_suffix(".bin").rename(folder / WEIGHTS)
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(index.replace("UMT5EncoderModel", "EvilModel"))
    refused(MODEL, "EvilModel")
    assert not [line for line in hub.asked if "safetensors" in line]


@pytest.mark.parametrize(
    ("status", "hubs_code", "code", "word"),
    [
        (401, "", MODEL, "hf auth login"),
        (401, "GatedRepo", MODEL, "accept its terms"),
        (403, "GatedRepo", MODEL, "accept its terms"),
        (403, "", MODEL, "an account that may"),
        (404, "EntryNotFound", MODEL, "HF_ENDPOINT"),
        (404, "RevisionNotFound", MODEL, "--revision"),
        (404, "", MODEL, "check the name"),
        (429, "", NETWORK, "pull again"),
        (503, "", NETWORK, "pull again"),
        (418, "", NETWORK, "418"),
    ],
)
def test_what_the_hub_says_of_a_file(hub, status, hubs_code, code, word):
    hub.file_status[WEIGHTS] = (status, hubs_code)
    refused(code, WEIGHTS, word)


def test_a_token_that_is_not_accepted(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary123")
    hub.status[NAME] = 401
    error = refused(MODEL, "token", "hf auth login")
    assert "canary" not in str(error)
    monkeypatch.setenv("HF_TOKEN", "hf_canary\u00e9")
    assert "canary" not in str(refused(USAGE, "HF_TOKEN"))


@pytest.mark.parametrize("what", [API, WEIGHTS])
def test_silence_has_an_end(hub, what):
    hub.hang.add(what)
    refused(NETWORK, hub.url)


def test_a_crawling_transfer_has_an_end(hub, monkeypatch):
    monkeypatch.setattr("fpsgen.models.catalog.pull.STALLED_SECONDS", 0.2)
    monkeypatch.setattr("fpsgen.models.catalog.pull.STALLED", 10**12)
    (hub.repositories[NAME] / WEIGHTS).write_bytes(b"x" * 1_000_000)
    hub.pace = 1e6
    refused(NETWORK, "all but stopped")


def test_a_blob_is_on_the_disk_before_it_has_its_name(hub, monkeypatch):
    from fpsgen.models.catalog import pull as module

    done: list[tuple[str, str]] = []
    sync, replace = module.sync, os.replace
    monkeypatch.setattr(module, "sync", lambda path: (done.append(("sync", str(path))), sync(path)))
    monkeypatch.setattr(module.os, "replace", lambda a, b: (done.append((str(a), str(b))), replace(a, b)))
    pull(NAME, "main")
    named = [number for number, (first, _) in enumerate(done) if first.endswith(".incomplete")]
    assert len(named) >= len({entry["rfilename"] for entry in hub.info(NAME)["siblings"]}) // 2
    for number in named:
        partial, blob = done[number]
        assert done[number - 1] == ("sync", partial) and done[number + 1] == ("sync", str(Path(blob).parent))


def test_more_bytes_than_listed_are_not_written(hub):
    hub.more.add(WEIGHTS)
    refused(MODEL, "more")
    assert verify_folder(_pull_again(hub)) == []


def _pull_again(hub) -> Path:
    hub.more.clear()
    return pull(NAME, "main").folder


FROM_START = ("too long", "no ranges", "another range")


@pytest.mark.parametrize("left", ["own", "hub's", "two", "three", "wrong", "whole", *FROM_START])
def test_what_an_earlier_run_left_is_taken_up(hub, left):
    data, digest = (hub.repositories[NAME] / WEIGHTS).read_bytes(), digest_of(hub, WEIGHTS)
    half = len(data) // 2
    store = RepositoryCache(hub_settings().cache, NAME)
    blob = store.blob(digest)
    blob.parent.mkdir(parents=True)
    own, foreign = (blob.with_name(f"{digest}{end}.incomplete") for end in ("", ".1a2b3c4d"))
    own.write_bytes({"own": data[:half], "two": data[:10], "wrong": b"x" * half, "whole": data}.get(left, b""))
    if left in ("hub's", "two", "three"):
        foreign.write_bytes(data[:half])
    if left == "three":
        blob.with_name(f"{digest}.5e6f7a8b.incomplete").write_bytes(data[:20])
    if left == "too long":
        own.write_bytes(data + b"more")
    if left == "no ranges":
        own.write_bytes(data[:half])
        hub.whole.add(WEIGHTS)
    if left == "another range":
        own.write_bytes(data[:half])
        hub.from_start.add(WEIGHTS)
    pulled = pull(NAME, "main")
    rest = {"wrong": 2 * len(data) - half, "whole": 0} | dict.fromkeys(FROM_START, len(data))
    assert hub.sent[WEIGHTS] == rest.get(left, len(data) - half)
    assert verify_folder(pulled.folder) == [] and not [p for p in blobs() if "incomplete" in p.name]


def test_what_has_come_counts_for_the_room_on_the_disk(hub, monkeypatch):
    data, digest = (hub.repositories[NAME] / WEIGHTS).read_bytes(), digest_of(hub, WEIGHTS)
    total = sum(entry["size"] for entry in hub.info(NAME)["siblings"])
    monkeypatch.setattr("fpsgen.models.catalog.pull.free_disk", lambda: total - 1000 + (1 << 26))
    refused(DISK, "HF_HOME")
    blob = RepositoryCache(hub_settings().cache, NAME).blob(digest)
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{digest}.incomplete").write_bytes(data[:-100])
    assert pull(NAME, "main").fetched == total - len(data) + 100


def test_a_file_that_is_there_twice_comes_once(hub):
    folder = hub.repositories[NAME]
    shutil.copy(folder / WEIGHTS, folder / "transformer" / "model.safetensors")
    pull(NAME, "main")
    assert hub.sent[WEIGHTS] + hub.sent["transformer/model.safetensors"] == (folder / WEIGHTS).stat().st_size


def test_a_file_that_changed_on_disk_is_fetched_again(hub):
    folder = pull(NAME, "main").folder
    blob = (folder / WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.write_bytes(data)
    hub.sent.clear()
    assert verify_folder(pull(NAME, "main").folder) == []
    assert set(hub.sent) == {"", WEIGHTS}


def test_two_pulls_of_one_file(hub):
    store = RepositoryCache(hub_settings().cache, NAME)
    with store.locked(digest_of(hub, WEIGHTS), "busy"):
        refused(LOCKED, WEIGHTS, str(os.getpid()))
    assert pull(NAME, "main").fetched > 0


def test_a_cache_that_holds_files_without_links(hub):
    folder = pull(NAME, "main").folder
    target = (folder / WEIGHTS).resolve()
    (folder / WEIGHTS).unlink()
    shutil.move(target, folder / WEIGHTS)
    hub.sent.clear()
    assert pull(NAME, "main").fetched == 0 and not (folder / WEIGHTS).is_symlink()
