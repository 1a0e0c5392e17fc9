"""Models and datasets by name through the real hub client, from a small hub on this machine: download, retries, messages."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, load
from hub_server import COMMIT, Hub, running


NAME = "bert-base-uncased"
TOKEN = "hf_SecretSecretSecret"
ROWS = "id,context,question,answers\n" + "".join(
    f"{number},The Nile passes Cairo and {text}.,Where?,{text}\n"
    for number, text in enumerate(["NA", "None", "null", "n/a"])
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Return the folder of a dataset as the hub has it: CSV."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "validation.csv").write_text(ROWS)
    (folder / "README.md").write_text("A dataset.\n")
    return folder


@pytest.fixture
def hub(tiny_model, dataset):
    with running(Hub(tiny_model, dataset)) as server:
        yield server


def run_client(port: int, home: Path, *command) -> subprocess.CompletedProcess:
    """Run a program of Python with the hub at this port and an empty cache.

    In a process of its own: the client reads where its hub is when it is imported.
    """
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "cache")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)


def run_online(port: int, home: Path, *flags) -> subprocess.CompletedProcess:
    settings = ["--model_name_or_path", NAME, "--do_eval", "--output_dir", "out", "--report_to", "none"]
    return run_client(port, home, ROOT / "run_qa.py", *settings, *flags)


def test_a_model_comes_by_its_name(hub, tiny_model, squad_files, tmp_path):
    """The training's record has the model's commit, and no file has the token."""
    questions = ["--validation_file", squad_files / "dev.json", "--max_eval_samples", "4"]
    questions += ["--do_train", "--train_file", squad_files / "dev.json", "--max_steps", "1", "--token", TOKEN]
    done = run_online(hub.server_port, tmp_path, *questions)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert re.search(r"^F1 +\d", done.stdout, re.MULTILINE)
    snapshot = tmp_path / "cache" / "hub" / f"models--{NAME}" / "snapshots" / COMMIT
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (snapshot / file).read_bytes() == (tiny_model / file).read_bytes()
    assert load(tmp_path / "out" / "run.json")["model"]["weights"] == f"{NAME} at {COMMIT}"
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files and not [path for path in files if TOKEN.encode() in path.read_bytes()]


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
    assert (
        errors
        == done.stderr.splitlines()[-1:]
        == [
            f"error: --model_name_or_path {NAME}: http://127.0.0.1:{port} cannot be reached (Connection refused); check the "
            "network and try again. Without the hub, name a local folder, or set HF_HUB_OFFLINE=1 to use what the cache has"
        ]
    )


OFFLINE = " Without the hub, name a local folder, or set HF_HUB_OFFLINE=1 to use what the cache has"
ABSENT = (
    "there is no such folder, and {hub} shows you no {kind} of this name; correct it, or if it is private, {identify}"
)
# The beginning of a name: the message of the hub's trouble, and a part of the line of its log for each of five retries.
ENDS = {
    "missing": (ABSENT, None),
    "private": (ABSENT, None),
    "gated": ("{hub} does not give you access to it; ask for access there, then {identify}", None),
    "limited": (
        "{hub} still limits your requests (HTTP 429); try again later, or {identify}." + OFFLINE,
        "trying again in 0 s [",
    ),
    "faulty": ("{hub} has a fault of its own (HTTP 503); try again later." + OFFLINE, "Retrying in "),
    "slow": (
        "{hub} cannot be reached (no answer in time); check the network and try again." + OFFLINE,
        "Retrying in ",
    ),
}
WITH_TOKEN = ("model gated", "model limited", "dataset private")
# Troubles of the first request alone.
PASSES = {"busy": "trying again in 1 s [1/5]", "unavailable": "Retrying in 1s", "breaking": "Trying to resume"}


@pytest.fixture(scope="module")
def outcomes(tiny_model, dataset, tmp_path_factory):
    """Load the model and the dataset with every trouble at once; return the hub and what came of each."""
    home = tmp_path_factory.mktemp("troubles")
    jobs = {f"model {trouble}": {"model_name_or_path": f"{trouble}-x"} for trouble in (*ENDS, *PASSES)}
    jobs |= {f"dataset {trouble}": {"dataset_name": f"{trouble}-x"} for trouble in (*ENDS, *PASSES)}
    jobs["model unrevised"] = {"model_name_or_path": "unrevised-x", "model_revision": "v2"}
    deeper = home / "deeper"
    deeper.mkdir()
    config = load(tiny_model / "config.json") | {"num_hidden_layers": 3}  # the checkpoint has 2
    (deeper / "config.json").write_text(json.dumps(config))
    jobs["model deeper"] = {"model_name_or_path": NAME, "config_name": str(deeper)}
    jobs |= {"model mute": {"model_name_or_path": "mute-x"}, "dataset mute": {"dataset_name": "mute-x"}}
    jobs["model misspelt"] = {"model_name_or_path": NAME, "token": f"{TOKEN}\n{TOKEN}"}
    jobs["dataset misspelt"] = {"dataset_name": NAME, "token": f"{TOKEN}京"}
    for title in WITH_TOKEN:
        jobs[title]["token"] = TOKEN
    (home / "jobs.json").write_text(json.dumps(jobs))
    with running(Hub(tiny_model, dataset)) as hub:
        done = run_client(
            hub.server_port, home, ROOT / "tests/runs/hub_run.py", home / "done.json", home / "jobs.json"
        )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert TOKEN not in (home / "done.json").read_text() + done.stdout + done.stderr
    return hub, load(home / "done.json")


@pytest.mark.parametrize("kind, flag", [("model", "model_name_or_path"), ("dataset", "dataset_name")])
@pytest.mark.parametrize("trouble", ENDS)
def test_a_name_that_the_hub_does_not_deliver_is_reported_in_one_line(outcomes, kind, flag, trouble):
    hub, found = outcomes
    title, (message, retry) = f"{kind} {trouble}", ENDS[trouble]
    identify = "check --token" if title in WITH_TOKEN else "log in with `hf auth login` or give --token"
    message = message.format(hub=f"http://127.0.0.1:{hub.server_port}", kind=kind, identify=identify)
    if title == "dataset slow":  # the library datasets 3.6 hides this reason
        message = message.replace(" (no answer in time)", "")
    assert found[title]["problems"] == [f"--{flag} {trouble}-x: {message}"]
    assert sum(retry in line for line in found[title]["log"]) == 5 if retry else found[title]["log"] == []


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("trouble", PASSES)
def test_a_trouble_that_passes_is_waited_for_and_logged(outcomes, kind, trouble):
    found = outcomes[1][f"{kind} {trouble}"]
    assert found["problems"] == []
    assert any(PASSES[trouble] in line for line in found["log"])


def test_a_download_that_broke_goes_on_where_it_broke(outcomes):
    """Or from the beginning, where it broke in the client's first piece."""
    answered = outcomes[0].answered
    for file, expected in (("tokenizer.json", [200, 206]), ("validation.csv", [200, 200])):
        asked = [
            status for method, name, path, status in answered if (method, name, path) == ("GET", "breaking-x", file)
        ]
        assert asked == expected


