"""The model card of made-up folders: names that nobody expects, scores, and what the hub takes."""

import re
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from made_up_answers import answers_and_golds, table_of
from runs.hub_uploads import card_problems

from qa.answer_files import write_table
from qa.card import make_card, without_path, write_card
from qa.earlier import is_generated
from qa.errors import TRACEBACKS
from qa.files import write_json, write_results
from qa.metrics import score
from qa.names import LICENSES


CONFIG = SimpleNamespace(is_encoder_decoder=False, is_decoder=False, model_type="bert")
WRITER = SimpleNamespace(is_encoder_decoder=True)
ARGUMENTS = {"answer_language": "off", "language": None, "license": None, "version_2_with_negative": True}
ARGUMENTS |= {
    "max_seq_length": 384,
    "doc_stride": 128,
    "max_answer_length": 30,
    "learning_rate": 3e-5,
    "max_steps": -1,
}
ARGUMENTS |= {
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 24,
    "gradient_accumulation_steps": 2,
    "bf16": True,
}
ARGUMENTS |= {"deepspeed": {"zero_optimization": {"stage": 2, "offload_param": {"nvme_path": "/local/nvme"}}}}
HUB = {"name": "squad_v2", "config": None, "questions": 130319, "fingerprint": "0123456789abcdef"}
COMMAND = [
    "run_qa.py",
    "/home/ann/a b.yaml",
    "--output_dir=/data/out",
    "--hub_token",
    "***",
    "--train_file",
    "../x/train.json",
]


