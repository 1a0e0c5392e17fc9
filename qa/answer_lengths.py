"""Report how many gold answers are longer than a model may answer, in tokens: one line for each part that has some."""

import logging

import numpy as np

from qa.generation import answer_marks
from qa.windows import lengths_of_rows, tokenize_distinct


logger = logging.getLogger(__name__)

WARNED_SHARE = 0.01


def report_spans(rows: dict, features: dict, max_answer_length: int, window: int) -> None:
    """Report how long the answers to mark are, by the labels of the features of each split.

    Args:
        rows, features: by split.
        window: tokens of a feature at most, which is the length of an answer that no window holds.
    """
    for split, part in features.items():
        lengths = span_lengths(rows[split], part, window)
        report(split, lengths, flag="max_answer_length", limit=max_answer_length)


def span_lengths(rows: list[dict], features, window: int) -> np.ndarray:
    """Return the tokens of the first answer of each question whose answer has a place, (questions,)."""
    placed = [
        bool(row["answers"] and row["answers"]["text"]) and row["answers"]["answer_start"][0] >= 0 for row in rows
    ]
    lengths = np.full(len(rows), window)
    if any(placed):
        row, start, end, held = labelled_windows(features)
        lengths[row[held]] = (end - start + 1)[held]
    return lengths[placed]


def labelled_windows(features) -> tuple[np.ndarray, ...]:
    """Return four arrays (features,): row, first and last token of the label, and whether that label is an answer."""
    (start, end), cls_index = features.labels.T, features.cls_index
    no_answer = (start == cls_index) & (end == cls_index)
    return features.row, start, end, ~no_answer & (end < features.lengths())


def report_targets(rows: dict, tokenizer, data_args, training_args) -> None:
    """Report how long the answers to write are: in training as labels, in evaluation and prediction as generated.

    Tokens include the special ones of a label, and in evaluation and prediction the token that starts an answer.
    """
    limits = {"train": ("max_answer_length", data_args.max_answer_length)}
    if training_args.predict_with_generate:
        given = training_args.generation_max_length != data_args.val_max_answer_length
        flag = "generation_max_length" if given else "val_max_answer_length"
        limits |= dict.fromkeys(("tuning", "validation", "test"), (flag, training_args.generation_max_length))
    special = sum(map(len, answer_marks(tokenizer)))
    for split, part in rows.items():
        known = [row["answers"]["text"][0] for row in part if row["answers"] and row["answers"]["text"]]
        if known and split in limits:
            texts = tokenize_distinct(known, tokenizer, offsets=False)
            flag, limit = limits[split]
            report(split, lengths_of_rows(texts) + special + (split != "train"), flag=flag, limit=limit)


def report(split: str, lengths: np.ndarray, flag: str, limit: int) -> None:
    """Log the share of answers with more than `limit` tokens, if any, and the limit that 99 % keep; warn above 1 %."""
    if not (lengths > limit).any():
        return
    share, enough = (lengths > limit).mean(), int(np.quantile(lengths, 0.99, method="inverted_cdf"))
    found = f"{share:.1%} of the {split} answers are longer than --{flag} {limit}; 99 % have at most {enough} tokens"
    if share > WARNED_SHARE:
        logger.warning(f"{found}. Raise --{flag} to {enough}")
    else:
        logger.info(found)
