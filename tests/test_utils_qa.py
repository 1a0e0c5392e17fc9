"""Features and answers against the plain oracle: on every kind of tokenizer, on nasty text and on random logits."""

import copy
import json
import logging
import weakref

import datasets
import numpy as np
import oracle
import pytest
import torch
from conftest import SHARED_DATA, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import make_rows, make_tokenizers
from tokenizers import Tokenizer, processors

import qa.answers
import qa.data
import qa.padding
import qa.reading
import qa.windows
import utils_qa


KINDS = ("bert", "bert_left", "distilbert", "roberta", "albert", "xlnet", "llama", "llama_legacy", "qwen2")
SIZES = [(40, 8), (64, 16), (128, 0), (384, 128)]


def expected(tokenizer, rows: list[dict], max_seq_length: int, doc_stride: int, causal: bool = False) -> list[dict]:
    """The oracle's features of rows, with the id in place of the number."""
    columns = ([row[name] for row in rows] for name in ("question", "context", "answers"))
    options = {"stay_in_context": True, "causal": causal}
    features = oracle.features(tokenizer, *columns, max_seq_length, doc_stride, **options)
    features = [feature | {"example_id": rows[feature.pop("example_index")]["id"]} for feature in features]
    if utils_qa.has_labels(rows):
        return features
    return [
        {name: value for name, value in feature.items() if not name.endswith("_positions")} for feature in features
    ]


def as_dicts(features) -> list[dict]:
    return features if isinstance(features, list) else [features.as_dict(index) for index in range(len(features))]


def short_enough(rows: list[dict], tokenizer, max_seq_length: int, doc_stride: int) -> list[dict]:
    """The rows that the tokenizer itself does not panic on."""
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


@settings(max_examples=1000, deadline=None)
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
    assert isinstance(features, list) and "a way of its own" in caplog.text
    assert features == expected(tokenizer, rows, 16, 4, causal)


def test_a_disagreement_on_the_first_rows_is_noticed(tokenizers, monkeypatch):
    tokenizer = tokenizers["bert"]
    rows = rows_of(*make_rows(30, seed=2))
    template = utils_qa.read_template(tokenizer)
    template.between = [*template.between, template.between[0]]
    monkeypatch.setattr(utils_qa, "read_template", lambda *_: template)
    features = utils_qa.prepare_features(rows, tokenizer, 384, 128)
    assert isinstance(features, list)
    assert features == expected(tokenizer, rows, 384, 128)


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
    for row in rows:  # every character of the context stands in some window
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
    assert utils_qa.own_features(rows, spec, labelled=True) == dicts


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
    batch = qa.padding.PaddingCollator(tokenizer, length, multiple_of)([features[index] for index in range(8)])
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


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_answers(tmp_path_factory, rows, features, listed, logits, **options):
    """Same return value and same bytes as the oracle, from Features, from dicts and from a datasets.Dataset."""
    folder = tmp_path_factory.mktemp("oracle")
    texts, _, _ = oracle.write_answers(rows, listed, logits, output_dir=folder, prefix="eval", **options)
    for form in (features, listed):
        mine = tmp_path_factory.mktemp("answers")
        assert (
            utils_qa.postprocess_qa_predictions(rows, form, logits, output_dir=str(mine), prefix="eval", **options)
            == texts
        )
        assert files_of(mine) == files_of(folder)


