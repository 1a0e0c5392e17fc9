"""Answers without a trainer: those of the scripts' evaluation, and those of transformers' pipeline and of ONNX."""

import json

import corpus
import pytest
from helpers import load

import run_qa
import run_seq2seq_qa
from qa.answer_files import read_csv_columns
from qa.answerer import Answerer
from qa.arguments import DataArguments
from qa.data import checked_rows, read_questions
from qa.reading import read_file


MAIN = {"bert": run_qa.main, "llama": run_qa.main, "t5": run_seq2seq_qa.main, "bart": run_seq2seq_qa.main}
# Flags of the training, which are saved with the model, by its kind.
FLAGS = {
    "bert": "--max_seq_length 160 --doc_stride 48 --null_score_diff_threshold -0.32 --n_best_size 10",
    "t5": "--max_seq_length 256 --doc_stride 48 --null_score_diff_threshold -24 --max_answer_length 5 --num_beams 2",
}


@pytest.fixture(scope="module")
def many_questions(tmp_path_factory):
    """Return a file of 300 questions about contexts of one window to several."""
    squad = corpus.make_part("dev", 300, seed=3)
    paragraphs = squad["data"][0]["paragraphs"]
    for paragraph in paragraphs[::10]:
        paragraph["context"] = " ".join([paragraph["context"]] * 3)
    path = tmp_path_factory.mktemp("questions") / "dev.json"
    path.write_text(json.dumps(squad))
    return path


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("kind", FLAGS)
def test_the_answers_are_those_of_the_evaluation(
    tiny_model, tiny_writers, squad_files, many_questions, tmp_path, kind, negatives
):
    """Text, probability and place of each; with the settings that the training saved, and other batches."""
    start = tiny_model if kind == "bert" else tiny_writers[kind]
    flags = [
        *FLAGS[kind].split(),
        *["--version_2_with_negative"] * negatives,
        *["--predict_with_generate"] * (kind == "t5"),
    ]
    files = ["--train_file", squad_files / "train.json", "--validation_file", many_questions]
    training = ["--do_train", "--max_steps", "4", "--learning_rate", "1e-3", "--save_strategy", "no"]
    training += ["--per_device_eval_batch_size", "50"]
    run = [
        "--model_name_or_path",
        start,
        "--output_dir",
        tmp_path,
        *training,
        "--do_eval",
        *files,
        "--max_eval_samples",
        300,
    ]
    MAIN[kind]([*map(str, run), *flags, "--eval_report", "False", "--disable_tqdm", "True"])
    expected = read_csv_columns(tmp_path / "eval_answers.csv")
    rows = rows_of_file(many_questions)[:300]
    # TEMP
    from qa.settings import Settings, write_settings

    if kind == "bert":
        write_settings(tmp_path, Settings("span", 160, 48, 30, 10, negatives, null_score_diff_threshold=-0.32))
    else:
        write_settings(
            tmp_path,
            Settings(
                "written",
                256,
                48,
                5,
                20,
                negatives,
                null_score_diff_threshold=-24.0,
                generation_max_length=5,
                generation_num_beams=2,
            ),
        )
    # END
    answers = Answerer(tmp_path, device="cpu", batch_size=32).answer_rows(rows)
    texts = load(tmp_path / "eval_predictions.json")
    assert [answer.text for answer in answers] == list(texts.values()) and len(texts) == 300
    assert ([answer.start for answer in answers], [answer.end for answer in answers]) == (
        expected["start"],
        expected["end"],
    )
    assert [answer.probability for answer in answers] == pytest.approx(expected["probability"], rel=2e-3)
    if negatives:
        print("EMPTY", sum(not text for text in texts.values()), len(expected["windows"]), sum(expected["windows"]))
    assert not negatives or 20 < sum(not text for text in texts.values()) < 280
    assert max(expected["windows"]) > 2 and min(expected["windows"]) == 1


def rows_of_file(path) -> list[dict]:
    data = DataArguments()
    return checked_rows(read_questions(read_file(path), path.name, data, "test"), path.name, data, "test")[0]
