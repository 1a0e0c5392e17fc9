"""Answers against the plain oracle, on random logits: texts, n-best rows, null odds and their files."""

import json

import datasets
import numpy as np
import oracle
import pytest
from helpers import SHARED_DATA, as_dicts, examples, load, nbest_of, peak_memory, real_questions, rows_of
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import make_rows, make_tokenizers

import qa.answers
import qa.candidates
import qa.spans
import utils_qa
from qa.answers import AnswerRules, find_answers


def files_of(folder) -> dict[str, str]:
    """Return the content of the files, with the order of keys and the digits of numbers, but not the indentation."""
    return {path.name: json.dumps(load(path)) for path in folder.iterdir()}


def assert_same_answers(tmp_path_factory, rows, features, listed, logits, **options):
    """Same return value and same files as the oracle, from Features, from dicts and from a datasets.Dataset."""
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


@examples(400)
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
    found = find_answers(rows, listed, logits, AnswerRules(*options))
    assert (found.texts, nbest_of(found), found.null_odds) == (texts, nbest, null_odds)
    assert [list(row) for entry in nbest_of(found).values() for row in entry] == [
        list(row) for entry in nbest.values() for row in entry
    ]


def with_max_context(feature: dict, rng: np.random.Generator) -> dict:
    allowed = rng.random(len(feature["input_ids"])) < 0.7
    return feature | {"token_is_max_context": {str(place): bool(flag) for place, flag in enumerate(allowed)}}


def test_answers_of_datasets(windows):
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
    found = find_answers(rows, features, logits, AnswerRules(True))
    assert (found.texts, nbest_of(found), found.null_odds) == oracle.answers(rows, listed, logits, True)


def test_more_pairs_than_are_taken_at_once(windows, monkeypatch):
    rows, features, listed = windows
    monkeypatch.setattr(qa.answers, "PAIRS_AT_ONCE", 2000)  # of five windows
    logits = tuple(logits_of("integers", np.random.default_rng(seed), (len(features), 64)) for seed in (0, 1))
    found = find_answers(rows, features, logits, AnswerRules(True))
    assert (found.texts, nbest_of(found), found.null_odds) == oracle.answers(rows, listed, logits, True)


def test_memory_grows_with_the_pairs_that_an_answer_may_have(windows):
    """Not with the square of --n_best_size, nor with the tokens of all features where the examples have another order."""
    rows, features, _ = windows
    logits = tuple(logits_of("normal", np.random.default_rng(seed), (len(features), 64)) for seed in (0, 1))
    bytes_of = {}
    for n_best_size, max_answer_length in ((64, 4), (16, 16)):
        chosen = np.arange(len(features))
        best = qa.answers.candidates_of(logits, features, chosen, n_best_size)
        bytes_of[n_best_size] = peak_memory(
            lambda: qa.spans.window_spans(features, chosen, best, n_best_size, max_answer_length)
        )
    assert bytes_of[64] < 3 * bytes_of[16]
    other = rows[::-1]
    same, others = (peak_memory(lambda: find_answers(part, features, logits, AnswerRules())) for part in (rows, other))
    assert others < 1.3 * same
    assert (
        find_answers(other, features, logits, AnswerRules()).texts
        == find_answers(rows, features, logits, AnswerRules()).texts
    )


@examples(100)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 9))
def test_the_number_of_features_answered_at_once_is_bounded(windows_of_each, most):
    bounds = np.cumsum([0, *windows_of_each])
    parts = list(qa.answers.cuts(bounds, most))
    assert [index for begin, end in parts for index in range(begin, end)] == list(range(len(windows_of_each)))
    assert all(bounds[end] - bounds[begin] <= most or end == begin + 1 for begin, end in parts)
    # and no part could take the next example
    assert all(bounds[end + 1] - bounds[begin] > most for begin, end in parts[:-1])


def test_the_null_score_is_read_where_the_labels_say_no_answer(tokenizers):
    """Defect 5: the reference reads position 0; XLNet's CLS is last."""
    context = "the bridge is in the city"
    rows = rows_of(["where is it"], [context], [{"text": [], "answer_start": []}])
    features = utils_qa.prepare_features(rows, tokenizers["xlnet"], 64, 16)
    length = len(features[0]["input_ids"])
    logits = np.zeros((1, 64), dtype=np.float32)
    logits[0, length - 1] = 5
    assert features.cls_index[0] == length - 1
    found = find_answers(rows, features, (logits, logits), AnswerRules(True))
    assert found.texts == {"q0": ""} and found.null_odds["q0"] == 10.0


def test_not_a_number_does_not_stop_the_run(windows):
    rows, features, _ = windows
    logits = np.full((len(features), 64), np.nan, dtype=np.float32)
    found = find_answers(rows, features, (logits, logits), AnswerRules(True))
    assert len(found.texts) == len(rows)


def test_mismatched_inputs_are_refused(windows):
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
def test_answers_to_real_questions(tmp_path_factory):
    """Of SQuAD 2.0."""
    rows = real_questions()
    tokenizer = make_tokenizers([row["context"] for row in rows[::10]])["bert"]
    features = utils_qa.prepare_features(rows, tokenizer, 384, 128)
    logits = tuple(np.random.default_rng(seed).normal(size=(len(features), 384)).astype(np.float32) for seed in (0, 1))
    assert_same_answers(tmp_path_factory, rows, features, as_dicts(features), logits, version_2_with_negative=True)


def test_an_answer_that_fails_leaves_no_file(windows, monkeypatch, tmp_path):
    """Nothing is computed while a file is written: there would be half a file, which is no JSON."""
    rows, features, _ = windows
    monkeypatch.setattr(qa.answers, "EXAMPLES_AT_ONCE", 7)
    logits = tuple(logits_of("normal", np.random.default_rng(seed), (len(features), 64)) for seed in (0, 1))
    broken = [*rows[:-1], rows[-1] | {"context": None}]
    with pytest.raises(TypeError):
        utils_qa.postprocess_qa_predictions(broken, features, logits, output_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("offsets", [[], [(3, 3)], [(3, 3), (3, 3)], [(3, 3), (4, 7)]])
def test_candidates_without_a_text(offsets, negative):
    """Byte-level tokenizers have tokens of no characters; the word "empty" takes the place of a text in some cases."""
    rows = [{"id": "a", "context": "red fox"}, {"id": "b", "context": "red fox"}]
    listed = [
        {"example_id": "a", "offset_mapping": [None, *offsets, None, None][:4]},
        {"example_id": "b", "offset_mapping": [None, (0, 3), (4, 7), None]},
    ]
    logits = tuple(np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32) for seed in (0, 1))
    texts, nbest, null_odds = oracle.answers(rows, listed, logits, negative)
    found = find_answers(rows, listed, logits, AnswerRules(negative))
    assert (found.texts, nbest_of(found), found.null_odds) == (texts, nbest, null_odds)


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
            results.append(qa.candidates.best_positions(sides, cls_index, 20, lengths).packed())
    assert all(np.array_equal(result, results[0]) for result in results)
    best = qa.candidates.Candidates.unpacked(results[0])
    for row, length in enumerate(lengths):
        found = best.starts[row][best.starts[row] >= 0]
        assert len(found) == min(20, length) and found.max() < length and (best.starts[row][length:] == -1).all()
        assert np.array_equal(best.start_logits[row, : len(found)], np.sort(logits[row, :length])[::-1][:20])