def logits_of(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Logits that a model may put out: plain, rounded to bf16, full of ties, of zeros of both signs, flat."""
    values = rng.normal(scale=3, size=shape).astype(np.float32)
    if kind == "bf16":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if kind == "integers":
        return np.round(values)
    if kind == "zeros":
        return np.where(values > 0, np.float32(0.0), np.float32(-0.0))
    if kind == "questions":  # the best positions lie outside the context: few or no spans are left
        return values + np.where(np.arange(shape[1]) < 10, 30, 0).astype(np.float32)
    return values.astype({"float64": np.float64, "float16": np.float16}.get(kind, np.float32))


LOGITS = ("normal", "bf16", "integers", "zeros", "questions", "float64", "float16")


@pytest.fixture(scope="module")
def windows(tokenizers):
    rows = rows_of(*make_rows(80, seed=3))
    features = utils_qa.prepare_features(rows, tokenizers["bert"], 64, 16)
    return rows, features, as_dicts(features)


@pytest.mark.parametrize("version_2_with_negative", [False, True])
@pytest.mark.parametrize("kind", LOGITS)
def test_answers_and_their_files_equal_the_oracles(windows, tmp_path_factory, kind, version_2_with_negative):
    rows, features, listed = windows
    rng = np.random.default_rng(LOGITS.index(kind))
    logits = tuple(logits_of(kind, rng, (len(features), 64)) for _ in range(2))
    for n_best_size, max_answer_length, threshold in ((20, 30, 0.0), (1, 30, 0.5), (5, 3, -1.0), (100, 1, 0.1)):
        options = {"n_best_size": n_best_size, "max_answer_length": max_answer_length}
        options |= {"null_score_diff_threshold": threshold, "version_2_with_negative": version_2_with_negative}
        assert_same_answers(tmp_path_factory, rows, features, listed, logits, **options)


@settings(max_examples=2000, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.sampled_from(LOGITS),
    st.booleans(),
    st.integers(1, 25),
    st.integers(1, 30),
    st.floats(-5, 5),
)
def test_answers_of_random_logits(windows, seed, count, kind, negative, n_best_size, max_answer_length, threshold):
    rows, features, listed = windows
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(rows))[:count]
    rows = [rows[index] for index in chosen]
    ids = {row["id"] for row in rows}
    listed = [listed[index] for index in rng.permutation(len(listed)) if listed[index]["example_id"] in ids]
    if rng.random() < 0.5:
        listed = [with_max_context(feature, rng) for feature in listed]
    logits = tuple(logits_of(kind, rng, (len(listed), 64)) for _ in range(2))
    options = (negative, n_best_size, max_answer_length, threshold)
    texts, nbest, null_odds = oracle.answers(rows, listed, logits, *options)
    found = all_answers(rows, listed, logits, *options)
    assert (found.texts, nbest_of(found), found.null_odds) == (texts, nbest, null_odds)
    assert [list(row) for entry in nbest_of(found).values() for row in entry] == [
        list(row) for entry in nbest.values() for row in entry
    ]


def all_answers(*args) -> qa.answers.Answers:
    parts = [vars(part) for part in utils_qa.find_answers(*args)]
    return qa.answers.Answers(
        **{name: {key: part[name][key] for part in parts for key in part[name]} for name in parts[0]}
    )


def nbest_of(answers: qa.answers.Answers) -> dict[str, list[dict]]:
    return {name: json.loads(rows) for name, rows in answers.nbest.items()}


def with_max_context(feature: dict, rng: np.random.Generator) -> dict:
    allowed = rng.random(len(feature["input_ids"])) < 0.7
    return feature | {"token_is_max_context": {str(place): bool(flag) for place, flag in enumerate(allowed)}}


def test_answers_of_datasets(windows, tmp_path_factory):
    """The reference's callers pass datasets.Dataset objects."""
    rows, _, listed = windows
    logits = tuple(np.random.default_rng(seed).normal(size=(len(listed), 64)).astype(np.float32) for seed in (0, 1))
    features = datasets.Dataset.from_list(
        [{name: feature[name] for name in ("example_id", "offset_mapping")} for feature in listed]
    )
    plain = [{name: feature[name] for name in ("example_id", "offset_mapping")} for feature in listed]
    texts, _, _ = oracle.answers(rows, plain, logits, True)
    found = utils_qa.postprocess_qa_predictions(datasets.Dataset.from_list(rows), features, logits, True)
    assert found == texts


def test_more_examples_than_are_taken_at_once(windows, monkeypatch):
    rows, features, listed = windows
    monkeypatch.setattr(qa.answers, "EXAMPLES_AT_ONCE", 7)
    logits = tuple(logits_of("integers", np.random.default_rng(seed), (len(features), 64)) for seed in (0, 1))
    found = all_answers(rows, features, logits, True)
    assert (found.texts, nbest_of(found), found.null_odds) == oracle.answers(rows, listed, logits, True)


def test_more_pairs_than_are_taken_at_once(windows, monkeypatch):
    rows, features, listed = windows
    monkeypatch.setattr(qa.answers, "PAIRS_AT_ONCE", 2000)  # of five windows
    logits = tuple(logits_of("integers", np.random.default_rng(seed), (len(features), 64)) for seed in (0, 1))
    found = all_answers(rows, features, logits, True)
    assert (found.texts, nbest_of(found), found.null_odds) == oracle.answers(rows, listed, logits, True)


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 9))
def test_what_is_answered_at_once_is_bounded(windows_of_each, most):
    bounds = np.cumsum([0, *windows_of_each])
    parts = list(qa.answers.cuts(bounds, most))
    assert [index for begin, end in parts for index in range(begin, end)] == list(range(len(windows_of_each)))
    assert all(bounds[end] - bounds[begin] <= most or end == begin + 1 for begin, end in parts)
    # and no part could take the next example
    assert all(bounds[end + 1] - bounds[begin] > most for begin, end in parts[:-1])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_without_a_post_processor(tokenizers, side):
    """tokenizers 0.21 says of its first window only what is question and what context; the same one that adds nothing tells."""
    bare, telling = (copy.deepcopy(tokenizers["qwen2"]) for _ in range(2))
    bare.padding_side = telling.padding_side = side
    settings = json.loads(bare.backend_tokenizer.to_str()) | {"post_processor": None}
    bare._tokenizer = Tokenizer.from_str(json.dumps(settings))
    telling.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    assert bare.backend_tokenizer.post_processor is None
    rows = short_enough(rows_of(*make_rows(60, seed=3)), telling, 64, 16)
    features = utils_qa.prepare_features(rows, bare, 64, 16)
    assert isinstance(features, utils_qa.Features) and as_dicts(features) == expected(telling, rows, 64, 16)
    assert len(features) > len(rows)


