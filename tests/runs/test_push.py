"""Uploads to a small hub on this machine with `--push_to_hub`: checks before a run, uploaded files, a hub that fails."""

import os
import re
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Hub, running
from huggingface_hub import constants, hf_api

import run_qa
import trainer_qa
from qa.errors import Stopped, UserError
from qa.push import account_problem
from qa.upstream.hub import patient_session


TOKEN = "hf_SecretSecretSecret"
ANN = {
    "name": "ann",
    "type": "user",
    "orgs": [{"name": "Lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}],
}
SETTINGS = """--max_seq_length 96 --doc_stride 32 --per_device_train_batch_size 4 --report_to none --disable_tqdm True
    --push_to_hub --hub_token""".split()
MODEL = {
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}
RESULTS = {f"eval_{name}" for name in ("answers.csv", "nbest_predictions.json", "predictions.json", "results.json")}
RESULTS |= {
    "README.md",
    "qa_settings.json",
    "all_results.json",
    "eval_report.html",
    "eval_report.json",
    "train_results.json",
}


@pytest.fixture
def hub(tiny_model, monkeypatch):
    """Return a running hub, which the libraries of this process take for theirs."""
    with running(Hub(tiny_model)) as server:
        server.accounts[TOKEN] = ANN
        point_to(server.server_port, monkeypatch)
        yield server
    huggingface_hub.configure_http_backend()


def point_to(port: int, monkeypatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for place, name in ((constants, "ENDPOINT"), (hf_api.api, "endpoint")):
        monkeypatch.setattr(place, name, f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.configure_http_backend(patient_session)


def run(model, folder: Path, token: str, *flags) -> None:
    settings = ["--model_name_or_path", model, "--output_dir", folder, *SETTINGS, token]
    run_qa.main(list(map(str, [*settings, *flags])))


def content_of(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of a folder, except the record of the last command."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.json"}


def test_the_files_of_a_run_are_uploaded_and_nothing_of_this_machine(
    hub, tiny_model, squad_files, tmp_path, caplog, capfd, monkeypatch
):
    """The hub fails after the first checkpoint: the run ends with a line, and the same command only uploads.

    The training waits for the uploads of a checkpoint: an upload fails whose files the next checkpoint replaces.
    """
    step = trainer_qa.QuestionAnsweringTrainer.training_step

    def step_after_uploads(self, *args, **kwargs):
        end = time.time() + 100
        while self.state.global_step == 2 and len(hub.uploads) < 2 and time.time() < end:
            time.sleep(0.01)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer_qa.QuestionAnsweringTrainer, "training_step", step_after_uploads)
    folder = tmp_path / "places-and-people"
    flags = ["--do_train", "--train_file", squad_files / "train.json", "--max_train_samples", 12, "--max_steps", 4]
    flags += [
        "--save_steps",
        2,
        "--hub_strategy",
        "checkpoint",
        "--hub_always_push",
        "--license",
        "mit",
        "--language",
        "en",
    ]
    flags += ["--do_eval", "--validation_file", squad_files / "dev.json", "--max_eval_samples", 6]
    hub.room = 2
    with pytest.raises(Stopped) as stopped:
        run(tiny_model, folder, TOKEN, *flags)
    assert stopped.value.status == 1
    assert re.fullmatch(
        rf"error: --push_to_hub: nothing was uploaded to ann/places-and-people: {constants.ENDPOINT} has a fault of its own "
        rf"\(HTTP 503\); try again later. All files are in {folder}; start the same command again, which only uploads, or run "
        rf"`hf upload ann/places-and-people {folder} . --exclude .*'checkpoint-\*' run.json .*`",
        stopped.value.line,
    )
    assert "An upload of this training failed, and the training goes on: 503" in caplog.text
    hub.room, before = 3, content_of(folder)
    caplog.clear()
    run(tiny_model, folder, TOKEN, *flags)
    assert "left to do: push to the hub" in caplog.text
    assert content_of(folder) == before and "model.safetensors:" not in capfd.readouterr().err
    places = [(repository, branch, message) for repository, branch, message, _ in hub.uploads]
    messages = ["Training in progress, step 2", "Training in progress, step 2, checkpoint", "End of training"]
    assert places == [("ann/places-and-people", "main", message) for message in messages]
    (*_, early), (*_, checkpoint), (*_, files) = hub.uploads
    assert (set(early), set(files)) == (MODEL, MODEL | RESULTS)
    assert {f"last-checkpoint/{name}" for name in ("optimizer.pt", "run.json", "trainer_state.json")} <= set(
        checkpoint
    )
    assert all(content == (folder / name).read_bytes() for name, content in files.items())
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.model_name) == ("mit", ["en"], "places-and-people")
    assert len(card.data.eval_results) == 2
    private = [TOKEN, str(tmp_path), str(squad_files), str(tiny_model)]
    for name, content in (early | files).items():
        assert not [word for word in private if word.encode() in content], name


def problems_of(*command) -> list[str]:
    with pytest.raises(UserError) as caught:
        run(*command)
    return list(caught.value.problems)


def test_what_keeps_an_upload_from_working_is_found_first(hub, tmp_path, monkeypatch):
    """Without the hub its name, then the token; nothing is read or written before."""
    there, login = (
        constants.ENDPOINT,
        f"log in with a token that has write access, from {constants.ENDPOINT}/settings/tokens",
    )
    folder, flags = tmp_path / "out", ["--do_train", "--train_file", __file__ + ".json", "--check"]
    name_given = ["--hub_model_id", "a b", *flags]
    absent = f"--train_file {__file__}.json: there is no such file"
    assert problems_of("m", folder, TOKEN, *name_given) == [
        absent,
        "--hub_model_id a b: 'a b' cannot be the name of a repository; give --hub_model_id a name of letters, digits, -, _ and "
        "., as in NAME or OWNER/NAME",
    ]
    (tmp_path / "rows.json").write_text("[]")
    flags[2] = tmp_path / "rows.json"
    (problem,) = problems_of("m", folder, "hf_unknown", *flags)
    assert problem == f"--push_to_hub: {there} does not know the access token (HTTP 401); {login}"
    hub.accounts["hf_reader"] = ANN | {"auth": {"accessToken": {"role": "read"}}}
    (problem,) = problems_of("m", folder, "hf_reader", *flags)
    assert problem == f"--push_to_hub: the access token of ann is read-only; {login}"
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        point_to(reserved.getsockname()[1], monkeypatch)
        (problem,) = problems_of("m", folder, TOKEN, *flags)
    assert problem == (
        f"--push_to_hub: {constants.ENDPOINT} cannot be reached (Connection refused); check the network and try again"
    )
    assert not folder.exists()


def account_with(role: str, *scopes: tuple[str, str]) -> dict:
    rights = [{"entity": {"name": name}, "permissions": [permission]} for name, permission in scopes]
    return ANN | {"auth": {"accessToken": {"role": role, "fineGrained": {"scoped": rights}}}}


@pytest.mark.parametrize(
    "account, name, problem",
    [
        (ANN, "out", None),
        (ANN, "lab/out", None),
        (ANN, "club/out", "--hub_model_id club/out: ann has read access only in club; ask its owners"),
        (ANN, "bob/out", "--hub_model_id bob/out: ann is not a member of bob; name a repository of ann or club or lab"),
        (account_with("write"), "out", None),
        (account_with("fineGrained", ("ann", "repo.write")), "out", None),
        (account_with("fineGrained", ("ann/out", "repo.write")), "ann/out", None),
        (account_with("fineGrained", ("ann", "repo.content.read"), ("Lab", "repo.write")), "ann/out", "may not write to"),
    ],
)  # fmt: skip
def test_an_account_may_write_or_not(account, name, problem):
    found = account_problem(account, name)
    assert found is None if problem is None else problem in found


def test_a_refused_repository_is_one_line(hub, tiny_model, squad_files, tmp_path):
    """The account is a member, but the hub does not let it create a repository: nothing is trained."""
    hub.accounts[TOKEN] = ANN | {"orgs": [{"name": "other", "roleInOrg": "write"}]}
    flags = ["--do_train", "--train_file", squad_files / "train.json", "--max_train_samples", 12, "--max_steps", 4]
    (problem,) = problems_of(tiny_model, tmp_path / "out", TOKEN, "--hub_model_id", "other/out", *flags)
    assert problem.startswith(
        f"--push_to_hub: {constants.ENDPOINT} does not let the access token write there (HTTP 403)"
    )


def test_a_model_that_was_only_evaluated_is_uploaded_without_a_card(hub, tiny_model, squad_files, tmp_path):
    flags = [
        "--do_eval",
        "--validation_file",
        squad_files / "dev.json",
        "--max_eval_samples",
        6,
        "--hub_model_id",
        "Lab/out",
    ]
    run(tiny_model, tmp_path / "out", TOKEN, *flags)
    ((repository, *_, files),) = hub.uploads
    assert repository == "Lab/out" and files.keys() == MODEL | RESULTS - {"README.md", "train_results.json"}
