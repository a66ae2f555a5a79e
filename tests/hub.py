"""A local server that speaks as much of the Hugging Face hub's API as is asked for here, with faults to order."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = "API"
NAME = "someone/wan-tiny"  # the repository that tests serve
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CHUNK = 1 << 16
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name, each a folder. Faults, all by file of a repository unless said otherwise:

    cut: bytes after which one transfer breaks off. spoil: it arrives with a wrong byte. etag: this header instead.
    file_status: (HTTP status, hub's code) instead of it. more: it is longer than listed. whole: ranges are ignored.
    from_start: answered as a range, but from the first byte on.
    hang: it is never answered; API for the listing. pace: bytes a second, for all. status: by repository.
    listing: changes the listing before it is sent, as object or as bytes.
    """

    def __init__(self, **repositories: Path) -> None:
        self.repositories = {name.replace("__", "/"): Path(path) for name, path in repositories.items()}
        self.cut: dict[str, int] = {}
        self.spoil: set[str] = set()
        self.etag: dict[str, str] = {}
        self.file_status: dict[str, tuple[int, str]] = {}
        self.more: set[str] = set()
        self.whole: set[str] = set()
        self.from_start: set[str] = set()
        self.hang: set[str] = set()
        self.pace = 0.0
        self.status: dict[str, int] = {}
        self.listing: Callable[[dict], dict | bytes] = lambda info: info
        self.sent: Counter[str] = Counter()  # bytes by file
        self.asked: list[str] = []
        self.url = ""
        self.ended = threading.Event()

    def info(self, name: str) -> dict:
        folder = self.repositories[name]
        siblings = []
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            data = path.read_bytes()
            entry = {"rfilename": path.relative_to(folder).as_posix(), "size": len(data), "blobId": git_id(data)}
            if path.suffix == ".safetensors":
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {"_id": "0", "id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            match = api or file
            name, revision = (match[1], match[2]) if match else ("", None)
            if name in hub.status:
                return self.refuse(hub.status[name], {403: "GatedRepo"}.get(hub.status[name], ""))
            if name not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            if (revision or "main") not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if (API if api else file[3] if file else "") in hub.hang:
                hub.ended.wait()
                return None
            if api:
                listing = hub.listing(hub.info(name))
                data = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
                return self.answer(200, data, {"Content-Type": "application/json"}, body)
            self.file(name, file[3] if file else "", body)

        def file(self, name: str, rest: str, body: bool) -> None:
            path = hub.repositories[name] / rest
            if not path.is_file():
                return self.refuse(404, "EntryNotFound")
            if rest in hub.file_status:
                return self.refuse(*hub.file_status[rest])
            data = path.read_bytes()
            large = path.suffix == ".safetensors"
            tag = hub.etag.get(rest) or (hashlib.sha256(data).hexdigest() if large else git_id(data))
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if large:
                headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
            if rest in hub.spoil:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if rest in hub.more:
                data += b"more"
            status, start = 200, 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if asked and rest not in hub.whole:
                status, start = 206, 0 if rest in hub.from_start else int(asked[1])
                if start >= len(data):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body)
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            part = data[start:]
            cut = hub.cut.pop(rest, None) if body else None
            self.answer(status, part, headers, body, cut, rest)
            if cut is not None:
                self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
            self.answer(status, b"{}", headers, self.command == "GET")

        def answer(
            self, status: int, data: bytes, headers: dict, body: bool, cut: int | None = None, name: str = ""
        ) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            data = data[:cut] if body else b""
            for start in range(0, len(data), CHUNK):
                part = data[start : start + CHUNK]
                try:
                    self.wfile.write(part)
                except ConnectionError:  # whoever asked is gone
                    self.close_connection = True
                    return
                hub.sent[name] += len(part)
                if hub.pace:
                    time.sleep(len(part) / hub.pace)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()


def digest_of(hub: Hub, name: str) -> str:
    """The digest that the listing gives for a large file."""
    return next(e["lfs"]["sha256"] for e in hub.info(NAME)["siblings"] if e["rfilename"] == name)


def refused(code: int, *words: str, revision: str = "main"):
    """The error that a pull of NAME ends with, of this code, with these words in its two lines."""
    import refusal

    from fpsgen.models.catalog.pull import pull

    error = refusal.refused(lambda: pull(NAME, revision), code)
    assert all(word in str(error) for word in words), error
    return error