def test_more_texts_than_are_tokenized_at_once(windows, tokenizers, monkeypatch):
    rows, _, listed = windows
    monkeypatch.setattr(qa.windows, "TEXTS_AT_ONCE", 7)
    assert as_dicts(utils_qa.prepare_features(rows, tokenizers["bert"], 64, 16)) == listed


def test_written_answers_are_not_kept(tmp_path):
    """Of 200,000 questions the n-best rows alone take 700 MB."""
    made = []

    def parts():
        for number in range(5):
            assert sum(part() is not None for part in made) <= 1  # the one before
            part = qa.answers.Answers({f"q{number}": "text"}, {f"q{number}": "[]"}, {}, {f"q{number}": "text"})
            made.append(weakref.ref(part))
            yield part
            del part

    answers = utils_qa.write_answers(parts(), str(tmp_path))
    assert answers.texts == answers.best_texts == {f"q{number}": "text" for number in range(5)} and not answers.nbest
    assert json.loads((tmp_path / "nbest_predictions.json").read_text()) == {f"q{number}": [] for number in range(5)}


def test_the_null_score_is_read_where_the_labels_say_no_answer(tokenizers):
    """Defect 5: the reference reads position 0; XLNet's CLS stands last."""
    context = "the bridge is in the city"
    rows = rows_of(["where is it"], [context], [{"text": [], "answer_start": []}])
    features = utils_qa.prepare_features(rows, tokenizers["xlnet"], 64, 16)
    length = len(features[0]["input_ids"])
    logits = np.zeros((1, 64), dtype=np.float32)
    logits[0, length - 1] = 5
    assert features.cls_index[0] == length - 1
    found = all_answers(rows, features, (logits, logits), True)
    assert found.texts == {"q0": ""} and found.null_odds["q0"] == 10.0


@pytest.mark.parametrize("kind", ["normal", "integers"])
def test_padding_is_never_among_the_best_positions(kind):
    """Defect 20: whatever the model says of it, and however much of it there is."""
    rng = np.random.default_rng(0)
    logits, lengths = logits_of(kind, rng, (50, 64)), rng.integers(3, 64, 50)
    where = np.arange(64) >= lengths[:, None]
    cls_index, results = np.zeros(50, dtype=int), []
    for padding in (100, -100, np.nan):
        padded = np.pad(np.where(where, padding, logits), ((0, 0), (0, 64)), constant_values=padding)
        for sides in ((padded[:, :64],) * 2, (padded,) * 2):
            results.append(qa.answers.best_positions(sides, cls_index, 20, lengths).packed())
    assert all(np.array_equal(result, results[0]) for result in results)
    best = qa.answers.Candidates.unpacked(results[0])
    for row, length in enumerate(lengths):
        found = best.starts[row][best.starts[row] >= 0]
        assert len(found) == min(20, length) and found.max() < length and (best.starts[row][length:] == -1).all()
        assert np.array_equal(best.start_logits[row, : len(found)], np.sort(logits[row, :length])[::-1][:20])


def test_not_a_number_does_not_stop_the_run(windows):
    rows, features, _ = windows
    logits = np.full((len(features), 64), np.nan, dtype=np.float32)
    found = all_answers(rows, features, (logits, logits), True)
    assert len(found.texts) == len(rows)


def test_what_does_not_fit_together_is_refused(windows):
    rows, features, listed = windows
    logits = np.zeros((len(features), 64), dtype=np.float32)
    with pytest.raises(ValueError, match="two elements"):
        utils_qa.postprocess_qa_predictions(rows, features, (logits,))
    with pytest.raises(ValueError, match="predictions and"):
        utils_qa.postprocess_qa_predictions(rows, features, (logits[1:], logits[1:]))
    extra = [*rows, rows[0] | {"id": "lonely"}]
    with pytest.raises(ValueError, match="'lonely' has no feature"):
        utils_qa.postprocess_qa_predictions(extra, listed, (logits, logits), True)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no real SQuAD data in {SHARED_DATA}")
def test_real_questions(tmp_path_factory):
    """Features and answer files of real SQuAD 2.0 questions, on a WordPiece and a byte-level BPE tokenizer."""
    from qa.arguments import DataArguments

    path = SHARED_DATA / "squad-v2.0-dev.json.gz"
    data = DataArguments(version_2_with_negative=True)
    questions = qa.data.read_questions(qa.reading.read_file(path), path.name, data, "validation")
    rows = qa.data.checked_rows(questions, path.name, data, "validation")[0][::9]
    tokenizers = make_tokenizers([row["context"] for row in rows[::10]])
    for kind in ("bert", "roberta"):
        features = utils_qa.prepare_features(rows, tokenizers[kind], 384, 128)
        listed = expected(tokenizers[kind], rows, 384, 128)
        assert as_dicts(features) == listed
        logits = tuple(
            np.random.default_rng(seed).normal(size=(len(listed), 384)).astype(np.float32) for seed in (0, 1)
        )
        assert_same_answers(tmp_path_factory, rows, features, listed, logits, version_2_with_negative=True)
