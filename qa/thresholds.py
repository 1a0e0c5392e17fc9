"""Thresholds of the null odds for people: the best one, the line to paste, and a doubt about one like a probability."""

import math
from pathlib import Path

import numpy as np

from qa.files import read_object


FLAG = "--null_score_diff_threshold"
DIGITS = 4  # after the point
METRICS = ("f1", "exact")


def closest_to_0(odds: np.ndarray, totals: np.ndarray) -> float:
    """Return the threshold of the highest total; of several the one closest to 0, the default.

    Other questions have other odds: the lowest of several would refuse answers whose odds are a little higher than those
    of these questions.

    Args:
        odds: (n,) the distinct null odds of the questions, rising.
        totals: (n + 1,) of the thresholds below all odds, and of those from each of the odds up to the next.

    >>> closest_to_0(np.array([-3.0, 5.0]), np.array([1.0, 2.0, 1.0])), closest_to_0(np.array([2.0]), np.array([0.0, 1.0]))
    (0.0, 2.0)
    """
    best = totals > totals.max() - 1e-9
    lowest, highest = np.append(-np.inf, odds), np.append(np.nextafter(odds, -np.inf), np.inf)
    closest = np.clip(0.0, lowest, highest)[best]
    return float(closest[np.argmin(np.abs(closest))])


def threshold_of_most(odds: np.ndarray, gains: np.ndarray) -> float:
    """Return the threshold whose answers gain the most, see `closest_to_0`.

    A question whose odds are NaN is answered whatever the threshold.

    Args:
        odds: (questions,) the null odds.
        gains: (questions,) what answering each question adds to a score.
    """
    values, rank = np.unique(np.where(np.isnan(odds), -np.inf, odds), return_inverse=True)
    return closest_to_0(values, np.cumsum([0.0, *np.bincount(rank, weights=gains)]))


def to_paste(threshold: float, up: bool = True) -> str:
    """Return the flag with a threshold of four digits, for the same answers.

    It is rounded up, so that the question whose null odds are the threshold is still answered; or down, where
    `closest_to_0` has found it below 0: there it is just below the null odds of a question that is not to be answered.

    >>> to_paste(-1.23456), to_paste(-1.23456, up=False)
    ('--null_score_diff_threshold -1.2345', '--null_score_diff_threshold -1.2346')
    """
    rounded = (math.ceil if up else math.floor)(threshold * 10**DIGITS)
    return f"{FLAG} {rounded / 10**DIGITS:.{DIGITS}f}"


def doubt(threshold: float, folders: list[str]) -> str | None:
    """Return a line about a threshold above 0 that is 1 at most, as probabilities are; None for others.

    Such a threshold in logits is possible. There is no line if an evaluation in one of the folders has reported it.
    """
    if not 0 < threshold <= 1:
        return None
    instead = "give suggested_null_score_diff_threshold of the same results"
    if threshold < 1:
        instead = f"give its log odds: {to_paste(math.log(threshold / (1 - threshold)))}"
    line = f"{FLAG} {threshold:g} is in logits; if it is a probability, as best_f1_thresh is, {instead}"
    for path in [Path(folder) / "eval_results.json" for folder in folders]:
        entries = read_object(path).items()
        metrics = {name: value for name, value in entries if isinstance(value, float) and math.isfinite(value)}
        if is_same(threshold, metrics.get("eval_suggested_null_score_diff_threshold")):
            return None
        for metric in METRICS:
            logits = metrics.get(f"eval_best_{metric}_null_score_diff_threshold")
            if is_same(threshold, logits):
                return None
            if logits is not None and is_same(threshold, metrics.get(f"eval_best_{metric}_thresh")):
                line = f"{FLAG} {threshold:g} is the probability eval_best_{metric}_thresh of {path}; in logits give {to_paste(logits)}"
    return line


def is_same(given: float, reported: float | None) -> bool:
    """Return whether a given number is a reported one, to the digits that a person copies."""
    return reported is not None and abs(given - reported) <= 1.01 * 10**-DIGITS
