"""`--tune_null_threshold`: the threshold of the null odds and the temperature, found on held-out training contexts.

    threshold, temperature = tuned(answers, rows, windows)

Questions that score a model must not choose its threshold. So neither the evaluation nor the prediction part is used.
"""

import logging

import numpy as np
from accelerate.utils import broadcast_object_list

from qa.answer_table import has_answer, make_table, window_counts
from qa.answers import Answers, decide
from qa.arguments import DataArguments
from qa.calibration import FEWEST, fit_temperature, has_scores, padded
from qa.data import gold_answers
from qa.errors import UserError
from qa.metrics import averages, score_each


logger = logging.getLogger(__name__)

LEAST_SLOPE = 1e-6  # for a standard deviation of the odds; less is rounding


def check_tuning(rows: list[dict], share: float) -> None:
    """Check and report the questions to tune on.

    Raises:
        UserError: a threshold cannot be found on them: they are too few, or all alike.
    """
    answered = [bool(gold_answers(row)["text"]) for row in rows]
    found = f"{len(rows):,} questions of {len({row['context'] for row in rows}):,} contexts"
    problem = None
    if len(rows) < FEWEST:
        problem = f"fewer than {FEWEST}"
    elif len(set(answered)) == 1:
        problem = "and all of them have an answer" if answered[0] else "and none of them has an answer"
    if problem is not None:
        raise UserError(f"--tune_null_threshold {share} holds out {found}, {problem}; raise it, or omit it")
    logger.info(f"Held out to tune the threshold: {found}, {len(rows) - sum(answered):,} of them without an answer")


def tune(trainer, data_args: DataArguments, features, rows: list[dict]) -> None:
    """Answer held-out questions, set the threshold and the temperature of `data_args` by them, and save these settings.

    All ranks answer, rank 0 decides and writes, and all get the same values.
    """
    answered = trainer.answer_only(features, rows)
    found = [None, None]
    if answered is not None:
        windows = window_counts(features, [row["id"] for row in rows])
        found = list(tuned(answered.answers, rows, windows))
    if trainer.args.world_size > 1:
        broadcast_object_list(found)
    data_args.null_score_diff_threshold, data_args.temperature = found
    data_args.tuned_on = len(rows)
    trainer.write_settings(trainer.args.output_dir)


def tuned(answers: Answers, rows: list[dict], windows: np.ndarray) -> tuple[float, float]:
    """Return the threshold that `find_threshold` finds, and the temperature of the answers that it leaves.

    Without a temperature that fits, as for a model that writes, it is 1.
    """
    golds = [gold_answers(row) for row in rows]
    texts = {row["id"]: list(gold["text"]) for row, gold in zip(rows, golds)}
    threshold = find_threshold(answers.best_texts, texts, answers.null_odds)
    before = averages(score_each(answers.texts, texts, version_2=True), texts)["f1"]
    answers.texts = decide(answers.best_texts, answers.null_odds, threshold)
    table = make_table(answers, rows, windows, golds=golds, language="off")
    temperature = None
    if has_scores(table):
        right = table.numbers("exact_match") > 0
        temperature = fit_temperature(padded(table.choices.scores), np.array(table.choices.rank), right)
    logger.info(
        f"Tuned on {len(rows):,} held-out questions, {int((~has_answer(table)).sum()):,} of them without an answer: "
        f"--null_score_diff_threshold {threshold:.4f}, F1 {table.numbers('f1').mean():.2f} ({before:.2f} with 0)"
        + (f", --temperature {temperature:.3f}" if temperature is not None else "")
    )
    return threshold, temperature or 1.0


def find_threshold(best_texts: dict[str, str], golds: dict[str, list[str]], null_odds: dict[str, float]) -> float:
    """Return the threshold on the null odds at which answering and refusing have the same expected F1.

    It is 0, the default, unless F1 is higher with it. The threshold with the highest F1 of a few hundred questions
    follows the chance of a few of them, and lowers F1 on others more often (docs/measurements.md#tuned-thresholds).

    >>> texts, golds = {"a": "Cairo", "b": "Giza"}, {"a": ["Cairo"], "b": []}
    >>> find_threshold(texts, golds, {"a": -3.5, "b": 1.0}), find_threshold(texts, golds, {"a": 2.0, "b": 5.0})
    (0.0, 3.5)
    """
    names, scores = list(golds), score_each(best_texts, golds, version_2=True)
    # of answering over refusing a question; without an answer, F1 is 1 if there is none
    gains = np.array([scores[name][1] - float(not golds[name]) for name in names])
    return better_threshold(np.array([null_odds[name] for name in names]), gains)


def better_threshold(odds: np.ndarray, gains: np.ndarray) -> float:
    """Return `crossing` of the odds and gains of questions if the answers up to there gain more than those up to 0, else 0."""
    threshold = crossing(odds, gains)
    gained = [gains[~(odds > value)].sum() for value in (0.0, threshold)]
    return threshold if gained[1] > gained[0] else 0.0


def crossing(odds: np.ndarray, gains: np.ndarray) -> float:
    """Return the null odds at which answering is as good as refusing; 0 where higher odds do not mean a lower gain.

    Where refusing is better at all odds, it is just below them; where answering is, it is the highest of them.

    A logistic regression of the sign of the gain on the odds, each question weighted by the size of its gain: the sum of
    its losses bounds what a threshold loses. Newton's method; a penalty of one question keeps the slope finite where a
    threshold separates the two kinds.

    Args:
        odds: (questions,) the null odds; those that are not finite do not count.
        gains: (questions,) what answering each question adds to a score, from -1 to 1.
    """
    counted = np.isfinite(odds) & (gains != 0)
    odds, gains = odds[counted], gains[counted]
    if not len(odds) or not odds.std():
        return 0.0
    middle, scale = odds.mean(), odds.std()
    inputs, right, weights = np.stack([(odds - middle) / scale, np.ones(len(odds))]), gains > 0, np.abs(gains)
    line = np.zeros(2)  # slope, and value in the middle
    for _ in range(30):
        likely = 1 / (1 + np.exp(-np.clip(line @ inputs, -500, 500)))
        slope = inputs @ (weights * (likely - right)) + line
        line = line - np.linalg.solve((inputs * (weights * likely * (1 - likely))) @ inputs.T + np.eye(2), slope)
    if line[0] > -LEAST_SLOPE:
        return 0.0
    return float(np.clip(middle - scale * line[1] / line[0], np.nextafter(odds.min(), -np.inf), odds.max()))
