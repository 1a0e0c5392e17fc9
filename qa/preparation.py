"""Reading and tokenizing, once on each node: rows by split, then their features."""

import logging
from collections.abc import Callable
from functools import partial

from qa.arguments import DataArguments, ModelArguments
from qa.buckets import set_widths
from qa.checks import writes_answers
from qa.data import gold_answers, load_rows
from qa.errors import UserError
from qa.mlqa import LANGUAGES, detect_language
from qa.node import once_a_node
from qa.packing import set_packing
from qa.tuning import check_tuning


logger = logging.getLogger(__name__)


class RowsElsewhere:
    """The rows of a split on a rank that has none: their number."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return self.number


def read_rows(data_args: DataArguments, model_args: ModelArguments, training_args) -> tuple[dict, dict]:
    """Return the rows and counts of `load_rows`, as `scorable_rows` checks them; set `data_args.answer_language`.

    The first rank of each node reads; the others get `RowsElsewhere`.
    """
    here = {}

    def read() -> tuple[dict, dict, str]:
        rows, counts = scorable_rows(data_args, model_args, training_args)
        here.update(rows)
        return {split: len(part) for split, part in rows.items()}, counts, data_args.answer_language

    numbers, counts, data_args.answer_language = once_a_node(training_args, read)
    return {split: here.get(split, RowsElsewhere(number)) for split, number in numbers.items()}, counts


def scorable_rows(data_args: DataArguments, model_args: ModelArguments, training_args) -> tuple[dict, dict]:
    """Return the rows and counts of `load_rows`; check that they can be scored as the flags say.

    Raises:
        UserError: `--answer_language auto` finds none of its languages, or `--metric_for_best_model` is a score of questions
            that are not there, or no threshold can be tuned on the questions that are held out for it, or a prediction would
            neither answer its questions nor have a loss.
    """
    rows, counts = load_rows(data_args, model_args, training_args)
    answered = [row for split in ("validation", "test") for row in rows.get(split, ())]
    if data_args.answer_language == "auto" and answered:
        data_args.answer_language = found_language(answered)
    if "test" in rows and not writes_answers(training_args) and gold_answers(rows["test"][0]) is None:
        way = "omit --prediction_loss_only" if training_args.prediction_loss_only else "add --predict_with_generate"
        raise UserError(f"--do_predict has nothing to compute: no answers are known, and none are asked for; {way}")
    if "tuning" in rows:
        check_tuning(rows["tuning"], data_args.tune_null_threshold)
    if "train" in rows and "validation" in rows and training_args.metric_for_best_model is not None:
        check_best_model(training_args.metric_for_best_model, rows["validation"])
    return rows, counts


def prepare(
    rows: dict, data_args: DataArguments, training_args, length: int, of_split: Callable, report: Callable
) -> dict:
    """Return the features of each split, which the first rank of each node builds; free the rows that are for training.

    Features have the widths or the packing that the flags ask for.

    Args:
        rows: by split.
        length: tokens of a feature at most.
        of_split: `(split, rows)` -> features.
        report: `(rows, features)`, both by split, writes lines to the log.
    """

    here = {}

    def build() -> list[str]:
        features = {split: of_split(split, part) for split, part in rows.items()}
        set_widths(features, data_args.length_buckets, length, training_args)
        if data_args.pack:
            set_packing(features, length, training_args)
        report(rows, features)
        if "train" in features:
            features["train"].forget_rows()
        for part in features.values():
            part.tokens  # noqa: B018  made here, not by each rank
        here.update(features)
        return list(features)

    splits = once_a_node(training_args, build)
    rows.pop("train", None)
    return {split: once_a_node(training_args, partial(here.pop, split)) for split in splits}


def found_language(rows: list[dict]) -> str:
    """Return the language of the rows' contexts."""
    language = detect_language(dict.fromkeys(row["context"] for row in rows))
    if language is None:
        raise UserError(
            f"--answer_language auto: the contexts are in none of {', '.join(LANGUAGES)}; name one of them, or omit it"
        )
    logger.info(f"--answer_language auto: the contexts are in {language}")
    return language


def check_best_model(best: str, rows: list[dict]) -> None:
    """Raise a UserError for a score of the questions with, or without, an answer where there are none of them."""
    answered = [bool((gold_answers(row) or {"text": []})["text"]) for row in rows]
    name, lacking = best.removeprefix("eval_"), None
    if name.startswith("HasAns_") and not any(answered):
        lacking = "no validation question has an answer"
    if name.startswith("NoAns_") and all(answered):
        lacking = "every validation question has an answer"
    if lacking is not None:
        raise UserError(f"--metric_for_best_model {best}: {lacking}; use exact or f1")