def record_of(**changes) -> dict:
    record = {"command": COMMAND, "arguments": ARGUMENTS, "versions": {"torch": "2.13.0"}, "hardware": "8 x GAUDI2"}
    record |= {"data": {"train": HUB, "validation": HUB | {"questions": 400}}, "ranks": 8, "devices_per_rank": 1}
    return (
        record
        | {"model": {"name": "google-bert/bert-base-uncased", "weights": "google-bert/bert-base-uncased at 86b5"}}
        | changes
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Return a folder with the answers and the results of an evaluation with negatives, and its scores."""
    folder = tmp_path_factory.mktemp("scored")
    answers, rows, golds = answers_and_golds(negatives=True)
    write_table(folder, "eval", table_of(answers, rows, golds))
    scores = score(answers, {row["id"]: gold["text"] for row, gold in zip(rows, golds)}, True, "off")
    write_results(folder, "train", {"train_loss": 1.25, "train_runtime": 3600.4})
    write_results(folder, "eval", {f"eval_{name}": value for name, value in scores.items()})
    return folder, scores


def test_the_scores_of_a_card_are_those_of_the_evaluation(scored):
    folder, scores = scored
    text = make_card(folder, record_of(), "ann/out", CONFIG)
    found = {result.metric_name: result for result in ModelCard(text).data.eval_results}
    kinds = {"": "", ", questions with an answer": "HasAns_", ", questions without an answer": "NoAns_"}
    names = {"EM": "exact", "F1": "f1"}
    assert found.keys() == {f"{name}{kind}" for name in names for kind in kinds}
    for (name, key), (kind, prefix) in ((first, second) for first in names.items() for second in kinds.items()):
        result = found[name + kind]
        assert result.metric_value == pytest.approx(scores[prefix + key], abs=1e-4)
        assert result.metric_args["questions"] == scores[f"{prefix}total"]
        low, high = result.metric_args["interval_95"]
        error = 100 * (0.25 / scores[f"{prefix}total"]) ** 0.5  # of a share at most
        assert low < result.metric_value < high < low + 4 * error
        assert f"| {name + kind} | {result.metric_value:.2f} | {low:.2f} to {high:.2f} |" in text
        assert (result.dataset_type, result.dataset_split) == ("squad_v2", "validation")


def test_the_metadata_of_a_card_are_what_the_hub_takes(scored):
    """Names of the hub whole; files, folders and names that it would refuse only in the text."""
    folder, _ = scored
    card = make_card(
        folder, record_of(arguments=ARGUMENTS | {"language": ["de", "en"], "license": "mit"}), "ann/out", CONFIG
    )
    data = ModelCard(card).data
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["squad_v2"])
    assert (data.language, data.license, data.model_name) == (["de", "en"], "mit", "out")
    odd = 'my | "questions": [1] `x` --- & 京\n.json'
    part = {"file": f"/home/ann/{odd}", "sha256": "f" * 64, "questions": 5, "fingerprint": "f" * 16}
    model = {"name": "/models/bert|base", "weights": "f" * 16}
    record = record_of(
        data={"train": part, "validation": part}, model=model, arguments=ARGUMENTS | {"answer_language": "de"}
    )
    odd_card = make_card(folder, record, "a<b>|c", CONFIG)
    data = ModelCard(odd_card).data
    assert (data.base_model, data.datasets, data.language) == (None, None, ["de"])
    assert {result.dataset_name for result in data.eval_results} == {odd.replace("\n", "\\n")}
    for text in (card, odd_card):
        assert card_problems(text) == []
        widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
        assert set(widths) == {3, 5, 6}
    assert not re.search("/home|/models|/data|/local|nvme", card + odd_card)


def test_the_text_of_a_card(scored, tmp_path):
    folder, _ = scored
    card = make_card(folder, record_of(), "ann/out", CONFIG)
    for line in (
        "It is `google-bert/bert-base-uncased`, fine-tuned on 130,319 questions.",
        "python -m qa.ask ann/out --context text.txt 'Your question?'",
        "| features in a step | `384` |",
        "| DeepSpeed | `ZeRO stage 2` |",
        "| hardware | `8 x GAUDI2` |",
        "| loss | `1.25` |",
        "| train | `squad_v2` | 130,319 | `0123456789abcdef` | `-` |",
        "python run_qa.py 'a b.yaml' --output_dir=out --hub_token '***' --train_file train.json",
    ):
        assert line in card.splitlines()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(block, "card", "exec")
    assert "handle_impossible_answer=True" in block and "max_answer_len=30" in block
    (tmp_path / "adapter_config.json").touch()
    adapters = make_card(tmp_path, record_of(), "out", CONFIG)
    assert "It consists of adapters for `google-bert/bert-base-uncased`, trained on 130,319 questions." in adapters
    assert "library_name: peft" in adapters and "```python" not in adapters
    unscored = make_card(tmp_path, record_of(), "out", WRITER)
    assert "The model has not been evaluated after its training." in unscored and "```python" not in unscored


def test_a_card_that_somebody_changed_is_not_generated(scored):
    folder, _ = scored
    write_json(folder / "run.json", [record_of()])
    write_card(folder, "out", CONFIG)
    card = folder / "README.md"
    text = card.read_text()
    assert is_generated(card)
    for changed in (
        text.replace("# out", "# Out"),
        text + "More.\n",
        text.rpartition("<!--")[0],
        "",
        "<!-- Generated -->",
    ):
        card.write_text(changed)
        assert not is_generated(card)
        write_card(folder, "out", CONFIG)
        assert card.read_text() == changed
    card.write_text("<!-- This model card has been generated automatically according to -->")  # by transformers
    write_card(folder, "out", CONFIG)
    assert card.read_text() == text


def test_a_defect_of_the_card_is_no_end_of_a_run(tmp_path, caplog, monkeypatch):
    """Its traceback is shown on demand. The record of an earlier version is no end either, without licence and hardware; without a record there is no card."""
    write_card(tmp_path, "out", CONFIG)
    assert not list(tmp_path.iterdir())
    older = {name: value for name, value in record_of().items() if name != "hardware"}
    older["arguments"] = {name: value for name, value in ARGUMENTS.items() if name not in ("language", "license")}
    write_json(tmp_path / "run.json", [older])
    write_card(tmp_path, "out", None)
    assert not (tmp_path / "README.md").exists() and "There is no model card: AttributeError" in caplog.text
    assert "Traceback" not in caplog.text
    monkeypatch.setitem(TRACEBACKS, "shown", True)
    write_card(tmp_path, "out", None)
    assert "Traceback (most recent call last)" in caplog.text
    write_card(tmp_path, "out", CONFIG)
    assert is_generated(tmp_path / "README.md")


@pytest.mark.parametrize(
    "word, shown",
    [
        ("/home/ann/model", "model"),
        ("~/model/", "model"),
        ("./data/train.json", "train.json"),
        ("C:\\data\\train.json", "train.json"),
        ("--output_dir=/home/ann/my runs/out", "--output_dir=out"),
        ('{"a": ["/x/y", "../z"], "b": "/q"}', '{"a": ["y", "z"], "b": "q"}'),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("--learning_rate=3e-5", "--learning_rate=3e-5"),
        ("https://example.org/a", "https://example.org/a"),
    ],
)
def test_a_command_shows_no_place_on_this_machine(word, shown):
    assert without_path(word) == shown


def test_a_licence_of_the_hub_is_none_twice():
    assert len(LICENSES) == len(set(LICENSES)) and {"apache-2.0", "cc-by-sa-4.0", "other"} <= set(LICENSES)
