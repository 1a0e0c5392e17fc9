"""EM and F1 as the official SQuAD evaluators 1.1 and 2.0 compute them, as `evaluate` metrics that need no network.

    metric = load_metric(version_2_with_negative=True)
    metric.compute(predictions=[{"id", "prediction_text", "no_answer_probability"}], references=[{"id", "answers"}])

Rules: evaluate-v1.1.py and evaluate-v2.0.py of the SQuAD website (Rajpurkar et al., 2016; 2018).
"""

import re
import string
from collections.abc import Iterable
from itertools import chain

import datasets
import evaluate


ARTICLES = {"a", "an", "the"}
ARTICLE = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, without articles, words parted by single spaces."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def normalize_all(texts: Iterable[str]) -> dict[str, str]:
    """`normalize` of each text; those of plain ASCII, where articles are whole words, all in one string."""
    texts = list(dict.fromkeys(texts))
    plain = [text for text in texts if text.isascii() and text.isprintable()]
    words = "\n \0 ".join(plain).lower().translate(WITHOUT_PUNCTUATION).split()
    lines = " ".join([word for word in words if word not in ARTICLES]).split("\0") if plain else []
    normalized = dict(zip(plain, map(str.strip, lines)))
    return {text: normalized[text] if text in normalized else normalize(text) for text in texts}


def f1_of_words(predicted: list[str], gold: list[str]) -> float:
    """The harmonic mean of precision and recall of two bags of words with at least one in common."""
    common = sum(min(predicted.count(word), gold.count(word)) for word in set(predicted).intersection(gold))
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_answer(predicted: str, golds: list[str], version_2: bool) -> tuple[int, float]:
    """EM and F1 of a normalized answer, the best over the normalized gold answers."""
    if version_2:  # golds that normalize to nothing do not count beside others
        golds = [gold for gold in golds if gold] or [""]
    if predicted in golds:
        return 1, float(bool(predicted) or version_2)  # two empty ones have no common word: in version 1.1 an F1 of 0
    words = predicted.split()
    distinct, best = set(words), 0.0
    for gold in dict.fromkeys(golds):
        gold_words = gold.split()
        if not distinct.isdisjoint(gold_words):
            best = max(best, f1_of_words(words, gold_words))
    return 0, best


def score_answers(
    predictions: dict[str, str], golds: dict[str, list[str]], version_2: bool
) -> dict[str, tuple[int, float]]:
    """(EM, F1) of every predicted id, the best over its gold answers."""
    unanswered = next((identity for identity, texts in golds.items() if not texts), None)
    if unanswered is not None and not version_2:
        raise ValueError(f"question {unanswered!r} has no gold answer; pass --version_2_with_negative for such data")
    asked = {identity: texts or [""] for identity, texts in golds.items() if identity in predictions}
    normalized = normalize_all(predictions[identity] for identity in asked)
    # A prediction that is one of the golds to the letter is right, and they need not be looked at.
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
    """EM and F1 in percent, over `count` questions."""
    return 100.0 * sum(exact for exact, _ in scores) / count, 100.0 * sum(f1 for _, f1 in scores) / count


def squad_scores(predictions: dict[str, str], golds: dict[str, list[str]]) -> dict[str, float]:
    """`exact_match` and `f1` of SQuAD 1.1; a question without a prediction scores 0."""
    scores = score_answers(predictions, golds, version_2=False)
    exact, f1 = mean_scores(list(scores.values()), len(golds))
    return {"exact_match": exact, "f1": f1}


def squad_v2_scores(
    predictions: dict[str, str], golds: dict[str, list[str]], probabilities: dict[str, float], threshold: float
) -> dict[str, float]:
    """The scores of SQuAD 2.0, in the official evaluator's order of keys.

    A prediction whose no-answer probability exceeds `threshold` counts as empty. `best_*` are what the best threshold
    would give, and `best_*_thresh` is that threshold.
    """
    raw = score_answers(predictions, golds, version_2=True)
    kept = {}
    for identity, score in raw.items():
        given_up = probabilities[identity] > threshold
        kept[identity] = (float(not golds[identity]),) * 2 if given_up else score
    exact, f1 = mean_scores(list(kept.values()), len(kept))
    result = {"exact": exact, "f1": f1, "total": len(kept)}
    for name, answered in (("HasAns", True), ("NoAns", False)):
        part = [kept[identity] for identity, texts in golds.items() if bool(texts) == answered]
        if part:
            exact, f1 = mean_scores(part, len(part))
            result |= {f"{name}_exact": exact, f"{name}_f1": f1, f"{name}_total": len(part)}
    for index, name in enumerate(("exact", "f1")):
        best, at = best_threshold(predictions, {key: score[index] for key, score in raw.items()}, golds, probabilities)
        result |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return result


def best_threshold(
    predictions: dict[str, str], scores: dict[str, float], golds: dict[str, list[str]], probabilities: dict[str, float]
) -> tuple[float, float]:
    """The best score in percent that a threshold on the no-answer probability reaches, and that threshold."""
    current = best = sum(not golds[identity] for identity in scores)
    at = 0.0
    for identity in sorted(probabilities, key=probabilities.get):
        if identity not in scores:
            continue
        if golds[identity]:
            current += scores[identity]
        else:
            current -= bool(predictions[identity])
        if current > best:
            best, at = current, probabilities[identity]
    return 100.0 * best / len(scores), at


class SquadMetric(evaluate.Metric):
    """EM and F1 of SQuAD 1.1 (configuration `squad`) or 2.0 (`squad_v2`); see `load_metric`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        prediction = {"id": text, "prediction_text": text}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = datasets.Value("float64")
        answers = datasets.features.Sequence({"text": text, "answer_start": datasets.Value("int32")})
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rajpurkar et al.: SQuAD: 100,000+ Questions for Machine Comprehension of Text. EMNLP 2016.",
            inputs_description="predictions: id, prediction_text, no_answer_probability (2.0); references: id, answers",
            features=datasets.Features({"predictions": prediction, "references": {"id": text, "answers": answers}}),
        )

    def compute(self, *, predictions=None, references=None, **options) -> dict[str, float]:
        """As `evaluate.Metric.compute`; what is given at once is scored as it is, not by way of an Arrow file."""
        if predictions is None or references is None:
            return super().compute(predictions=predictions, references=references, **options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, no_answer_threshold: float = 1.0) -> dict[str, float]:
        texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
        golds = {reference["id"]: list(reference["answers"]["text"]) for reference in references}
        if self.config_name == "squad":
            return squad_scores(texts, golds)
        probabilities = {prediction["id"]: prediction.get("no_answer_probability", 0.0) for prediction in predictions}
        return squad_v2_scores(texts, golds, probabilities, no_answer_threshold)


def load_metric(version_2_with_negative: bool = False) -> SquadMetric:
    """The metric of SQuAD 1.1, or of 2.0 with negatives; it is on this disk already.

    `compute(predictions=[{"id", "prediction_text"}], references=[{"id", "answers"}])` gives `exact_match` and `f1`.
    With negatives each prediction has a `no_answer_probability` too, `compute` takes a `no_answer_threshold` (default
    1.0: predictions count as they are), and the result has the keys of the official 2.0 evaluator.
    """
    return SquadMetric(config_name="squad_v2" if version_2_with_negative else "squad", keep_in_memory=True)
