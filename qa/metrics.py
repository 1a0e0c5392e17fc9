"""EM and F1 as the official SQuAD evaluators 1.1 and 2.0 compute them, and MLQA's for other languages.

    metric = load_metric(version_2_with_negative=True)  # an `evaluate` metric that needs no network
    metric.compute(predictions=[{"id", "prediction_text", "no_answer_probability"}], references=[{"id", "answers"}])

Rules: evaluate-v1.1.py and evaluate-v2.0.py of the SQuAD website (Rajpurkar et al., 2016; 2018).
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from qa import mlqa
from qa.answers import Answers
from qa.thresholds import threshold_of_most


ARTICLES = {"a", "an", "the"}
ARTICLE = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and articles, its words parted by single spaces."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def normalize_all(texts: Iterable[str]) -> dict[str, str]:
    """Return `normalize` of each text; plain ASCII texts are normalized together, as one string."""
    texts = list(dict.fromkeys(texts))
    plain = [text for text in texts if text.isascii() and text.isprintable()]
    words = "\n \0 ".join(plain).lower().translate(WITHOUT_PUNCTUATION).split()
    lines = " ".join([word for word in words if word not in ARTICLES]).split("\0") if plain else []
    normalized = dict(zip(plain, map(str.strip, lines)))
    return {text: normalized[text] if text in normalized else normalize(text) for text in texts}


def f1_of_words(predicted: list[str], gold: list[str]) -> float:
    """Return the harmonic mean of precision and recall of two bags of words with at least one in common."""
    common = sum(min(predicted.count(word), gold.count(word)) for word in set(predicted).intersection(gold))
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_answer(predicted: str, golds: list[str], version_2: bool) -> tuple[int, float]:
    """Return EM and F1 of a normalized answer, the best over the normalized gold answers."""
    if version_2:  # gold answers that normalize to nothing count only where all of them do
        golds = [gold for gold in golds if gold] or [""]
    if predicted in golds:  # two empty texts have no common word: in version 1.1 their F1 is 0
        return 1, float(bool(predicted) or version_2)
    words = predicted.split()
    distinct, best = set(words), 0.0
    for gold in dict.fromkeys(golds):
        gold_words = gold.split()
        if not distinct.isdisjoint(gold_words):
            best = max(best, f1_of_words(words, gold_words))
    return 0, best


def score_each(
    predictions: dict[str, str],
    golds: dict[str, list[str]],
    version_2: bool,
    normalize_all: Callable[[Iterable[str]], dict[str, str]] = normalize_all,
) -> dict[str, tuple[int, float]]:
    """Return (EM, F1) of every predicted id, the best over its gold answers."""
    unanswered = next((identity for identity, texts in golds.items() if not texts), None)
    if unanswered is not None and not version_2:
        raise ValueError(f"question {unanswered!r} has no gold answer; pass --version_2_with_negative for such data")
    asked = {identity: texts or [""] for identity, texts in golds.items() if identity in predictions}
    normalized = normalize_all(predictions[identity] for identity in asked)
    # A prediction that equals a gold answer is right without being normalized.
    open_cases = {
        identity: texts
        for identity, texts in asked.items()
        if predictions[identity] not in texts or not normalized[predictions[identity]]
    }
    normalized |= normalize_all(chain.from_iterable(open_cases.values()))
    scores = dict.fromkeys(asked, (1, 1.0))
    for identity, texts in open_cases.items():
        predicted = normalized[predictions[identity]]
        scores[identity] = score_answer(predicted, [normalized[text] for text in texts], version_2)
    return scores


def mean_scores(scores: list[tuple[float, float]], count: int) -> tuple[float, float]:
    """Return EM and F1 in percent, over `count` questions."""
    return 100.0 * sum(exact for exact, _ in scores) / count, 100.0 * sum(f1 for _, f1 in scores) / count


def score(answers: Answers, golds: dict[str, list[str]], negatives: bool, language: str = "off") -> dict[str, float]:
    """Return the scores of a run: those of SQuAD 1.1, with `negatives` of 2.0, and with a `language` also MLQA's."""
    if negatives:
        scores = squad_v2_scores_of_odds(answers.texts, golds, answers.best_texts, answers.null_odds)
    else:
        scores = squad_scores(answers.texts, golds)
    return scores if language == "off" else scores | mlqa_scores(answers.texts, golds, negatives, language)


