"""Means and their intervals: percentile bootstraps over questions.

Rule: Efron and Tibshirani: An Introduction to the Bootstrap, 1993.
"""

import numpy as np


RESAMPLES = 1000
RESAMPLES_AT_ONCE = 50  # bounds memory
INTERVAL = (0.025, 0.975)  # 95 % of the resamples are within
FEWEST_FOR_INTERVAL = 10  # questions; one alone would have an interval of no width


def mean_intervals(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return (2, n) the lower and the upper end of the interval of the mean of each column.

    Args:
        values: (questions, n).
        counted: (questions, n) whether a question counts in the mean of a column.
    """
    table = np.concatenate([np.where(counted, values, 0.0), counted], axis=1)
    totals, counts = np.split(resampled_sums(table), 2, axis=1)
    means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    return np.nanquantile(means, INTERVAL, axis=0)


def resampled_sums(table: np.ndarray) -> np.ndarray:
    """Return (`RESAMPLES`, n) the sums of the columns of a table, (questions, n), over as many questions drawn at random."""
    draw, questions, sums = np.random.default_rng(0), len(table), []
    table = table.astype(np.float32)
    for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        drawn = (draw.integers(questions, size=questions) for _ in range(RESAMPLES_AT_ONCE))
        often = np.stack([np.bincount(places, minlength=questions) for places in drawn])
        sums.append(often.astype(np.float32) @ table)
    return np.concatenate(sums).astype(np.float64)


def with_intervals(parts: list[dict]) -> list[dict]:
    """Return mean, interval and number of questions of each part, all from the same resamples.

    The ends of the interval are None for fewer than `FEWEST_FOR_INTERVAL` questions.

    Args:
        parts: `values` (questions,) and `counted` (questions,) of each, and anything else, which stays.
    """
    values = np.stack([part["values"] for part in parts], axis=1)
    counted = np.stack([part["counted"] for part in parts], axis=1)
    low, high = mean_intervals(values, counted)
    return [
        {name: value for name, value in part.items() if name not in ("values", "counted")}
        | {
            "value": float(part["values"][part["counted"]].mean()),
            "low": None if few else float(low[place]),
            "high": None if few else float(high[place]),
            "questions": int(part["counted"].sum()),
        }
        for place, part in enumerate(parts)
        for few in [part["counted"].sum() < FEWEST_FOR_INTERVAL]
    ]
