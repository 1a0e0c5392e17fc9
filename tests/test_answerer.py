"""Answers without a trainer: those of the scripts' evaluation, of transformers' pipeline, and of ONNX."""

import importlib.util
import json
import re

import corpus
import pytest
from helpers import ROOT, load

import run_qa
import run_seq2seq_qa
from qa.answer_files import read_csv_columns
from qa.answerer import Answerer
from qa.arguments import DataArguments
from qa.data import checked_rows, read_questions
from qa.errors import UserError
from qa.reading import read_file


# The script of each kind, and flags of the training, which are saved with the model.
SCRIPTS = {"bert": run_qa.main, "t5": run_seq2seq_qa.main}
FLAGS = {
    "bert": "--max_seq_length 160 --doc_stride 48 --null_score_diff_threshold -0.32 --n_best_size 10",
    "t5": "--max_seq_length 256 --doc_stride 48 --null_score_diff_threshold -24 --max_answer_length 5 "
    "--predict_with_generate",
}


@pytest.fixture(scope="module")
def many_questions(tmp_path_factory):
    """Return a file of 300 questions about contexts of one window to several."""
    squad = corpus.make_part("dev", 300, seed=3)
    for paragraph in squad["data"][0]["paragraphs"][::10]:
        paragraph["context"] = " ".join([paragraph["context"]] * 3)
    path = tmp_path_factory.mktemp("questions") / "dev.json"
    path.write_text(json.dumps(squad))
    return path


def rows_of_file(path) -> list[dict]:
    data = DataArguments()
    return checked_rows(read_questions(read_file(path), path.name, data, "test"), path.name, data, "test")[0]


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("kind", FLAGS)
def test_the_answers_are_those_of_the_evaluation(
    tiny_model, tiny_writers, squad_files, many_questions, tmp_path, kind, negatives
):
    """Text, probability and place of each; with the settings that the training saved, in other batches."""
    start, train = tiny_model if kind == "bert" else tiny_writers[kind], squad_files / "train.json"
    run = ["--model_name_or_path", start, "--output_dir", tmp_path, "--do_train", "--train_file", train]
    run += [
        "--max_steps",
        4,
        "--learning_rate",
        "1e-3",
        "--save_strategy",
        "no",
        "--do_eval",
        "--validation_file",
        many_questions,
    ]
    run += [*FLAGS[kind].split(), *["--version_2_with_negative"] * negatives, "--temperature", 2]
    run += ["--num_beams", 2] if kind == "t5" and not negatives else []
    run += ["--per_device_eval_batch_size", 50, "--max_eval_samples", 300]
    SCRIPTS[kind]([*map(str, run), "--eval_report", "False", "--disable_tqdm", "True"])
    expected, texts = read_csv_columns(tmp_path / "eval_answers.csv"), load(tmp_path / "eval_predictions.json")
    model = Answerer(tmp_path, device="cpu", batch_size=32)
    answers = model.answer_rows(rows_of_file(many_questions)[:300])
    assert [answer.text for answer in answers] == list(texts.values()) and len(texts) == 300
    assert [answer.start for answer in answers] == expected["start"]
    assert [answer.end for answer in answers] == expected["end"]
    assert [answer.probability for answer in answers] == pytest.approx(expected["probability"], rel=2e-3)
    assert not negatives or 20 < list(texts.values()).count("") < 280
    assert max(expected["windows"]) > 2 and min(expected["windows"]) == 1


def test_a_model_without_settings_answers_with_the_defaults_that_it_takes(tiny_model, tiny_writers, tmp_path):
    """The overlap too is lowered; settings of the call come first."""
    model = Answerer(tiny_model, device="cpu", max_answer_length=3)
    settings = model.settings
    assert (settings.kind, settings.max_seq_length, settings.doc_stride) == ("span", 384, 128)
    assert not settings.version_2_with_negative and settings.max_answer_length == 3
    (answer,) = model.answer("Which river?", "The Nile flows.")
    assert answer.text == "The Nile flows."[answer.start : answer.end] != ""
    assert Answerer(tiny_writers["t5"], device="cpu").settings.kind == "written"
    for path in tiny_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load(tiny_model / "tokenizer_config.json") | {"model_max_length": 64}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    settings = Answerer(tmp_path, device="cpu").settings
    assert (settings.max_seq_length, settings.doc_stride) == (64, 21)
    with pytest.raises(UserError, match="--doc_stride 64 leaves no room"):
        Answerer(tmp_path, device="cpu", doc_stride=64)


def test_questions_and_contexts_may_be_one_or_several(colour_model):
    model = Answerer(colour_model)
    contexts = [f"{words} boat in the harbour of the old town." for words in ("Anna has a red", "Hugo has a pink")]
    questions = ["Who has the boat?", "What colour is the boat?"]
    assert [answer.text for answer in model.answer(questions, contexts[0])] == ["Anna", "red"]
    assert [answer.text for answer in model.answer(questions, contexts)] == ["Anna", "pink"]
    (answer,) = model.answer("When was the boat built?", contexts[1])
    assert (answer.text, answer.start, answer.end) == ("", None, None) and 0.5 < answer.probability <= 1
    assert model.answer([], "A text.") == []
    with pytest.raises(ValueError, match="got 2 questions and 1 contexts"):
        model.answer(questions, contexts[:1])
    with pytest.raises(TypeError, match="unknown settings: max_answer"):
        Answerer(colour_model, max_answer=3)
    with pytest.raises(UserError) as error:
        model.answer(["Who?", " ", 3], "A text.")
    assert error.value.problems == (
        "question 2: the question is empty; write one",
        "question 3: the question is not a text but 3; write one",
    )


@pytest.fixture
def page(colour_model, two_questions, tmp_path, monkeypatch):
    """Return the Python of docs/ask.md by heading, the names that it needs, and what `Answerer` answers.

    The folder has the page's `out` and `contract.txt`.
    """
    rows = [json.loads(line) for line in (two_questions / "negatives.jsonl").read_text().splitlines()]
    names = {name: [row[name[:-1]] for row in rows] for name in ("questions", "contexts")}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").symlink_to(colour_model)
    (tmp_path / "contract.txt").write_text(rows[0]["context"])
    parts = re.split("^## ", (ROOT / "docs" / "ask.md").read_text(), flags=re.MULTILINE)
    found = [(part.split()[0], re.search("```python\n(.*?)```", part, re.DOTALL)) for part in parts]
    answers = [answer.text for answer in Answerer(colour_model).answer(names["questions"], names["contexts"])]
    assert len(answers) == 24 and answers.count("") == 8
    return {heading: block[1] for heading, block in found if block}, names, answers


def test_the_python_of_the_page_runs(page, capsys):
    blocks, _, _ = page
    assert len(blocks["Python"].splitlines()) <= 10
    exec(blocks["Python"], {})
    assert re.match(r"Anna 0\.9\d+ 0 4\n", capsys.readouterr().out)


def test_the_pipeline_of_transformers_has_the_same_answers(page):
    """With the settings of the page."""
    blocks, names, expected = page
    exec(blocks["transformers"], names)
    assert [answer["answer"] for answer in names["answers"]] == expected


def test_a_model_exported_to_onnx_has_the_same_answers(page):
    for module in ("onnxruntime", "optimum.onnxruntime"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; for tests: pip install -r requirements-dev.txt")
    blocks, names, expected = page
    exec(blocks["ONNX"], names)
    assert [answer["answer"] for answer in names["answers"]] == expected
