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
from qa.thresholds import threshold_of_most


logger = logging.getLogger(__name__)


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
    found = (
        [None, None]
        if answered is None
        else list(tuned(answered.answers, rows, window_counts(features, [row["id"] for row in rows])))
    )
    if trainer.args.world_size > 1:
        broadcast_object_list(found)
    data_args.null_score_diff_threshold, data_args.temperature = found
    data_args.tuned_on = len(rows)
    trainer.write_settings(trainer.args.output_dir)


def tuned(answers: Answers, rows: list[dict], windows: np.ndarray) -> tuple[float, float]:
    """Return the threshold of the highest F1, and the temperature of the answers that it leaves.

    Without a temperature that fits, as for a model that writes, it is 1.
    """
    golds = [gold_answers(row) for row in rows]
    texts = {row["id"]: list(gold["text"]) for row, gold in zip(rows, golds)}
    threshold = threshold_of_best_f1(answers.best_texts, texts, answers.null_odds)
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


def threshold_of_best_f1(
    best_texts: dict[str, str], golds: dict[str, list[str]], null_odds: dict[str, float]
) -> float:
    """Return the threshold on the null odds with the highest F1; of several the one closest to 0, the default.

    >>> texts, golds = {"a": "Cairo", "b": "Giza"}, {"a": ["Cairo"], "b": []}
    >>> threshold_of_best_f1(texts, golds, {"a": -3.5, "b": 1.0}), threshold_of_best_f1(texts, golds, {"a": 2.0, "b": 5.0})
    (0.0, 2.0)
    """
    names, scores = list(golds), score_each(best_texts, golds, version_2=True)
    gains = [scores[name][1] - float(not golds[name]) for name in names]  # without an answer, F1 is 1 if there is none
    return threshold_of_most(np.array([null_odds[name] for name in names]), np.array(gains))
