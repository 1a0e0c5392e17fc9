"""Curves: scores against the threshold on the null odds, precision and recall, and what a training has logged."""

import numpy as np

from qa.answer_table import AnswerTable, has_answer
from qa.metrics import sigmoid
from qa.thresholds import closest_to_0


POINTS = 200  # of a curve at most
LOGGED = {  # what the report shows of the log of a training, and how it names that
    "loss": "loss",
    "eval_loss": "loss of evaluations",
    "eval_exact_match": "EM",
    "eval_exact": "EM",
    "eval_f1": "F1",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
}


def threshold_curve(table: AnswerTable) -> dict[str, list[float]]:
    """Return EM and F1 in percent of all thresholds on the null odds, in logits; the first one answers nothing.

    A question is answered where its null odds do not exceed the threshold, as in `qa.answers.decide`.
    """
    odds, order = table.numbers("null_odds"), np.argsort(table.numbers("null_odds"), kind="stable")
    answered, refused = has_answer(table), [100.0 * (not text) for text in table.columns["best_text"]]
    thresholds, last = last_of_equals(odds[order])
    curves = {"threshold": [below(thresholds[0]), *thresholds.tolist()]}
    for name in ("exact_match", "f1"):
        gains = np.where(answered, table.numbers(f"best_{name}"), np.array(refused) - 100.0)
        totals = 100.0 * (~answered).sum() + np.concatenate([[0.0], np.cumsum(gains[order])[last]])
        curves[name] = (totals / len(table)).tolist()
    return curves


def chosen_and_best(curves: dict[str, list[float]], threshold: float) -> list[dict]:
    """Return points of the curve of thresholds, also as a probability: the chosen one, and the best one of EM and of F1.

    Of several best ones it is the one closest to 0.

    >>> curves = {"threshold": [-9.0, -1.0, 2.0], "exact_match": [50.0, 60.0, 60.0], "f1": [50.0, 60.0, 65.0]}
    >>> [point["threshold"] for point in chosen_and_best(curves, 0.5)]
    [0.5, 0.0, 2.0]
    """
    odds = np.array(curves["threshold"])
    exact, f1 = (closest_to_0(odds[1:], np.array(curves[name])) for name in ("exact_match", "f1"))
    points = []
    for name, at in {"chosen": threshold, "best EM": exact, "best F1": f1}.items():
        place = max(0, int(np.searchsorted(odds, at, side="right")) - 1)
        scores = {metric: curves[metric][place] for metric in ("exact_match", "f1")}
        points.append({"name": name, "threshold": at, **scores, "probability": float(sigmoid(at))})
    return points


def odds_histogram(table: AnswerTable) -> dict:
    """Return the shares in percent of the null odds of questions with and without an answer in each of 40 ranges.

    The lowest and the highest hundredth of the odds are beyond the ranges.
    """
    odds, answered = table.numbers("null_odds"), has_answer(table)
    low, high = np.quantile(odds, (0.01, 0.99))
    edges, shares = np.linspace(low, max(high, low + 1e-3), 41), {}
    for name, counted in (("with an answer", answered), ("without an answer", ~answered)):
        number = np.histogram(odds[counted], edges)[0]
        shares[name] = (100 * number / max(1, counted.sum())).tolist()
    return {"edges": edges.tolist(), **shares}


def precision_recall(table: AnswerTable, name: str) -> dict:
    """Return precision and recall in percent of answering only the questions of the lowest null odds.

    Rule: `make_precision_recall_eval` of evaluate-v2.0.py. Recall counts the questions with an answer, and precision
    those that are answered; of a partly right answer its F1 counts.

    Args:
        name: `exact_match` or `f1`.
    """
    odds, answered = table.numbers("null_odds"), has_answer(table)
    order = np.argsort(odds, kind="stable")
    right = np.cumsum(np.where(answered, table.numbers(f"best_{name}") / 100, 0.0)[order])
    _, last = last_of_equals(odds[order])
    precision = np.concatenate([[1.0], right[last] / (last + 1)])
    recall = np.concatenate([[0.0], right[last] / max(1, answered.sum())])
    return {
        "precision": (100 * precision).tolist(),
        "recall": (100 * recall).tolist(),
        "average_precision": float(100 * np.sum(precision[1:] * np.diff(recall))),
    }


def last_of_equals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct ones of sorted values, and the place of the last of each.

    >>> [part.tolist() for part in last_of_equals(np.array([1.0, 2.0, 2.0, 5.0]))]
    [[1.0, 2.0, 5.0], [0, 2, 3]]
    """
    last = np.flatnonzero(np.append(np.diff(values) > 0, True))
    return values[last], last


def below(threshold: float) -> float:
    return float(np.nextafter(threshold, -np.inf))


def training_curves(history: list[dict]) -> dict[str, list[list[float]]]:
    """Return what a training has logged, by name: [step, value] of each entry."""
    curves = {
        name: [[entry["step"], entry[name]] for entry in history if entry.get(name) is not None and "step" in entry]
        for name in LOGGED
    }
    return {name: thinned(curve) for name, curve in curves.items() if curve}


def thinned(points: list) -> list:
    """Return at most `POINTS` of the points of a curve, the first and the last among them."""
    places = np.linspace(0, len(points) - 1, min(POINTS, len(points))).round().astype(int)
    return [points[place] for place in places]


def thinned_together(curve: dict) -> dict:
    """Return the same points of all lists of a curve, as `thinned` chooses them, and its other entries."""
    return {name: thinned(value) if isinstance(value, list) else value for name, value in curve.items()}
