"""The Hugging Face hub as it answers: its settings, its requests, its listings. All of it is judged before it is used.

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Every request
has a time limit, and no message shows a token or the credentials of an endpoint.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fpsgen.errors import MODEL, NETWORK, USAGE, FpsgenError
from fpsgen.fields import Field, fields, many, parse_json, whole
from fpsgen.files import decode
from fpsgen.text import show

LISTING_LIMIT = 8 << 20  # bytes
LISTING_SECONDS = 60.0  # for a whole listing; HF_HUB_DOWNLOAD_TIMEOUT limits each read of it, 10 s unless set
STALLED = 1000  # bytes a second, over STALLED_SECONDS: a transfer as slow as that has broken off
STALLED_SECONDS = 60.0
_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{64}|[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSettings:
    """endpoint: address for requests. shown: the same for messages, without credentials. cache: where models go.
    seconds: the longest wait for a connection or for the next bytes.
    """

    endpoint: str
    shown: str
    cache: Path
    offline: bool
    seconds: float


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. digest: sha256 (64 hex digits) or git's blob id (40)."""

    name: str
    size: int
    digest: str


def hub_settings() -> HubSettings:
    """The settings in the environment. Raises FpsgenError USAGE for one that cannot be used."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if endpoint:
        _check_endpoint(endpoint)
    try:
        from huggingface_hub import constants
    except (ValueError, OSError) as error:
        what = f"huggingface_hub does not accept its settings: {show(error)}"
        raise FpsgenError(what, "check HF_HOME and the HF_HUB_* variables", USAGE) from error
    if not constants.HF_HUB_CACHE:
        raise FpsgenError("HF_HUB_CACHE is empty", "name a folder with it, or unset it", USAGE)
    endpoint = constants.ENDPOINT
    _check_endpoint(endpoint)
    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if not 0 < seconds <= 3600:
        what = f"HF_HUB_DOWNLOAD_TIMEOUT is {seconds}, not a number of seconds from 1 to 3600"
        raise FpsgenError(what, "set it to 10, or unset it", USAGE)
    return HubSettings(
        endpoint, without_credentials(endpoint), Path(constants.HF_HUB_CACHE), bool(constants.HF_HUB_OFFLINE), seconds
    )


def without_credentials(text: str) -> str:
    """The text without the user and password of any address in it, and without tokens."""
    text = re.sub(r"//[^/\s]*@", "//", text)
    return re.sub(r"\b(hf_|api_org_)\w+", r"\1...", text)


def read_listing(hub: HubSettings, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """(commit, files) of a repository at a branch, tag or commit.

    Raises FpsgenError: NETWORK; MODEL where there is no such thing, it may not be read, or the listing is not sound.
    """
    address = f"{hub.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    end = time.monotonic() + LISTING_SECONDS
    data = bytearray()
    with request(hub, address, f"revision {revision!r} of {repository}") as response:
        for part in response.iter_bytes():
            data += part
            if len(data) > LISTING_LIMIT:
                raise _unsound(hub, f"its listing of {repository} is larger than {LISTING_LIMIT >> 20} MiB")
            if time.monotonic() > end:
                raise _no_answer(hub, f"the listing of {repository} took longer than {LISTING_SECONDS:.0f} s")
    what = f"{hub.shown}: the listing of {repository}"
    listing = parse_json(decode(bytes(data), what, MODEL), what, MODEL, _OTHER_SERVER)
    found = fields(
        listing, {"sha": _digest(_COMMIT), "siblings": many(_sibling(), 0, 100_000)}, what, MODEL, True, _OTHER_SERVER
    )
    return found["sha"], list(found["siblings"])


def file_address(hub: HubSettings, repository: str, commit: str, name: str) -> str:
    """Where a file of a repository is served."""
    return f"{hub.endpoint}/{repository}/resolve/{commit}/{quote(name)}"


@contextmanager
def request(hub: HubSettings, address: str, what: str, start: int = 0) -> Iterator[Any]:
    """A response, to be read within the block. what: what was asked for, for messages. start: the first byte wanted;
    status 200 is the whole, 206 the part, 416 says that there is no such part.

    Raises FpsgenError NETWORK or MODEL, also for what goes wrong within the block as the response is read.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers, get_session

    if hub.offline:
        raise FpsgenError(f"{what} is not on this machine, and HF_HUB_OFFLINE is set", _OFFLINE, NETWORK)
    try:
        headers = build_hf_headers(library_name="fpsgen") | {"Accept-Encoding": "identity"}
    except (OSError, ValueError) as error:
        remedy = "check HF_HOME and HF_TOKEN_PATH, or set HF_TOKEN"
        raise FpsgenError(f"the token for the hub cannot be read: {show(error)}", remedy, USAGE) from error
    if not all(value.isprintable() and value.isascii() for value in headers.values()):
        raise FpsgenError("HF_TOKEN holds characters that no token has", "set it again, or: hf auth login", USAGE)
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        session = get_session()
    except (ValueError, ImportError, OSError) as error:  # of a kind that is not known, or not there
        what = f"the environment's proxy or certificates cannot be used: {show(without_credentials(str(error)), 160)}"
        raise FpsgenError(what, "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE", USAGE) from error
    http = sys.modules[type(session).__module__.partition(".")[0]]  # httpx, or httpx2 of later versions
    try:
        with session.stream("GET", address, headers=headers, timeout=hub.seconds) as response:
            if response.status_code not in ((200, 206, 416) if start else (200,)):
                code = response.headers.get("X-Error-Code", "")
                raise _refused(hub, response.status_code, code, what, "authorization" in headers)
            yield response
    except OfflineModeIsEnabled as error:
        raise FpsgenError(f"{what} is not on this machine, and HF_HUB_OFFLINE is set", _OFFLINE, NETWORK) from error
    except (http.HTTPError, http.InvalidURL, http.StreamError) as error:
        why = show(without_credentials(str(error)) or type(error).__name__, 160)
        raise _no_answer(hub, why) from error


