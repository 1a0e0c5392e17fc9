"""Features, collator and choice of windows for models that write their answer."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from qa.answers import Answers, decide, softmax_of_groups
from qa.errors import UserError
from qa.features import Features
from qa.generation import answer_marks, shift_right, special_tokens_around
from qa.padding import PaddingCollator, as_batch
from qa.spans import EXAMPLES_AT_ONCE, column_of
from qa.windows import (
    CHECKED_ROWS,
    UNKNOWN_SPAN,
    Template,
    Texts,
    WindowSpec,
    gold_spans,
    has_answers,
    literal_tokenizer,
    tokenize_distinct,
    windows_holding,
    windows_of,
)


logger = logging.getLogger(__name__)


class Seq2SeqFeatures(Features):
    """Features whose label is a text: items hold `labels`, the tokens of the answer to write, where any is known."""

    targets: Texts | None = None  # the answers, special tokens included; its rows are the features
    lost_rows: int = 0  # rows without a feature, because no window holds their whole answer

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        if self.targets is not None:
            item["labels"] = self.targets.of(index).astype(np.int64)
        return item


def prepare_seq2seq_features(
    rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    doc_stride: int,
    max_answer_length: int,
    version_2_with_negative: bool = False,
    training: bool = False,
) -> Seq2SeqFeatures:
    """Return the windows of all rows, each the text `question: Q context: C` with its stretch of C.

    A context that fits makes one feature, the tokenizer's own ids of that text. A longer one is cut as for
    `prepare_features`: windows share `doc_stride` tokens, the question precedes each, and a question that leaves no room
    is cut. Texts and targets are read literally: the name of a special token in one does not become that token.

    The target of a window is

    - the first gold answer, at most `max_answer_length` tokens including the special ones, where the window holds it,
      is the only one of its row, or the answer's place is unknown;
    - the empty text for rows without an answer;
    - in the other windows, with negatives the empty text. Without negatives training omits them, and in evaluation
      they keep the answer for the loss.

    Raises:
        UserError: there is nothing to train on.
    """
    tokenizer = literal_tokenizer(tokenizer)
    template = read_seq2seq_template(tokenizer)
    questions, contexts = seq2seq_texts(rows, tokenizer, template)
    spec = WindowSpec(tokenizer, template, max_seq_length=max_seq_length, doc_stride=doc_stride)
    features = windows_of(Seq2SeqFeatures, rows, questions=questions, contexts=contexts, spec=spec)
    if training or has_answers(rows):
        set_targets(features, rows, tokenizer, max_answer_length, version_2_with_negative, training)
    for texts in (questions, contexts):  # no written answer has a place
        texts.forget_offsets()
    return features


def set_targets(
    features: Seq2SeqFeatures, rows, tokenizer, max_answer_length: int, version_2_with_negative: bool, training: bool
) -> None:
    """Set the targets of features as `prepare_seq2seq_features` says, and omit windows without one from training."""
    # `seq2seq_texts` puts one space in place of the blanks before a context.
    cut = [len(row["context"]) - len(row["context"].lstrip()) - 1 for row in rows]
    begin, end = gold_spans(rows)
    only = np.bincount(features.row, minlength=len(rows)) == 1
    holds = windows_holding(features, np.where(begin < 0, -1, begin - cut), end - cut)
    holds |= (only | (begin == UNKNOWN_SPAN))[features.row]
    if training and not version_2_with_negative:
        keep_windows(features, holds)
        holds = holds[holds]
    written = [row["answers"]["text"][0] if row["answers"] and row["answers"]["text"] else "" for row in rows]
    of_window = np.array(written, dtype=object)[features.row]
    if version_2_with_negative:
        of_window[~holds] = ""
    features.targets = tokenize_targets(of_window.tolist(), tokenizer, max_answer_length)


def read_seq2seq_template(tokenizer) -> Template:
    """Return the tokens around question and context: the special tokens of one text, and " context:" between them.

    "question:" is not one of them: the text of the question begins with it.
    """
    before, after = special_tokens_around(tokenizer("a"))
    between = tokenizer.backend_tokenizer.encode(" context:", add_special_tokens=False).ids
    return Template(before, between, after, types=(0,) * 5)


def seq2seq_texts(rows, tokenizer, template: Template) -> tuple[Texts, Texts]:
    """Return the tokens of `question: Q` and of ` C`, each distinct text tokenized once.

    Where a check on the first rows finds that the parts do not add up to the whole, every whole text is tokenized. The
    template's `between` is then emptied, since the question's tokens include it.
    """
    questions = [f"question: {row['question'].lstrip()}" for row in rows]
    contexts = [f" {row['context'].lstrip()}" for row in rows]
    parts = tokenize_distinct(questions, tokenizer, offsets=False), tokenize_distinct(contexts, tokenizer)
    for index in range(min(CHECKED_ROWS, len(rows))):
        question, context = (texts.of(index) for texts in parts)
        own = tokenizer(f"{questions[index]} context:{contexts[index]}")["input_ids"]
        if own != [*template.before, *question, *template.between, *context, *template.after]:
            logger.warning("This tokenizer joins words of question and context; every text is tokenized whole")
            template.between = []
            return split_texts([f"{question} context:" for question in questions], contexts, tokenizer)
    return parts


def split_texts(questions: list[str], contexts: list[str], tokenizer) -> tuple[Texts, Texts]:
    """Return the tokens of each question and of its context, out of the tokens of both together."""
    whole = tokenize_distinct([question + context for question, context in zip(questions, contexts)], tokenizer)
    begin, end = whole.splits[whole.of_row], whole.splits[whole.of_row + 1]
    question_end = np.array([len(question) for question in questions])
    middle = [first + np.searchsorted(whole.ends[first:last], length, side="right")
              for first, last, length in zip(begin, end, question_end)]  # fmt: skip
    return (
        take_texts(whole, begin=begin, end=middle, shift=0),
        take_texts(whole, begin=middle, end=end, shift=question_end),
    )


def take_texts(texts: Texts, begin, end, shift) -> Texts:
    """Return the tokens `begin[i]` to `end[i]` of `texts` as text i of row i, whose characters count from `shift[i]`.

    Texts of 3 and 2 tokens out of one of 8:

    >>> token = np.arange(8)
    >>> whole = Texts(of_row=np.array([0]), splits=np.array([0, 8]), ids=token, starts=10 * token, ends=10 * token + 9)
    >>> texts = take_texts(whole, begin=np.array([0, 4]), end=np.array([3, 6]), shift=np.array([0, 40]))
    >>> texts.splits.tolist(), texts.ids.tolist(), texts.starts.tolist()
    ([0, 3, 5], [0, 1, 2, 4, 5], [0, 10, 20, 0, 10])
    """
    length = np.subtract(end, begin)
    token = np.repeat(np.asarray(begin) - (np.cumsum(length) - length), length) + np.arange(length.sum())
    shift = np.repeat(np.broadcast_to(shift, length.shape), length)
    return Texts(
        of_row=np.arange(len(length)),
        splits=np.cumsum([0, *length]),
        ids=texts.ids[token],
        starts=texts.starts[token] - shift,
        ends=texts.ends[token] - shift,
    )


def keep_windows(features: Seq2SeqFeatures, kept: np.ndarray) -> None:
    """Keep some windows of features, (features,) bools; count the rows that lose all of theirs, and warn of them.

    Raises:
        UserError: no window is kept.
    """
    features.lost_rows = len(features.row_ids) - len(np.unique(features.row[kept]))
    if features.lost_rows:
        logger.warning(
            f"{features.lost_rows} answers lie in no single window; their questions are left out of training"
        )
    if not kept.any():
        raise UserError("no window holds a whole answer, so there is nothing to train on; raise --max_seq_length")
    for name in ("row", "first", "last"):
        setattr(features, name, getattr(features, name)[kept])


def tokenize_targets(texts: list[str], tokenizer, max_length: int) -> Texts:
    """Return the answers as labels of at most `max_length` tokens each, special ones included; without offsets."""
    distinct = list(dict.fromkeys(texts))
    number = {text: index for index, text in enumerate(distinct)}
    before, after = answer_marks(tokenizer)
    room = max(0, max_length - len(before) - len(after))
    words = tokenizer(text_target=distinct, add_special_tokens=False)["input_ids"]
    ids = [[*before, *answer[:room], *after][:max_length] for answer in words]
    splits = np.cumsum([0, *map(len, ids)])
    return Texts(
        of_row=np.array([number[text] for text in texts], dtype=np.int32),
        splits=splits,
        ids=np.fromiter(chain.from_iterable(ids), np.int32, splits[-1]),
        starts=np.zeros(0, dtype=np.int32),
        ends=np.zeros(0, dtype=np.int32),
    )


@dataclass
class Seq2SeqCollator(PaddingCollator):
    """Pad as `PaddingCollator` does, and also `labels`: to `label_length` tokens or to the batch's longest answer.

    With a `start_token` the batch also has `decoder_input_ids`, for a loss that the model does not compute.
    """

    label_length: int | None = None
    label_padding: int = -100
    start_token: int | None = None

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch, targets = super().__call__(features), as_batch(features).targets
        if targets is not None:
            width = self.label_length or max(map(len, targets))
            table = np.full((len(features), width), self.label_padding, dtype=np.int64)
            for row, target in zip(table, targets):
                row[: len(target)] = target
            batch["labels"] = torch.from_numpy(table)
            if self.start_token is not None:
                padding = self.tokenizer.pad_token_id
                batch["decoder_input_ids"] = shift_right(batch["labels"], self.start_token, padding)
        return batch


@dataclass
class RankedTexts:
    """The texts written for the windows of some examples, best first.

    Example i has the rows `bounds[i]` to `bounds[i + 1]`.
    """

    ids: list[str]
    bounds: np.ndarray  # (examples + 1,)
    texts: list[str]  # (rows,)
    numbers: dict[str, np.ndarray]  # (rows,) each, by their names in the file

    def rows(self) -> dict[str, list[dict]]:
        """Return the entries of the n-best file."""
        columns = [self.texts, *(column.tolist() for column in self.numbers.values())]
        rows = [dict(zip(["text", *self.numbers], values)) for values in zip(*columns)]
        bounds = self.bounds.tolist()
        return {name: rows[first:last] for name, first, last in zip(self.ids, bounds, bounds[1:])}


def choose_windows(
    examples,
    features: Seq2SeqFeatures,
    texts: list[str],
    scores: np.ndarray,
    null_scores: np.ndarray | None = None,
    null_score_diff_threshold: float = 0.0,
    temperature: float = 1.0,
) -> Answers:
    """Return the answer of every example: of the texts written for its windows the one with the best score.

    Args:
        texts: (features,) written by the model.
        scores: (features,) the log-probability of each text.
        null_scores: (features,) with negatives, the log-probability of the empty answer. An example's null score is the
            lowest of its windows, as in `find_answers`. The answer is empty when that exceeds the best text's score by
            more than `null_score_diff_threshold`.
        temperature: divides the scores of which the probabilities are made.

    The n-best rows, one for each window, are `{text, score, probability, window}`, with negatives also `null_score`.
    Probabilities are a softmax over the windows' scores; `window` counts from the beginning of the context.
    """
    ids = column_of(examples, "id")
    if features.row_ids != ids or len(texts) != len(features):
        raise ValueError(f"got {len(texts)} texts and {len(features)} features of {len(features.row_ids)} examples")
    blank = np.array([null_scores is not None and not text.strip() for text in texts])
    order = np.lexsort((-scores, blank, features.row))
    bounds = np.searchsorted(features.row[order], np.arange(len(ids) + 1))
    window = np.arange(len(features)) - np.searchsorted(features.row, np.arange(len(ids)))[features.row]
    texts, scores = [texts[index] for index in order], scores[order]
    numbers = {
        "score": scores,
        "probability": softmax_of_groups(scores / temperature, bounds),
        "window": window[order],
    }
    if null_scores is not None:
        numbers["null_score"] = null_scores[order]
    answers = Answers(best_texts={name: texts[first] for name, first in zip(ids, bounds)})
    answers.nbest = list(parts_of_texts(ids, bounds, texts, numbers))
    if null_scores is None:
        answers.texts = answers.best_texts
        return answers
    odds = np.minimum.reduceat(numbers["null_score"], bounds[:-1]) - scores[bounds[:-1]]
    answers.null_odds = dict(zip(ids, odds.tolist()))
    answers.texts = decide(answers.best_texts, answers.null_odds, null_score_diff_threshold)
    return answers


def parts_of_texts(ids: list[str], bounds: np.ndarray, texts: list[str], numbers: dict) -> Iterator[RankedTexts]:
    """Yield the ranked texts of `EXAMPLES_AT_ONCE` examples at a time."""
    for begin in range(0, len(ids), EXAMPLES_AT_ONCE):
        edges = bounds[begin : begin + EXAMPLES_AT_ONCE + 1]
        rows = slice(edges[0], edges[-1])
        part = {name: column[rows] for name, column in numbers.items()}
        yield RankedTexts(ids[begin : begin + EXAMPLES_AT_ONCE], edges - edges[0], texts[rows], part)
