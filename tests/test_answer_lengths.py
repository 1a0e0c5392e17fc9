"""Answers longer than a model may give are counted before anything slow."""

import json
import logging

import numpy as np
import oracle
import pytest
from helpers import as_dicts, rows_of
from small_tokenizers import make_rows

import qa.answer_lengths
import run_qa
import run_seq2seq_qa
import utils_qa
from qa.fallback import OwnFeatures


@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_lengths_of_spans(tokenizers, kind):
    """Those of the labels that the oracle finds in one long window; an answer that no window holds is as long as one."""
    rows = rows_of(*make_rows(120, seed=3))
    columns = ([row[name] for row in rows] for name in ("question", "context", "answers"))
    labels = oracle.features(tokenizers[kind], *columns, 2000, 128, stay_in_context=True)
    expected = [
        label["end_positions"] - label["start_positions"] + 1 if label["start_positions"] != label["cls_index"] else 64
        for label, row in zip(labels, rows, strict=True)
        if row["answers"]["text"]
    ]
    features = utils_qa.prepare_features(rows, tokenizers[kind], 64, 16)
    for form in (features, OwnFeatures(rows, as_dicts(features))):
        found = qa.answer_lengths.span_lengths(rows, form, 64)
        assert found.tolist() == [
            length if length <= 16 or other < 64 else 64 for length, other in zip(expected, found)
        ]
    assert len(found) < len(rows) and 1 < found.max()


def test_unknown_answers_are_not_counted(tokenizers):
    rows = rows_of(["where"] * 2, ["here and there"] * 2, [{"text": [], "answer_start": []}] * 2)
    features = utils_qa.prepare_features(rows, tokenizers["bert"], 64, 16)
    assert not len(qa.answer_lengths.span_lengths(rows, features, 64))


@pytest.mark.parametrize("long, level", [(1, logging.INFO), (2, logging.WARNING)])
def test_more_than_one_in_a_hundred_is_a_warning(caplog, long, level):
    with caplog.at_level(logging.INFO):
        qa.answer_lengths.report("train", np.array([5, 30]), "max_answer_length", 30)  # nothing to report
        qa.answer_lengths.report("train", np.array([5] * (100 - long) + [40] * long), "max_answer_length", 30)
    (record,) = caplog.records
    enough = 5 if long == 1 else 40
    assert record.levelno == level and record.message.startswith(
        f"{long}.0% of the train answers are longer than --max_answer_length 30; 99 % have at most {enough} tokens"
    )
    assert record.message.endswith("Raise --max_answer_length to 40") == (level == logging.WARNING)


@pytest.fixture
def long_answers(tmp_path):
    """Of ten answers one has nine words."""
    context = "one two three four five six seven eight nine"
    texts = [context, *["one"] * 9]
    rows = [
        {"context": context, "question": "what?", "answers": {"text": [text], "answer_start": [0]}} for text in texts
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_check_reports_long_answers(tiny_model, tiny_writers, long_answers, tmp_path, caplog):
    flags = ["--output_dir", tmp_path / "out", "--do_train", "--train_file", long_answers, "--do_eval", "--validation_file",
             long_answers, "--check", "--max_answer_length", "8"]  # fmt: skip
    run_qa.main(["--model_name_or_path", *map(str, (tiny_model, *flags))])
    for split in ("train", "validation"):
        assert f"10.0% of the {split} answers are longer than --max_answer_length 8; 99 % have at most" in caplog.text
    caplog.clear()
    run_seq2seq_qa.main(["--model_name_or_path", *map(str, (tiny_writers["t5"], *flags, "--predict_with_generate"))])
    (trained,) = (record.message for record in caplog.records if "train answers are longer" in record.message)
    (scored,) = (record.message for record in caplog.records if "validation answers are longer" in record.message)
    # The label and its end; what is generated also counts the token that it starts with.
    enough = int(trained.rpartition(" ")[2])
    assert "longer than --max_answer_length 8" in trained
    assert scored.endswith(f"Raise --val_max_answer_length to {enough + 1}")
