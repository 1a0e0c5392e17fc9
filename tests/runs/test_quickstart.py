"""The quickstart's parts: a corpus that leaks nothing, a small checkpoint, the report."""

import json
import re
import sys

import corpus
import report
from helpers import ROOT

from qa.reading import flatten_squad


def load_parts() -> tuple[dict, dict]:
    return corpus.make_part("train", 2000, seed=0), corpus.make_part("dev", 500, seed=0)


def texts_of(squad: dict) -> str:
    rows = flatten_squad(squad["data"])
    return "\n".join(f"{row['context']} {row['question']}" for row in rows)


def answers_of(squad: dict) -> set[str]:
    return {row["answers"][0]["text"] for row in flatten_squad(squad["data"])}


def template_words() -> set[str]:
    """Return the words of sentences, questions and name parts that both parts of the corpus share."""
    texts = [*corpus.ASIDES, *corpus.COMPANY_ENDS, *corpus.TITLE_NOUNS, "The Lake of"]
    for _, pronouns, kinds in corpus.TOPICS:
        texts += pronouns
        texts += [text for _, sentences, questions in kinds.values() for text in sentences + questions]
    return set(re.findall(r"\w+", " ".join(texts)))


def invented_names(squad: dict) -> set[str]:
    return {word for word in re.findall(r"\w+", texts_of(squad)) if word[0].isupper()} - template_words()


def test_nothing_of_the_evaluation_part_is_in_training():
    train, dev = load_parts()
    text = texts_of(train)
    assert not [answer for answer in answers_of(dev) if re.search(rf"(?<![\w,]){re.escape(answer)}(?!,?\w)", text)]
    names = invented_names(dev)
    assert len(names) > 300 and not names & set(re.findall(r"\w+", text))


def test_every_context_has_several_facts_of_the_asked_kind():
    _, dev = load_parts()
    for paragraph in dev["data"][0]["paragraphs"]:
        assert len(paragraph["qas"]) >= 3
        for qa in paragraph["qas"]:
            (answer,) = qa["answers"]
            assert paragraph["context"].startswith(answer["text"], answer["answer_start"])
    assert 20 < corpus.baseline_exact_match(dev) < 45


def test_the_checkpoint_is_small_and_knows_no_name_of_the_evaluation_part():
    folder = ROOT / "quickstart" / "checkpoint"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20
    pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    _, dev = load_parts()
    templates = {word.lower() for word in template_words()}  # an invented name may be a word: "Home"
    assert not {name.lower() for name in invented_names(dev)}.difference(templates) & set(pieces)


def test_the_report(tmp_path, capsys, monkeypatch):
    dev = corpus.make_part("dev", 12, seed=0)
    rows = flatten_squad(dev["data"])
    (tmp_path / "dev.json").write_text(json.dumps(dev))
    (tmp_path / "eval_results.json").write_text(json.dumps({"eval_exact_match": 91.83, "eval_f1": 92.6}))
    (tmp_path / "eval_predictions.json").write_text(json.dumps({row["id"]: "seven" for row in rows}))
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path), str(tmp_path / "dev.json")])
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert "Predicted: seven" in lines and f"Gold:      {rows[0]['answers'][0]['text']}" in lines
    assert lines[-3:-1] == ["EM 91.8", "F1 92.6"]
    assert re.fullmatch(r"EM \d\d\.\d of a baseline that ignores the entity", lines[-1])


def test_pretraining_runs_and_its_documents_hold_their_answers():
    import random

    import pretrain

    tokenizer = pretrain.train_tokenizer()
    vocabulary = tokenizer.get_vocab()
    pieces = (
        [n for p, n in vocabulary.items() if p.isalnum()],
        [n for p, n in vocabulary.items() if p.startswith("##")],
    )
    rng = random.Random(0)
    for _ in range(200):
        document = pretrain.make_document(rng, pieces, (2, 3, vocabulary["."]), 4)
        assert 0 < document["start"] <= document["end"] < len(document["ids"]) <= 384
        assert len(document["ids"]) == len(document["types"]) == len(document["about"])
        assert document["about"][document["start"]] == 1
    pretrain.pretrain(pretrain.make_model(tokenizer), tokenizer, steps=2, seed=0)
