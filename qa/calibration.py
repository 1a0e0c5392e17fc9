"""Whether the probabilities of the answers say how often they are right, and the candidates whether one of them is."""

import math

import numpy as np

from qa.answer_table import AnswerTable, has_answer


BINS = 10  # of the probability
FEWEST = 50  # questions for curves and calibration: those of fewer are noise
TEMPERATURES = (0.05, 20.0)
TOP = (1, 2, 3, 5, 10, 20)


def reliability(probability: np.ndarray, right: np.ndarray) -> list[dict]:
    """Return for each range of the probability of an answer the number of questions, its mean, and the share of right ones.

    Ranges without a question are omitted.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], probability)
    return [
        {
            "from": float(edges[number]),
            "to": float(edges[number + 1]),
            "questions": int(inside.sum()),
            "probability": float(probability[inside].mean()),
            "right": float(right[inside].mean()),
        }
        for number in range(BINS)
        if (inside := place == number).any()
    ]


def calibration_error(bins: list[dict]) -> float:
    """Return the expected calibration error: the mean distance of the ranges' probability and share of right answers.

    Rule: Guo et al.: On Calibration of Modern Neural Networks. ICML 2017.
    """
    distances = [part["questions"] * abs(part["probability"] - part["right"]) for part in bins]
    return sum(distances) / sum(part["questions"] for part in bins)


def probability_at(scores: np.ndarray, rank: np.ndarray, temperature: float) -> np.ndarray:
    """Return (questions,) the probability of each answer among its candidates, their scores divided by a temperature.

    Args:
        scores: (questions, n) of the candidates, -inf where there are fewer.
        rank: (questions,) the place of the answer.
    """
    divided = (scores - scores.max(axis=1, keepdims=True)) / temperature
    exponentials = np.exp(divided)
    return exponentials[np.arange(len(rank)), rank] / exponentials.sum(axis=1)


def fit_temperature(scores: np.ndarray, rank: np.ndarray, right: np.ndarray) -> float | None:
    """Return the temperature by which the probabilities of the answers best say whether they are right.

    That is the one of the lowest mean of the log loss; None where it is outside of `TEMPERATURES`, as it is where all
    answers are right.
    """

    def loss(logarithm: float) -> float:
        probability = np.clip(probability_at(scores, rank, math.exp(logarithm)), 1e-7, 1 - 1e-7)
        return -float(np.log(np.where(right, probability, 1 - probability)).mean())

    lowest, highest = map(math.log, TEMPERATURES)
    grid = np.linspace(lowest, highest, 25)
    for _ in range(4):
        best = int(np.argmin([loss(logarithm) for logarithm in grid]))
        grid = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], 9)
    found = float(grid[len(grid) // 2])
    margin = 0.1
    return math.exp(found) if lowest + margin < found < highest - margin else None


def calibration(table: AnswerTable) -> dict | None:
    """Return how well the probabilities of the answers say whether they are right; None for a few questions.

    For a model that marks answers also with the best temperature, which is fitted to these same questions.
    """
    probability, right = table.numbers("probability"), table.numbers("exact_match") > 0
    known = ~np.isnan(probability)
    if known.sum() < FEWEST:
        return None
    bins = reliability(probability[known], right[known])
    found = {"bins": bins, "error": calibration_error(bins), "temperature": None}
    if has_scores(table):
        scores, rank = padded(table.choices.scores), np.array(table.choices.rank)
        found["temperature"] = fit_temperature(scores, rank, right)
    if found["temperature"] is not None:
        found["bins_at_temperature"] = reliability(probability_at(scores, rank, found["temperature"]), right)
        found["error_at_temperature"] = calibration_error(found["bins_at_temperature"])
    return found


def has_scores(table: AnswerTable) -> bool:
    """Return whether the candidates have scores among which a temperature can be found: those of a model that marks."""
    return len(table.choices.scores) == len(table)


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Return rows of numbers as one table, -inf where a row is shorter.

    >>> padded([np.array([2.0, 1.0]), np.array([3.0])]).tolist()
    [[2.0, 1.0], [3.0, -inf]]
    """
    lengths = np.array([len(row) for row in rows])
    table = np.full((len(rows), lengths.max()), -np.inf)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return table


def top_n(table: AnswerTable) -> list[dict]:
    """Return the share of the questions with an answer, in percent, for which one of the first N candidates is right.

    A model that writes has a candidate for each window; with no more than one there is nothing to return.
    """
    right = table.numbers("right_choice")[has_answer(table)]
    if not len(right):
        return []
    most = max(map(len, table.choices.scores)) if has_scores(table) else table.numbers("windows").max()
    return [{"n": n, "value": float(100 * (right <= n).mean())} for n in TOP if n <= most] if most > 1 else []
