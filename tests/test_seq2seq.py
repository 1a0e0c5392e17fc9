"""Inputs and targets of encoder-decoders against the plain oracle, and the choice between windows."""

import numpy as np
import oracle
import pytest
from helpers import nbest_of, rows_of
from small_tokenizers import make_rows

import qa.seq2seq
from qa.errors import UserError


KINDS = ("t5", "t5_old", "bart")
SIZES = [(48, 8), (96, 0), (200, 64)]


def nasty_rows(seed: int, tokenizer, max_seq_length: int, doc_stride: int) -> list[dict]:
    """Rows of nasty text whose questions need not be cut."""
    rows = rows_of(*make_rows(150, seed))
    most = max_seq_length - qa.seq2seq.read_seq2seq_template(tokenizer).special_tokens - doc_stride - 1
    reader = oracle.with_private_names(tokenizer)
    lengths = [len(reader(f"question: {row['question'].lstrip()}")["input_ids"]) for row in rows]
    return [row for row, length in zip(rows, lengths) if length <= most]


def texts_of(features, tokenizer) -> list[str]:
    return [tokenizer.decode(features[index]["labels"], skip_special_tokens=True) for index in range(len(features))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_seq_length, doc_stride", SIZES)
def test_windows_and_targets(writers, kind, max_seq_length, doc_stride):
    """Defect 8: the reference ignores doc_stride and leaves the question out of later windows."""
    tokenizer = writers[kind]
    rows = nasty_rows(max_seq_length, tokenizer, max_seq_length, doc_stride)
    expected = oracle.seq2seq_features(tokenizer, rows, max_seq_length, doc_stride)
    assert len(expected) > len(rows) * 1.1
    settings = (tokenizer, max_seq_length, doc_stride, 500)
    found = qa.seq2seq.prepare_seq2seq_features(rows, *settings, version_2_with_negative=True, training=True)
    assert found.row.tolist() == [row["example_index"] for row in expected]
    targets, reader = [], oracle.with_private_names(tokenizer)
    alone = np.bincount(found.row)
    for index, row in enumerate(expected):
        item = found[index]
        assert item["input_ids"].tolist() == row["input_ids"] and len(row["input_ids"]) <= max_seq_length
        assert item["attention_mask"].tolist() == [1] * len(row["input_ids"])
        answers = rows[row["example_index"]]["answers"]["text"]
        held = row["holds"] or (answers and alone[row["example_index"]] == 1)
        targets.append(reader(answers[0] if held else "")["input_ids"])
    assert [found[index]["labels"].tolist() for index in range(len(found))] == targets
    assert found.lengths().tolist() == [len(row["input_ids"]) for row in expected]
    assert not len(found.contexts.starts) and not len(found.questions.ends)  # nobody reads them


def test_a_context_that_fits_is_the_references_text(writers):
    for kind in KINDS:
        tokenizer = writers[kind]
        row = rows_of([" \nWhat is it?"], [" A school of music. "], [{"text": ["music"], "answer_start": [13]}])
        (item,) = qa.seq2seq.prepare_seq2seq_features(row, tokenizer, 384, 128, 30)
        assert (
            item["input_ids"].tolist() == tokenizer("question: What is it? context: A school of music. ")["input_ids"]
        )
        assert item["labels"].tolist() == tokenizer("music")["input_ids"]


def test_windows_without_the_answer(writers):
    """Left out of training without negatives, an empty target with them; kept for evaluation either way."""
    tokenizer = writers["t5"]
    words = [f"word{number}" for number in range(200)]
    context = " ".join(words)
    answer = {"text": ["word100"], "answer_start": [context.index("word100")]}
    rows = rows_of(["Which?", "Where?"], [context, context], [answer, answer])
    settings = (tokenizer, 64, 16, 30)
    every = qa.seq2seq.prepare_seq2seq_features(rows, *settings)
    assert set(texts_of(every, tokenizer)) == {"word100"}
    with_negatives = texts_of(qa.seq2seq.prepare_seq2seq_features(rows, *settings, True, True), tokenizer)
    assert len(with_negatives) == len(every) and set(with_negatives) == {"word100", ""}
    trained = qa.seq2seq.prepare_seq2seq_features(rows, *settings, False, True)
    assert 2 <= len(trained) < 6 and set(trained.row) == {0, 1}
    for index in range(len(trained)):
        assert "word100" in tokenizer.decode(trained[index]["input_ids"])
    assert with_negatives.count("word100") == len(trained)


def test_answers_that_no_window_holds_are_reported(writers, caplog):
    tokenizer = writers["t5"]
    context = " ".join(f"word{number}" for number in range(200))
    answer = {"text": [context], "answer_start": [0]}
    short = {"text": ["word1"], "answer_start": [6]}
    rows = rows_of(["Which?", "Which?"], [context, context], [answer, short])
    features = qa.seq2seq.prepare_seq2seq_features(rows, tokenizer, 64, 16, 30, training=True)
    assert set(features.row) == {1} and "1 answers lie in no single window" in caplog.text
    with pytest.raises(UserError, match="nothing to train on; raise --max_seq_length"):
        qa.seq2seq.prepare_seq2seq_features(rows[:1], tokenizer, 64, 16, 30, training=True)


def test_a_long_question_is_cut_and_the_context_still_begins(writers, caplog):
    """Defect 9: the tokenizer would panic, and the reference's truncation would leave no context."""
    tokenizer = writers["bart"]
    rows = rows_of(["why " * 300], ["A school of music. " * 30], [{"text": [], "answer_start": []}])
    features = qa.seq2seq.prepare_seq2seq_features(rows, tokenizer, 128, 32, 30)
    assert "1 questions are too long" in caplog.text and len(features) > 2
    for index in range(len(features)):
        text = tokenizer.decode(features[index]["input_ids"])
        assert text.startswith("<s>question: why") and " context:" in text and len(features[index]["input_ids"]) <= 128


def test_a_tokenizer_that_joins_question_and_context(caplog):
    """One that splits nothing at spaces: its pieces may reach across them, so texts are tokenized whole."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyzAQ:?. ", " c", ": ", ": A", ": s"]
    merges = [(" ", "c"), (":", " "), (": ", "A"), (": ", "s")]
    model = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>")
    rows = rows_of(["Q a?", "Q b?"], ["A school of music. ", "school " * 40], [{"text": [], "answer_start": []}] * 2)
    rows[1]["answers"] = {"text": ["school"], "answer_start": [140]}
    features = qa.seq2seq.prepare_seq2seq_features(rows, tokenizer, 96, 16, 30, True, True)
    assert "joins words of question and context" in caplog.text
    expected = oracle.seq2seq_features(tokenizer, rows, 96, 16)
    assert [features[index]["input_ids"].tolist() for index in range(len(features))] == [
        row["input_ids"] for row in expected
    ]
    empty = tokenizer("")["input_ids"]
    assert [features[index]["labels"].tolist() != empty for index in range(len(features))] == [
        row["holds"] for row in expected
    ]


def test_the_collator_pads_labels_to_their_own_length(writers):
    tokenizer = writers["t5"]
    items = [{"input_ids": np.arange(5), "attention_mask": np.ones(5, int), "labels": np.array([7, 1])},
             {"input_ids": np.arange(3), "attention_mask": np.ones(3, int), "labels": np.array([8, 9, 1])}]  # fmt: skip
    batch = qa.seq2seq.Seq2SeqCollator(tokenizer)(items)
    assert batch["input_ids"].shape == (2, 5) and batch["labels"].tolist() == [[7, 1, -100], [8, 9, 1]]
    batch = qa.seq2seq.Seq2SeqCollator(tokenizer, length=16, label_length=6, label_padding=0)(items)
    assert batch["input_ids"].shape == (2, 16) and batch["labels"].tolist() == [[7, 1, 0, 0, 0, 0], [8, 9, 1, 0, 0, 0]]
    del items[0]["labels"], items[1]["labels"]
    assert "labels" not in qa.seq2seq.Seq2SeqCollator(tokenizer, label_length=6)(items)


@pytest.fixture
def long_and_short(writers):
    """Return a row of several windows and one of a single one, with their features."""
    context = " ".join(f"word{number}" for number in range(200))
    rows = rows_of(["Which?", "Where?"], [context, "word1 word2"], [{"text": ["word1"], "answer_start": [6]}] * 2)
    return rows, qa.seq2seq.prepare_seq2seq_features(rows, writers["t5"], 128, 16, 30)


@pytest.mark.parametrize("best", range(3))
def test_the_best_window_wins(long_and_short, best):
    rows, features = long_and_short
    windows = len(features) - 1
    best = (0, windows // 2, windows - 1)[best]
    texts = [f"text {number}" for number in range(windows)] + ["short"]
    scores = np.linspace(-3, -2, windows + 1).astype(np.float32)
    scores[best] = -0.5
    answers = qa.seq2seq.choose_windows(rows, features, texts, scores)
    assert answers.texts == answers.best_texts == {"q0": f"text {best}", "q1": "short"} and not answers.null_odds
    nbest = nbest_of(answers)
    assert sorted(row["window"] for row in nbest["q0"]) == list(range(windows))
    assert [row["score"] for row in nbest["q0"]] == sorted((float(s) for s in scores[:-1]), reverse=True)
    assert all(row["text"] == texts[row["window"]] for row in nbest["q0"])
    odds = np.exp([row["score"] for row in nbest["q0"]])
    assert [row["probability"] for row in nbest["q0"]] == pytest.approx(odds / odds.sum(), rel=1e-5)
    assert [row["probability"] for row in nbest["q1"]] == [1.0]


def test_the_empty_answer(long_and_short):
    """The null score is the lowest of the windows', and a text of white space never beats another."""
    rows, features = long_and_short
    windows = len(features) - 1
    texts, scores = ["text"] * windows + ["short"], np.full(windows + 1, -2.0)
    scores[1], texts[1] = -0.1, "  "
    null_scores = np.full(windows + 1, -0.2)
    null_scores[2], null_scores[-1] = -2.5, -1.5
    answers = qa.seq2seq.choose_windows(rows, features, texts, scores, null_scores)
    assert answers.null_odds == pytest.approx({"q0": -0.5, "q1": 0.5})
    assert answers.texts == {"q0": "text", "q1": ""} and answers.best_texts == {"q0": "text", "q1": "short"}
    assert nbest_of(answers)["q1"][0]["null_score"] == -1.5
    answers = qa.seq2seq.choose_windows(rows, features, texts, scores, null_scores, 0.6)
    assert answers.texts == {"q0": "text", "q1": "short"}
    answers = qa.seq2seq.choose_windows(rows, features, texts, scores, null_scores, -0.6)
    assert answers.texts == {"q0": "", "q1": ""}


def test_mismatched_inputs_are_refused(long_and_short):
    rows, features = long_and_short
    with pytest.raises(ValueError, match="got 1 texts and"):
        qa.seq2seq.choose_windows(rows, features, ["text"], np.zeros(1))