_OFFLINE = "unset HF_HUB_OFFLINE, or copy the Hugging Face cache of another machine"
_OTHER_SERVER = "set HF_ENDPOINT to another server, or unset it"


def _check_endpoint(endpoint: str) -> None:
    shown = show(without_credentials(endpoint).partition("?")[0])
    try:
        parts = urlsplit(endpoint)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or not endpoint.isprintable() or " " in endpoint or parts.query or parts.fragment:
        what = f"HF_ENDPOINT {shown!r} is not the address of a server"
        raise FpsgenError(what, "set it to one such as https://huggingface.co, or unset it", USAGE)


def _digest(pattern: re.Pattern[str]) -> Field:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return Field(check, f"{pattern.pattern.replace('[0-9a-f]', 'hex digits ').replace('|', ' or ')}")


def _sibling() -> Field:
    """One entry of a listing, as RemoteFile. Names and digests of files that are not wanted do not matter."""

    def check(value: Any) -> RemoteFile:
        try:
            name, size, large = value["rfilename"], value.get("size", 0), value.get("lfs")
            digest = large["sha256"] if large else value.get("blobId", "")
        except (KeyError, AttributeError) as error:
            raise ValueError from error
        if not isinstance(name, str) or not isinstance(digest, str):
            raise ValueError
        return RemoteFile(name, whole(0, 1 << 50).check(size), digest)

    return Field(check, "a file with name, size and digest")


def is_digest(text: str) -> bool:
    """Whether a text can be the digest of a file: 64 or 40 hex digits."""
    return bool(_DIGEST.fullmatch(text))


def _refused(hub: HubSettings, status: int, code: str, what: str, token: bool) -> FpsgenError:
    """The error for an HTTP status, by what the hub means with it."""
    login = "hf auth login (or set HF_TOKEN)"
    if code == "GatedRepo":
        name = what.rpartition(" of ")[2]
        return FpsgenError(f"{what} is gated", f"accept its terms at {hub.shown}/{name}, then: {login}", MODEL)
    if status == 401 and token and code != "RepoNotFound":
        return FpsgenError(f"{what}: {hub.shown} does not accept the token (401)", f"take another: {login}", MODEL)
    if code == "RevisionNotFound":
        return FpsgenError(f"{hub.shown} has no {what}", "name a branch, tag or commit with --revision", MODEL)
    if code == "EntryNotFound":
        remedy = "pull again later, or set HF_ENDPOINT to another server"
        return FpsgenError(f"{hub.shown} lists {what} and does not have it (404)", remedy, MODEL)
    if status in (401, 404):
        return FpsgenError(f"{what} was not found at {hub.shown}", f"check the name; if it is private: {login}", MODEL)
    if status == 403:
        return FpsgenError(f"{what} may not be read (403)", f"use an account that may: {login}", MODEL)
    return _no_answer(hub, f"status {status} for {what}")


def _no_answer(hub: HubSettings, why: str) -> FpsgenError:
    remedy = "check the connection (or HF_ENDPOINT), then pull again: it goes on where it stopped"
    return FpsgenError(f"{hub.shown} did not answer as it should: {why}", remedy, NETWORK)


def _unsound(hub: HubSettings, why: str) -> FpsgenError:
    return FpsgenError(f"{hub.shown} cannot be used: {why}", _OTHER_SERVER, MODEL)