def score_names(negatives: bool, language: str = "off") -> list[str]:
    """Return the names of a run's scores without counts and thresholds; for all of them higher is better."""
    answers = Answers({"a": "x", "b": ""}, {"a": "x", "b": "x"}, {"a": -1.0, "b": 1.0})
    names = score(
        answers, {"a": ["x"], "b": [] if negatives else ["x"]}, negatives, "en" if language == "auto" else language
    )
    return [name for name in names if not name.endswith(("total", "thresh", "threshold"))]


def squad_scores(predictions: dict[str, str], golds: dict[str, list[str]]) -> dict[str, float]:
    """Return `exact_match` and `f1` of SQuAD 1.1; a question without a prediction scores 0."""
    scores = score_each(predictions, golds, version_2=False)
    exact, f1 = mean_scores(list(scores.values()), len(golds))
    return {"exact_match": exact, "f1": f1}


def squad_v2_scores(
    predictions: dict[str, str], golds: dict[str, list[str]], probabilities: dict[str, float], threshold: float
) -> dict[str, float]:
    """Return the scores of SQuAD 2.0 as the official evaluator computes them, in its order of keys.

    A prediction whose no-answer probability exceeds `threshold` counts as empty. `best_*` are the scores of the best
    threshold, `best_*_thresh`. Questions of one probability are answered one by one there, which no threshold does.
    """
    raw = score_each(predictions, golds, version_2=True)
    names = [name for name in probabilities if name in raw]
    empty = {name: (float(not golds[name]),) * 2 for name in names if probabilities[name] > threshold}
    result = averages(raw | empty, golds)
    values = np.array([probabilities[name] for name in names])
    for metric, start, gains in gains_of_answering(names, predictions, raw, golds):
        best, at = best_threshold(start, gains, values, together=False)
        result |= {f"best_{metric}": 100.0 * best / len(raw), f"best_{metric}_thresh": at}
    return result


def squad_v2_scores_of_odds(
    texts: dict[str, str], golds: dict[str, list[str]], best_texts: dict[str, str], null_odds: dict[str, float]
) -> dict[str, float]:
    """Return the scores of SQuAD 2.0 of answers `texts`, and the best that another threshold on their null odds reaches.

    The keys are those of `squad_v2_scores`. The probability of no answer is the sigmoid of the null odds, 1.0 for all
    odds from 37 up; questions of one probability are answered together, so that `best_*_thresh` does reach `best_*`.
    `best_*_null_score_diff_threshold` is the same threshold in logits, as the flag takes it. It is the lowest of several.
    `suggested_null_score_diff_threshold` is the one of the best F1 that is closest to 0.
    """
    result = averages(score_each(texts, golds, version_2=True), golds)
    raw = score_each(best_texts, golds, version_2=True)
    names = list(raw)
    odds = np.array([null_odds[name] for name in names])
    probabilities = sigmoid(odds)
    for metric, start, gains in gains_of_answering(names, best_texts, raw, golds):
        best, at = best_threshold(start, gains, probabilities, together=True)
        answered = odds[probabilities <= at]
        logits = answered.max() if len(answered) else np.nextafter(odds.min(), -np.inf)
        result |= {f"best_{metric}": 100.0 * best / len(raw), f"best_{metric}_thresh": at}
        result[f"best_{metric}_null_score_diff_threshold"] = float(logits)
    result["suggested_null_score_diff_threshold"] = threshold_of_most(odds, gains)  # of F1, the last of the metrics
    return result


