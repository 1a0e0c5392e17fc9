"""Features against the plain oracle: on every kind of tokenizer and on nasty text."""

import copy
import json
import logging

import oracle
import pytest
import torch
from helpers import SHARED_DATA, as_dicts, bytes_of, examples, peak_memory, real_questions, rows_of
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import make_rows, make_tokenizers
from tokenizers import Tokenizer, processors

import qa.padding
import qa.reading
import qa.windows
import utils_qa
from qa.fallback import OwnFeatures


KINDS = ("bert", "bert_left", "distilbert", "roberta", "albert", "xlnet", "llama", "llama_legacy", "qwen2")
SIZES = [(40, 8), (64, 16), (128, 0), (384, 128)]


def expected(tokenizer, rows: list[dict], max_seq_length: int, doc_stride: int, causal: bool = False) -> list[dict]:
    """Return the oracle's features of rows, with the id in place of the number."""
    columns = ([row[name] for row in rows] for name in ("question", "context", "answers"))
    options = {"stay_in_context": True, "causal": causal}
    features = oracle.features(tokenizer, *columns, max_seq_length, doc_stride, **options)
    features = [feature | {"example_id": rows[feature.pop("example_index")]["id"]} for feature in features]
    if utils_qa.has_labels(rows):
        return features
    return [
        {name: value for name, value in feature.items() if not name.endswith("_positions")} for feature in features
    ]


def short_enough(rows: list[dict], tokenizer, max_seq_length: int, doc_stride: int) -> list[dict]:
    """Return the rows that the tokenizer itself does not panic on."""
    most = max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - doc_stride - 2
    reader = oracle.with_private_names(tokenizer)
    lengths = [len(reader(row["question"].lstrip(), add_special_tokens=False)["input_ids"]) for row in rows]
    return [row for row, length in zip(rows, lengths) if length <= most]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_seq_length, doc_stride, causal", [*(size + (False,) for size in SIZES), (64, 16, True)])
def test_features_are_the_tokenizers_own(tokenizers, kind, max_seq_length, doc_stride, causal):
    """Those of a causal model in the order that it needs, and with a special token at the end."""
    tokenizer = tokenizers[kind]
    rows = short_enough(rows_of(*make_rows(120, seed=max_seq_length)), tokenizer, max_seq_length, doc_stride)
    features = utils_qa.prepare_features(rows, tokenizer, max_seq_length, doc_stride, causal=causal)
    assert isinstance(features, utils_qa.Features), "fell back to the tokenizer's own windows"
    assert as_dicts(features) == expected(tokenizer, rows, max_seq_length, doc_stride, causal)
    assert features.lengths().tolist() == [len(feature["input_ids"]) for feature in as_dicts(features)]


texts = st.text(st.sampled_from("ab é—京🙂\n\u00a0\u0301.,'$9"), min_size=1, max_size=80).filter(str.strip)


@examples(250)
@given(st.data(), st.sampled_from(KINDS), st.integers(0, 12))
def test_features_of_random_text(tokenizers, data, kind, doc_stride):
    context = data.draw(texts)
    begin = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(begin + 1, len(context)))
    answer = {"text": [context[begin:end]], "answer_start": [begin]}
    unanswered = {"text": [], "answer_start": []}
    rows = rows_of([data.draw(texts), data.draw(texts)], [context, context], [answer, unanswered])
    tokenizer = tokenizers[kind]
    rows = short_enough(rows, tokenizer, 48, doc_stride)
    if rows:
        assert as_dicts(utils_qa.prepare_features(rows, tokenizer, 48, doc_stride)) == expected(
            tokenizer, rows, 48, doc_stride
        )


