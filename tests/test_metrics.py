"""EM and F1 against the plain evaluators of the oracle, through the metric object that the scripts use."""

import math

import numpy as np
import oracle
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

import qa.metrics
from qa.answers import decide


WORDS = "the a an The A. river Rivers river's 42 4,2 é–a the–end “the” of\tthe —  ' - $5 €5 a€an \x00 京都 x_y".split(
    " "
)
answers = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)


def predictions_of(texts: dict[str, str], probabilities: dict[str, float] | None = None) -> list[dict]:
    extra = (
        {}
        if probabilities is None
        else {name: {"no_answer_probability": value} for name, value in probabilities.items()}
    )
    return [{"id": name, "prediction_text": text} | extra.get(name, {}) for name, text in texts.items()]


def references_of(golds: dict[str, list[str]]) -> list[dict]:
    return [
        {"id": name, "answers": {"text": texts, "answer_start": [0] * len(texts)}} for name, texts in golds.items()
    ]


@examples(250)
@given(st.lists(st.tuples(answers, st.lists(answers, min_size=1, max_size=4)), min_size=1, max_size=12))
def test_version_1_equals_the_official_evaluator(cases):
    texts = {str(number): text for number, (text, _) in enumerate(cases)}
    golds = {str(number): list(gold) for number, (_, gold) in enumerate(cases)}
    scores = qa.metrics.load_metric().compute(predictions=predictions_of(texts), references=references_of(golds))
    assert scores == pytest.approx(oracle.squad_v1(texts, golds), abs=1e-9)


@examples(250)
@given(
    st.lists(st.tuples(answers, st.lists(answers, max_size=4), st.integers(0, 5)), min_size=1, max_size=12),
    st.sampled_from([1.0, 0.5, 0.2]),
)
def test_version_2_equals_the_official_evaluator(cases, threshold):
    texts = {str(number): text for number, (text, _, _) in enumerate(cases)}
    golds = {str(number): list(gold) for number, (_, gold, _) in enumerate(cases)}
    probabilities = {str(number): tenths / 5 for number, (_, _, tenths) in enumerate(cases)}
    scores = qa.metrics.load_metric(version_2_with_negative=True).compute(
        predictions=predictions_of(texts, probabilities),
        references=references_of(golds),
        no_answer_threshold=threshold,
    )
    expected = oracle.squad_v2(texts, golds, probabilities, threshold)
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-9)


ODDS = [
    -800.0,
    -40.0,
    -1.0,
    0.0,
    1.0,
    36.0,
    36.1,
    36.9,
    38.0,
    45.0,
    1e4,
]  # the sigmoids of those from 37 up are all 1.0


@examples(250)
@given(
    st.lists(
        st.tuples(
            answers.filter(qa.metrics.normalize),
            st.lists(answers.filter(qa.metrics.normalize), max_size=3),
            st.sampled_from(ODDS) | st.floats(-50, 50),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([*ODDS, 40.0]),
)
def test_scores_of_null_odds(cases, threshold):
    """The scores are those of the files' answers, and the best threshold does what it promises, as probability and flag."""
    best_texts = {str(number): text for number, (text, _, _) in enumerate(cases)}
    golds = {str(number): list(gold) for number, (_, gold, _) in enumerate(cases)}
    odds = {str(number): value for number, (_, _, value) in enumerate(cases)}
    texts = decide(best_texts, odds, threshold)
    scores = qa.metrics.squad_v2_scores_of_odds(texts, golds, best_texts, odds)
    official = oracle.squad_v2(texts, golds, dict.fromkeys(texts, 0.0))
    assert [name for name in scores if "diff_threshold" not in name] == list(official)
    assert {name: scores[name] for name in official if "best" not in name} == pytest.approx(
        {name: value for name, value in official.items() if "best" not in name}
    )
    probabilities = dict(zip(odds, qa.metrics.sigmoid(np.array(list(odds.values()))).tolist()))
    assert probabilities == pytest.approx(
        {name: 1 / (1 + math.exp(-max(value, -700))) for name, value in odds.items()}
    )
    for name, score in (("exact", oracle.exact_match), ("f1", oracle.f1_v2)):
        at = scores[f"best_{name}_thresh"]
        reached = {
            threshold: oracle.score_with_threshold(best_texts, golds, probabilities, threshold, score)
            for threshold in (0.0, at, *probabilities.values())
        }
        assert scores[f"best_{name}"] == pytest.approx(max(reached.values())) == pytest.approx(reached[at])
        flag = scores[f"best_{name}_null_score_diff_threshold"]
        assert {key for key in odds if odds[key] > flag} == {key for key in odds if probabilities[key] > at}


@pytest.mark.parametrize(
    "text", ["the–a end", "“The” a", "a€an", "x_y's A.", "the\x1cend", "ⅻ the½", "", "a\nthe b\n", "ΟΔΟΣ", "\ud800 x"]
)
def test_normalization(text):
    assert qa.metrics.normalize(text) == oracle.normalize(text)
    assert qa.metrics.normalize_all([text, "the other"]) == {text: oracle.normalize(text), "the other": "other"}


def test_added_one_by_one_it_is_an_evaluate_metric():
    """`add` and a bare `compute` go by way of evaluate's own Arrow files."""
    metric = qa.metrics.load_metric(version_2_with_negative=True)
    texts, golds, probabilities = {"a": "river", "b": "sea"}, {"a": ["the river"], "b": []}, {"a": 0.1, "b": 0.9}
    for prediction, reference in zip(predictions_of(texts, probabilities), references_of(golds)):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == pytest.approx(oracle.squad_v2(texts, golds, probabilities))


def test_version_1_refuses_a_question_without_answer():
    with pytest.raises(ValueError, match="'a' has no gold answer"):
        qa.metrics.squad_scores({"a": "x"}, {"a": []})
