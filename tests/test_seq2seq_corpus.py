"""The seq2seq quickstart's corpus leaks nothing: unseen names, one fact of a kind, facts anywhere; and its small T5."""

import re
import sys
from collections import Counter

import pytest
import seq2seq_corpus
import seq2seq_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import qa.reading


def rows_of_part(part: str, questions: int, **settings) -> list[dict]:
    squad = seq2seq_corpus.make_part(part, questions, 0, **settings)
    rows = qa.reading.flatten_squad(squad["data"])
    assert questions <= len(rows) <= questions + 1 and len({row["id"] for row in rows}) == len(rows)
    return rows


def kind_of(row: dict) -> str:
    return row["id"].rsplit("-", 1)[1]


def values_stated(context: str, kind: str) -> list[str]:
    """Return the values of all sentences of this kind in the context, with a name or a pronoun in them."""
    values, sentences, _ = seq2seq_corpus.KINDS[kind]
    name = r"(?:[A-Z]\w+)"  # a name or a pronoun
    found = []
    for sentence in sentences:
        pattern = re.escape(sentence).replace(r"\{e\}", name).replace(r"\{v\}", rf"({'|'.join(values)})")
        found += re.findall(rf"(?:^|(?<=\. )){pattern}", context)
    return found


def names_of(rows: list[dict]) -> set[str]:
    """Capitalised words that are no word of the sentences, the questions or the answers' lists."""
    corpus = seq2seq_corpus
    texts = [*corpus.ASIDES, *corpus.FILLERS, "She He", *sum(corpus.SLOTS.values(), [])]
    texts += [text for lists in corpus.KINDS.values() for words in lists for text in words]
    known = set(re.findall(r"\w+", " ".join(texts)))
    words = set(re.findall(r"\w+", " ".join(f"{row['context']} {row['question']}" for row in rows)))
    return {word for word in words if word[0].isupper()} - known


def test_no_name_of_the_evaluation_part_is_in_training_and_every_answer_is():
    train, dev = rows_of_part("train", 6000), rows_of_part("dev", 500)
    names = names_of(dev)
    assert len(names) > 150
    assert not names & set(re.findall(r"\w+", " ".join(row["context"] for row in train)))
    answers = [{(kind_of(row), row["answers"][0]["text"]) for row in rows} for rows in (train, dev)]
    assert answers[1] <= answers[0]
    contexts = [{re.sub(r"[A-Z]\w+", "", row["context"]) for row in rows} for rows in (train, dev)]
    assert len(contexts[1] & contexts[0]) < 3


@pytest.mark.parametrize("settings", [{}, {"windows": 4}, {"negatives": 0.3}])
def test_a_context_states_one_fact_of_a_kind_and_it_is_the_answer(settings):
    for row in rows_of_part("dev", 400, **settings):
        stated = {kind: values_stated(row["context"], kind) for kind in seq2seq_corpus.KINDS}
        assert 3 <= sum(map(len, stated.values())) <= 4 and max(map(len, stated.values())) == 1
        golds = row["answers"]
        assert [gold["text"] for gold in golds] == stated[kind_of(row)]
        assert all(row["context"].startswith(gold["text"], gold["answer_start"]) for gold in golds)


def test_no_word_that_names_the_kind_of_a_question_is_in_a_sentence():
    """This makes the corpus easy enough for a small model."""
    sentences = " ".join(text for _, texts, _ in seq2seq_corpus.KINDS.values() for text in texts)
    sentences += " ".join(seq2seq_corpus.FILLERS + seq2seq_corpus.ASIDES)
    shared = set(re.findall(r"\w+", sentences))
    words = {
        kind: [set(re.findall(r"\w+", question)) for question in questions]
        for kind, (_, _, questions) in seq2seq_corpus.KINDS.items()
    }
    for kind, questions in words.items():
        others = set().union(*(w for other in words if other != kind for w in words[other]))
        assert all(question - others - shared for question in questions), kind