@pytest.mark.parametrize("side, causal", [("right", False), ("left", False), ("left", True)])
def test_a_tokenizer_with_ways_of_its_own_builds_every_feature_itself(caplog, side, causal):
    """One that truncates on the left: its windows are cut from the end, which the index arithmetic does not describe."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {
        word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "where", "is", "it", "here"])
    }
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A:0 [SEP]:0 $B:0", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    options = {"truncation_side": "left", "padding_side": side, "eos_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **options, **special)
    rows = rows_of(
        ["where is it", "is [SEP] it"], ["it is here " * 9] * 2, [{"text": ["here"], "answer_start": [6]}] * 2
    )
    with caplog.at_level(logging.WARNING):
        features = utils_qa.prepare_features(rows, tokenizer, 16, 4, causal)
    assert isinstance(features, OwnFeatures) and "a way of its own" in caplog.text
    assert as_dicts(features) == expected(tokenizer, rows, 16, 4, causal)


def test_a_disagreement_on_the_first_rows_is_noticed(tokenizers, monkeypatch):
    tokenizer = tokenizers["bert"]
    rows = rows_of(*make_rows(30, seed=2))
    template = utils_qa.read_template(tokenizer)
    template.between = [*template.between, template.between[0]]
    monkeypatch.setattr(utils_qa, "read_template", lambda *_: template)
    features = utils_qa.prepare_features(rows, tokenizer, 384, 128)
    assert isinstance(features, OwnFeatures)
    assert as_dicts(features) == expected(tokenizer, rows, 384, 128)
    assert bytes_of(features) < 20 * features.lengths().sum()
    items = [features[index] for index in range(len(features))]
    collate = qa.padding.PaddingCollator(tokenizer)
    one_by_one, at_once = collate(items), collate(features.__getitems__(range(len(features))))
    assert all(torch.equal(one_by_one[name], at_once[name]) for name in one_by_one | at_once)


@pytest.mark.parametrize("kind, causal", [("bert", False), ("bert_left", False), ("llama", False), ("llama", True)])
@pytest.mark.parametrize("words", [100, 50])  # longer than a window; so long that windows could not move on
def test_long_questions_are_trimmed_and_counted(tokenizers, kind, causal, words, caplog):
    """Defect 9: a question that leaves no room for windows to move on panics inside the tokenizers library."""
    tokenizer = tokenizers[kind]
    context = "the river and the bridge of the old city " * 9
    rows = rows_of(
        ["water " * words, "where is the bridge"], [context] * 2, [{"text": ["bridge"], "answer_start": [18]}] * 2
    )
    with caplog.at_level(logging.WARNING):
        features = utils_qa.prepare_features(rows, tokenizer, 64, 16, causal)
    assert isinstance(features, utils_qa.Features)
    assert "1 questions are too long" in caplog.text
    dicts = as_dicts(features)
    assert max(len(feature["input_ids"]) for feature in dicts) <= 64
    for row in rows:  # every character of the context is in some window
        spans = {
            span
            for feature in dicts
            if feature["example_id"] == row["id"]
            for span in feature["offset_mapping"]
            if span
        }
        covered = {place for begin, end in spans for place in range(begin, end)}
        assert {place for place, char in enumerate(context) if char != " "} <= covered
    spec = qa.windows.WindowSpec(tokenizer, qa.windows.read_template(tokenizer, causal), 64, 16)
    assert list(utils_qa.own_features(rows, spec, labelled=True)) == dicts


@pytest.mark.parametrize("unknown", [None, {"text": ["elsewhere"], "answer_start": [-1]}])
def test_rows_whose_answers_are_unknown_have_no_labels(tokenizers, unknown):
    """Those that are known to have no answer have labels: the no-answer position."""
    tokenizer = tokenizers["bert"]
    rows = rows_of(["where", "when"], ["here and there"] * 2, [unknown] * 2)
    assert "start_positions" not in as_dicts(utils_qa.prepare_features(rows, tokenizer, 64, 16))[0]
    rows[1]["answers"] = {"text": [], "answer_start": []}
    features = utils_qa.prepare_features(rows, tokenizer, 64, 16)
    assert isinstance(features, utils_qa.Features), "the two ways to build features differ"
    assert features.labels.tolist() == [[qa.windows.IGNORED] * 2, [0, 0]]


@pytest.mark.parametrize("kind", ["bert", "bert_left", "distilbert", "xlnet"])
@pytest.mark.parametrize("length, multiple_of", [(64, 1), (None, 1), (None, 8)])
def test_collator_pads_as_the_tokenizer_does_on_the_right(tokenizers, kind, length, multiple_of):
    tokenizer = tokenizers[kind]
    features = utils_qa.prepare_features(rows_of(*make_rows(20, seed=4)), tokenizer, 64, 16)
    collate = qa.padding.PaddingCollator(tokenizer, length, multiple_of)
    batch, at_once = collate([features[index] for index in range(8)]), collate(features.__getitems__(range(8)))
    assert batch.keys() == at_once.keys() and all(torch.equal(batch[name], at_once[name]) for name in batch)
    assert all(tensor.dtype == torch.int64 for tensor in at_once.values())
    inputs = [{name: features.as_dict(index)[name] for name in tokenizer.model_input_names} for index in range(8)]
    padding = {"padding": "max_length", "max_length": length} if length else {"padding": True}
    padding["padding_side"] = "right"
    theirs = tokenizer.pad(
        inputs, return_tensors="pt", pad_to_multiple_of=multiple_of if multiple_of > 1 else None, **padding
    )
    for name, values in theirs.items():
        assert torch.equal(batch[name], values), name
    assert batch["lengths"].tolist() == [len(features[index]["input_ids"]) for index in range(8)]
    for name in ("start_positions", "end_positions"):  # a label names the same token before and after padding
        for index in range(8):
            before, after = features.as_dict(index), batch["input_ids"][index]
            assert after[batch[name][index]] == before["input_ids"][before[name]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_without_a_post_processor(tokenizers, side):
    """tokenizers 0.21 marks question and context in its first window only; a post-processor that adds nothing marks all."""
    bare, marking = (copy.deepcopy(tokenizers["qwen2"]) for _ in range(2))
    bare.padding_side = marking.padding_side = side
    settings = json.loads(bare.backend_tokenizer.to_str()) | {"post_processor": None}
    bare._tokenizer = Tokenizer.from_str(json.dumps(settings))
    marking.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    assert bare.backend_tokenizer.post_processor is None
    rows = short_enough(rows_of(*make_rows(60, seed=3)), marking, 64, 16)
    features = utils_qa.prepare_features(rows, bare, 64, 16)
    assert isinstance(features, utils_qa.Features) and as_dicts(features) == expected(marking, rows, 64, 16)
    assert len(features) > len(rows)


def test_more_texts_than_are_tokenized_at_once(tokenizers, monkeypatch):
    rows = rows_of(*make_rows(80, seed=3))
    features = as_dicts(utils_qa.prepare_features(rows, tokenizers["bert"], 64, 16))
    monkeypatch.setattr(qa.windows, "TEXTS_AT_ONCE", 7)
    assert as_dicts(utils_qa.prepare_features(rows, tokenizers["bert"], 64, 16)) == features


def test_the_check_of_features_keeps_one_row_of_the_tokenizers_own(tokenizers):
    """A window of the tokenizer takes 28 KB. A book has thousands of windows."""
    rows = [row | {"context": " ".join([row["context"]] * 20)} for row in rows_of(*make_rows(16, seed=3))]
    one, all_of_them = (
        peak_memory(lambda: utils_qa.prepare_features(part, tokenizers["bert"], 64, 16)) for part in (rows[:1], rows)
    )
    assert all_of_them < 4 * one


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no real SQuAD data in {SHARED_DATA}")
def test_features_of_real_questions():
    """SQuAD 2.0 on a WordPiece and a byte-level BPE tokenizer."""
    rows = real_questions()
    tokenizers = make_tokenizers([row["context"] for row in rows[::10]])
    for kind in ("bert", "roberta"):
        features = utils_qa.prepare_features(rows, tokenizers[kind], 384, 128)
        assert as_dicts(features) == expected(tokenizers[kind], rows, 384, 128)
