"""Models by name through the real hub client, from a small hub on this machine: download, retries, and plain messages."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT, load


COMMIT = "5" * 40
NAME = "bert-base-uncased"


class Hub(ThreadingHTTPServer):
    """Serves the folder of one model; the first requests of those in `trouble`, (method, file), get a 503."""

    daemon_threads = True

    def __init__(self, folder: Path, trouble: set[tuple[str, str]]):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.folder, self.trouble = folder, trouble
        self.answered = []  # (method, file, status)


class HubRequest(BaseHTTPRequestHandler):
    """Answer as huggingface.co does, for the requests of these tests.

    /{model}/resolve/{revision}/{file} is a file; /api/models/{model}/tree/... lists a folder, which the model does not have;
    /api/models/{model} describes the model, for the card of a model trained from it.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url, hub = self.path.partition("?")[0], self.server
        file = url.removeprefix(f"/{NAME}/resolve/main/")
        if (self.command, file) in hub.trouble:
            hub.trouble.remove((self.command, file))
            self.send(file, 503)
        elif url == f"/api/models/{NAME}":
            self.send(url, 200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": [], "tags": []}).encode())
        elif not url.startswith((f"/{NAME}/", f"/api/models/{NAME}/")):
            self.send(url, 404, error="RepoNotFound")
        elif file == url or not (hub.folder / file).is_file():
            self.send(file, 404, error="EntryNotFound")
        elif "Range" in self.headers:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send(file, 206, (hub.folder / file).read_bytes()[first : last + 1])
        else:
            self.send(file, 200, (hub.folder / file).read_bytes())

    do_HEAD = do_GET

    def send(self, what: str, status: int, content: bytes = b"", error: str | None = None) -> None:
        """With the headers that the client reads: the content's name in its cache, the commit, what is missing."""
        self.server.answered.append((self.command, what, status))
        self.send_response(status)
        headers = {"Content-Length": len(content), "X-Repo-Commit": COMMIT, "X-Error-Code": error}
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"' if status == 200 else None
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Says nothing: `answered` keeps it."""


@pytest.fixture
def hub(tiny_model):
    """Yield a hub on this machine that is unavailable at the first request of a file's head, and of two contents."""
    trouble = {("HEAD", "config.json"), ("GET", "config.json"), ("GET", "model.safetensors")}
    server = Hub(tiny_model, trouble)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run_online(port: int, home: Path, *flags) -> subprocess.CompletedProcess:
    """Run run_qa.py on the model by name, with the hub at this port and an empty cache.

    In a process of its own: the client reads where its hub is when it is imported.
    """
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "cache")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    settings = ["--model_name_or_path", NAME, "--do_eval", "--output_dir", "out", "--report_to", "none"]
    command = [sys.executable, ROOT / "run_qa.py", *settings, *flags]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)


def test_a_model_comes_by_its_name_from_a_hub_that_is_unavailable_at_first(hub, tiny_model, squad_files, tmp_path):
    """The client itself tries again, after 1, 2, 4, 8 and 8 s; a newer one that does not would fail here."""
    questions = ["--validation_file", squad_files / "dev.json", "--max_eval_samples", "4"]
    done = run_online(hub.server_port, tmp_path, *questions)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert re.search(r"^F1 +\d", done.stdout, re.MULTILINE)
    snapshot = tmp_path / "cache" / "hub" / f"models--{NAME}" / "snapshots" / COMMIT
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (snapshot / file).read_bytes() == (tiny_model / file).read_bytes()
    assert hub.trouble == set()
    asked = [status for method, file, status in hub.answered if (method, file) == ("GET", "model.safetensors")]
    assert asked == [503, 200]


def test_a_check_asks_for_the_names_of_tensors_alone(hub, tiny_model, squad_files, tmp_path):
    """Those of a model of 3 layers, of which the checkpoint has 2; the weights stay where they are."""
    hub.trouble.clear()
    config = load(tiny_model / "config.json") | {"num_hidden_layers": 3}
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config))
    flags = ["--check", "--validation_file", squad_files / "dev.json", "--config_name", tmp_path / "deeper"]
    done = run_online(hub.server_port, tmp_path, *flags)
    assert done.returncode == 2, done.stdout[-1000:] + done.stderr[-3000:]
    assert f"--model_name_or_path {NAME}: the checkpoint lacks 16 tensors of the model" in done.stderr
    asked = {status for method, file, status in hub.answered if (method, file) == ("GET", "model.safetensors")}
    assert asked == {206}  # a part of it


def test_an_unreachable_hub_is_reported_in_one_line(squad_files, tmp_path):
    """After 23 s of retries, which the log shows; nothing listens at the port, since it is only reserved."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        done = run_online(port, tmp_path, "--validation_file", squad_files / "dev.json")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("Retrying in 8s") == 2  # of five times; each logged once
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == done.stderr.splitlines()[-1]
    assert NAME in errors[0] and f"connect to 'http://127.0.0.1:{port}'" in errors[0]