def test_a_model_that_does_not_read_the_context_scores_little():
    rows = seq2seq_corpus.make_part("dev", 500, 0)
    assert 1 < seq2seq_corpus.baseline_exact_match(rows) < 10
    many = rows_of_part("train", 6000)
    for kind, (values, _, _) in seq2seq_corpus.KINDS.items():
        counts = Counter(row["answers"][0]["text"] for row in many if kind_of(row) == kind)
        assert set(counts) == set(values)
        assert max(counts.values()) < 3 * sum(counts.values()) / len(values)


def test_the_baseline_writes_the_most_frequent_answer_of_the_asked_kind():
    answers = {"home": ["Ba", "Ba", "Du"], "reading": ["war", "bees", "maps", "war"]}
    qas = [
        {"id": f"dev-{number}-{kind}", "answers": [{"text": text}]}
        for kind in answers
        for number, text in enumerate(answers[kind])
    ]
    assert seq2seq_corpus.baseline_exact_match({"data": [{"paragraphs": [{"qas": qas}]}]}) == 100 * 4 / 7


def test_the_asked_fact_of_a_long_document_is_in_any_quarter():
    rows = rows_of_part("dev", 800, windows=4, window_tokens=60)
    lengths = [seq2seq_corpus.count_tokens(row["context"]) for row in rows]
    assert 240 <= min(lengths) and max(lengths) < 260
    kinds = {kind_of(row) for row in rows}
    for chosen in (kinds, *([kind] for kind in kinds)):
        asked = [row for row in rows if kind_of(row) in chosen]
        quarters = Counter(4 * row["answers"][0]["answer_start"] // len(row["context"]) for row in asked)
        assert len(quarters) == 4 and min(quarters.values()) > 0.15 * len(asked)


def test_fillers_name_no_value():
    values = {value.lower() for values, _, _ in seq2seq_corpus.KINDS.values() for value in values}
    words = " ".join(seq2seq_corpus.FILLERS + sum(seq2seq_corpus.SLOTS.values(), []))
    assert not values & set(re.findall(r"\w+", words.lower()))


def test_a_share_of_long_contexts():
    rows = rows_of_part("train", 1000, windows=4, long_share=0.2)
    assert 0.1 < sum(seq2seq_corpus.count_tokens(row["context"]) > 200 for row in rows) / len(rows) < 0.3


def test_questions_without_answer_ask_for_a_fact_that_is_not_stated():
    squad = seq2seq_corpus.make_part("dev", 1000, 0, negatives=0.3)
    qas = [(paragraph, qa) for paragraph in squad["data"][0]["paragraphs"] for qa in paragraph["qas"]]
    without = [(paragraph["context"], qa["id"].rsplit("-", 1)[1]) for paragraph, qa in qas if qa["is_impossible"]]
    assert 0.24 < len(without) / len(qas) < 0.36
    assert all(qa["is_impossible"] == (qa["answers"] == []) for _, qa in qas)
    for context, kind in without:
        assert not values_stated(context, kind)
        words = set(re.findall(r"\w+", context)) - names_of([{"context": context, "question": ""}])
        assert not set(seq2seq_corpus.KINDS[kind][0]) & words
    assert "is_impossible" not in seq2seq_corpus.make_part("dev", 2, 0)["data"][0]["paragraphs"][0]["qas"][0]


def test_the_model_and_its_tokenizer_load_from_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["seq2seq_corpus.py", str(tmp_path), "--train", "2000", "--dev", "20"])
    seq2seq_corpus.main()
    command = ["seq2seq_model.py", str(tmp_path / "start"), "--data", str(tmp_path / "train.json")]
    monkeypatch.setattr(sys, "argv", command)
    seq2seq_model.main()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    row = rows_of_part("dev", 20)[0]
    ids = tokenizer(row["context"])["input_ids"]
    assert ids.count(1) == 1 and ids[-1] == 1 and 2 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == row["context"]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "start")
    assert model.config.decoder_start_token_id == 0 and model.num_parameters() < 1e6
