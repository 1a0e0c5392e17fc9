"""Thresholds of the null odds for people: the line to paste, and a doubt about one that looks like a probability."""

import math
from pathlib import Path

from qa.files import read_object


FLAG = "--null_score_diff_threshold"
DIGITS = 4  # after the point
METRICS = ("f1", "exact")


def to_paste(threshold: float, answers: bool = True) -> str:
    """Return the flag with a threshold of four digits, for the same answers.

    It is rounded up, so that the question whose null odds are the threshold is still answered; down, where the threshold
    `answers` nothing.

    >>> to_paste(-1.23456), to_paste(-1.23456, answers=False)
    ('--null_score_diff_threshold -1.2345', '--null_score_diff_threshold -1.2346')
    """
    rounded = (math.ceil if answers else math.floor)(threshold * 10**DIGITS)
    return f"{FLAG} {rounded / 10**DIGITS:.{DIGITS}f}"


def best_thresholds(metrics: dict, prefix: str) -> list[tuple[str, float, float, float]]:
    """Return the metric, its best value in percent, and the threshold of that in logits and as a probability, of each metric.

    Args:
        metrics: of an evaluation; without negatives it has no thresholds.
    """
    names = [(metric, f"{prefix}_best_{metric}") for metric in METRICS]
    found = [
        (metric, metrics.get(name), metrics.get(f"{name}_null_score_diff_threshold"), metrics.get(f"{name}_thresh"))
        for metric, name in names
    ]
    return [entry for entry in found if all(isinstance(value, float) and math.isfinite(value) for value in entry[1:])]


def doubt(threshold: float, folders: list[str]) -> str | None:
    """Return a line about a threshold above 0 that is 1 at most, as probabilities are; None for others.

    Such a threshold in logits is possible. There is no line if an evaluation in one of the folders has reported it.
    """
    if not 0 < threshold <= 1:
        return None
    instead = "give best_f1_null_score_diff_threshold of the same results"
    if threshold < 1:
        instead = f"give its log odds: {to_paste(math.log(threshold / (1 - threshold)))}"
    line = f"{FLAG} {threshold:g} is in logits; if it is a probability, as best_f1_thresh is, {instead}"
    for path in [Path(folder) / "eval_results.json" for folder in folders]:
        for metric, _, logits, probability in best_thresholds(read_object(path), "eval"):
            if is_same(threshold, logits):
                return None
            if is_same(threshold, probability):
                line = f"{FLAG} {threshold:g} is the probability eval_best_{metric}_thresh of {path}; in logits give {to_paste(logits)}"
    return line


def is_same(given: float, reported: float) -> bool:
    """Return whether a given number is a reported one, to the digits that a person copies."""
    return abs(given - reported) <= 1.01 * 10**-DIGITS
