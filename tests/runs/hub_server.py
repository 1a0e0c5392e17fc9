"""A small hub on this machine with a model and a dataset under any name; the name says which trouble it makes."""

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hub_uploads import Uploads


COMMIT = "5" * 40
# A name that begins so is refused with this status and these headers, each time.
REFUSALS = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {"X-Error-Message": "Invalid username or password."}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "unrevised": (404, {"X-Error-Code": "RevisionNotFound"}),
    "limited": (429, {"Retry-After": "0"}),
    "faulty": (503, {}),
}
# A name that begins so has trouble at the first request of each kind and file, and none later.
PASSING = ("busy", "unavailable", "breaking")


class Hub(ThreadingHTTPServer):
    """Serves the files of a model's folder, and those of a dataset's under /datasets."""

    daemon_threads = True

    def __init__(self, model: Path, dataset: Path | None = None):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.model, self.dataset = model, dataset
        self.seen = Counter()  # by command, name and file
        self.answered = []  # (method, name, file, status)
        self.closing = threading.Event()
        self.accounts = {}  # answers to `whoami`, by token
        self.uploads = []  # (repository, branch, message, {path: content}) of each commit
        self.large = {}  # contents that were uploaded before their commit, by their SHA-256
        self.room = math.inf  # number of commits that it takes before it has a fault of its own

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients leave slow answers."""


class HubRequest(Uploads, BaseHTTPRequestHandler):
    """Answer as huggingface.co does, for the requests of these tests; `Uploads` has those that write.

    /{name}/resolve/{revision}/{file} is a file, of a dataset after /datasets; /api/{models,datasets}/{name}/... describes
    and lists them.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.read_body()
        if self.take_upload():
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts.pop(0) if parts[0] == "api" else ""
        self.kind = parts.pop(0) if api or parts[0] == "datasets" else "models"
        self.name, self.file = parts[0], "/".join(parts[1:] if api else parts[3:])
        self.folder = self.server.dataset if self.kind == "datasets" else self.server.model
        trouble, key = self.name.partition("-")[0], (self.command, self.kind, self.name, self.file)
        self.server.seen[key] += 1
        if trouble in REFUSALS:
            self.send(*REFUSALS[trouble])
        elif trouble == "slow" or trouble == "mute" and api:
            self.server.closing.wait()
        elif trouble in PASSING and self.server.seen[key] == 1:
            self.trouble_once(trouble)
        elif api:
            self.describe()
        else:
            self.send_file()

    do_HEAD = do_POST = do_PUT = do_GET

    def read_body(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def trouble_once(self, trouble: str) -> None:
        if trouble == "busy":
            self.send(429, {"Retry-After": "1"})
        elif trouble == "unavailable" and not self.is_listing():
            self.send(503, {})
        else:
            self.describe() if self.is_listing() else self.send_file(broken=trouble == "breaking")

    def is_listing(self) -> bool:
        """Return whether the client asks for a description, which huggingface_hub 0.36 does only once."""
        return self.path.startswith("/api/")

    def describe(self) -> None:
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder else []
        what = self.file.partition("/")[0]
        files = [self.description(name) for name in names]
        if what in ("tree", "paths-info") and self.kind == "datasets":
            self.send(
                200, {}, files if what == "tree" else [entry for entry in files if entry["path"] in self.body.decode()]
            )
        elif what in ("", "revision"):
            siblings = [{"rfilename": name} for name in names]
            self.send(200, {}, {"id": self.name, "sha": COMMIT, "siblings": siblings, "tags": []})
        else:
            self.send(404, {"X-Error-Code": "EntryNotFound"})

    def description(self, name: str) -> dict:
        size = (self.folder / name).stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": name_of((self.folder / name).read_bytes())}

    def send_file(self, broken: bool = False) -> None:
        """Send a file or the range asked for; a broken answer ends in its middle."""
        path = self.folder / self.file
        if not path.is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound"})
        content, status = path.read_bytes(), 200
        headers = {"ETag": f'"{name_of(content)}"'}
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            content, status = content[int(first) : int(last) + 1 if last else None], 206
        self.send(status, headers, content, sent=len(content) // 2 if broken else None)

    def send(self, status: int, headers: dict, content: bytes | list | dict = b"", sent: int | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.answered.append((self.command, getattr(self, "name", ""), getattr(self, "file", ""), status))
        self.send_response(status)
        for name, value in ({"Content-Length": len(content), "X-Repo-Commit": COMMIT} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
            self.close_connection = sent is not None

    def log_message(self, *_) -> None:
        """Say nothing: `answered` keeps it."""


def name_of(content: bytes) -> str:
    """Return the name of a content in the client's cache."""
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        hub.server_close()