def test_a_revision_that_the_hub_lacks_is_named(outcomes):
    (problem,) = outcomes[1]["model unrevised"]["problems"]
    assert problem.endswith("has it, but not --model_revision v2; name a branch, tag or commit of it")


def test_a_check_asks_for_the_names_of_tensors_alone(outcomes):
    """The weights stay where they are."""
    hub, found = outcomes
    (problem,) = found["model deeper"]["problems"]
    assert problem.startswith(f"--model_name_or_path {NAME}: the checkpoint lacks 16 tensors of the model")
    asked = [
        status
        for method, name, file, status in hub.answered
        if (method, name, file) == ("GET", NAME, "model.safetensors")
    ]
    assert set(asked) == {206}  # a part of it


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_token_that_cannot_be_sent_is_not_printed(outcomes, kind):
    (problem,) = outcomes[1][f"{kind} misspelt"]["problems"]
    assert problem.endswith(
        f"{NAME}: the token contains characters that no token has; copy it again, without spaces and line breaks"
    )


def test_a_hub_that_answers_no_question_does_not_hold_the_run(outcomes):
    """It sends files, but no lists of them, for which huggingface_hub 0.36 would wait forever."""
    hub, found = outcomes
    for title, flag in (("model mute", "model_name_or_path"), ("dataset mute", "dataset_name")):
        (problem,) = found[title]["problems"]
        where = f"http://127.0.0.1:{hub.server_port}"
        assert problem.startswith(f"--{flag} mute-x: {where} cannot be reached (no answer in time); check the network")