def mlqa_scores(
    predictions: dict[str, str], golds: dict[str, list[str]], version_2: bool, language: str
) -> dict[str, float]:
    """Return EM and F1 by the rules of MLQA for a language; with `version_2` questions may have no answer."""
    scores = mlqa_scores_of_each(predictions, golds, version_2, language)
    exact, f1 = mean_scores(list(scores.values()), len(golds))
    return {"mlqa_exact_match": exact, "mlqa_f1": f1}


def mlqa_scores_of_each(
    predictions: dict[str, str], golds: dict[str, list[str]], version_2: bool, language: str
) -> dict[str, tuple[int, float]]:
    """Return (EM, F1) of every predicted id by the rules of MLQA for a language."""

    def normalize_all(texts: Iterable[str]) -> dict[str, str]:
        return {text: mlqa.normalize(text, language) for text in set(texts)}

    return score_each(predictions, golds, version_2, normalize_all)


def averages(scores: dict[str, tuple[float, float]], golds: dict[str, list[str]]) -> dict[str, float]:
    """Return EM and F1 in percent of all questions, of those that have an answer and of those that have none."""
    result = {}
    for prefix, kinds in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        part = [scores[name] for name, texts in golds.items() if name in scores and bool(texts) in kinds]
        if part:
            exact, f1 = mean_scores(part, len(part))
            result |= {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(part)}
    return result


def gains_of_answering(names: list[str], predictions: dict, raw: dict, golds: dict) -> Iterator[tuple]:
    """Yield for EM and F1 the name, the total when no question is answered, and what answering each one adds to it."""
    answered = np.array([bool(golds[name]) for name in names])
    wrong = np.array([-float(bool(predictions[name])) for name in names])
    for index, metric in enumerate(("exact", "f1")):
        yield metric, (~answered).sum(), np.where(answered, [raw[name][index] for name in names], wrong)


def best_threshold(start: int, gains: np.ndarray, probabilities: np.ndarray, together: bool) -> tuple[float, float]:
    """Return the best total that a threshold on the no-answer probability reaches, and the lowest such threshold.

    A question is answered where its probability does not exceed the threshold.

    Args:
        start: the total when no question is answered.
        gains: (questions,) what answering each question adds.
        together: whether questions of one probability are answered together, as a threshold does, or one by one, as the
            official evaluator counts.

    >>> best_threshold(1, np.array([1, -1, 1]), np.array([0.2, 0.5, 0.5]), together=True)
    (2.0, 0.2)
    """
    order = np.argsort(probabilities, kind="stable")
    totals = np.cumsum([start, *gains[order]], dtype=np.float64)
    thresholds = np.concatenate([[0.0], probabilities[order]])
    if together:
        last_of_equals = np.append(np.diff(thresholds) > 0, True)
        totals, thresholds = totals[last_of_equals], thresholds[last_of_equals]
    best = totals.argmax()
    return float(totals[best]), float(thresholds[best])


def sigmoid(odds: np.ndarray) -> np.ndarray:
    """Return the probability of each of some odds in logits; that of odds below -700 is the same, or it would be 0."""
    return 1 / (1 + np.exp(-np.maximum(odds, -700.0)))


def load_metric(version_2_with_negative: bool = False):
    """Return the `evaluate.Metric` of SQuAD 1.1, or of 2.0 with negatives; it is on this disk already.

    `compute(predictions=[{"id", "prediction_text"}], references=[{"id", "answers"}])` returns `exact_match` and `f1`.
    With negatives each prediction has a `no_answer_probability` too, `compute` takes a `no_answer_threshold` (default
    1.0: predictions count as they are), and the result has the keys of the official 2.0 evaluator.
    """
    from qa.squad_metric import SquadMetric  # imports evaluate, which takes seconds

    return SquadMetric(config_name="squad_v2" if version_2_with_negative else "squad", keep_in_memory=True)
