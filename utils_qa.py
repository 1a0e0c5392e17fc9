"""Features from rows, and answers from logits: pure functions on arrays.

A *feature* is one window of an example (a row): question, a stretch of the context and special tokens, at most
`max_seq_length` tokens. Every distinct context and question is tokenized once, windows are index ranges into those
tokens, and nothing is padded before it is batched.
"""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from qa.answers import AnswerRules, find_answers, write_answers
from qa.candidates import Candidates
from qa.fallback import OwnFeatures, own_features
from qa.features import Features
from qa.padding import PaddingCollator
from qa.windows import (
    CHECKED_ROWS,
    IGNORED,
    UNKNOWN_SPAN,
    WindowSpec,
    gold_spans,
    has_labels,
    lengths_of_rows,
    literal_tokenizer,
    no_answer_positions,
    read_template,
    tokenize_distinct,
    windows_holding,
    windows_of,
)


__all__ = ["PaddingCollator", "postprocess_qa_predictions", "prepare_features"]

logger = logging.getLogger(__name__)


def prepare_features(
    rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    doc_stride: int,
    causal: bool = False,
) -> Features:
    """Return the windows of all rows, with labels where the answer of any row is known.

    Windows, ids, masks, types and offsets are those of the tokenizer's own `return_overflowing_tokens`. Where a check
    on the first rows finds a difference (a tokenizer whose tokens depend on the other text of the pair), the tokenizer
    builds the features, whose content is the same.

    Texts are read literally: the name of a special token in one, as in `<s>20 euros</s>`, does not become that token.

    Args:
        rows: `{"id", "question", "context", "answers": {"text", "answer_start"}}` each; the question is left-stripped.
        tokenizer: a fast one, which stays as it is; for encoders its `padding_side` decides which text comes first.
        max_seq_length: tokens of a feature at most.
        doc_stride: tokens that neighbouring windows of one context share.
        causal: for a model whose tokens see only those before them (`qa.models.is_causal`). The question comes first,
            and each window ends in a special token: the tokenizer's own, else its end-of-text token.

    A question that leaves its windows no room for new tokens is cut (`qa.windows.trim_questions`), and the log counts
    such questions.

    The label of a feature is one of

    - the first and the last token of the first gold answer;
    - the no-answer position twice, where there is no answer or the window does not hold all of it: the CLS token, else
      BOS, else 0; for a causal model the last token, which sees all others;
    - `IGNORED` twice, a position after the last one that counts in no loss, where the answer (None) or its place (a
      start of -1) is unknown.
    """
    tokenizer = literal_tokenizer(tokenizer)
    template = read_template(tokenizer, causal)
    spec = WindowSpec(tokenizer, template, max_seq_length=max_seq_length, doc_stride=doc_stride)
    features = array_features(rows, spec)
    if features is None or not same_features(features, rows, spec):
        logger.warning(
            "This tokenizer treats pairs in a way of its own; it builds every feature itself, which is slower"
        )
        return OwnFeatures(rows, own_features(rows, spec, has_labels(rows)))
    return features


def array_features(rows, spec: WindowSpec) -> Features | None:
    """Return what `prepare_features` does, by index arithmetic; None for tokenizers and texts it cannot describe."""
    tokenizer = spec.tokenizer
    if tokenizer.truncation_side != "right":
        return None
    questions = tokenize_distinct([row["question"].lstrip() for row in rows], tokenizer, offsets=False)
    contexts = tokenize_distinct([row["context"] for row in rows], tokenizer)
    if not len(contexts.ids):  # a few contexts of which the tokenizer's normalizer keeps nothing
        return None
    features = windows_of(Features, rows, questions, contexts, spec)
    features.cls_index = no_answer_positions(tokenizer, spec.template, features.lengths())
    if has_labels(rows):
        features.labels = label_windows(rows, features)
    return features


def label_windows(rows, features: Features) -> np.ndarray:
    """Return the first and the last token of each row's first answer, or the no-answer position or IGNORED twice.

    The result has the shape (features, 2). One binary search over all contexts finds the tokens: the key of a token
    has the number of its context in the upper 32 bits and its character in the lower ones.

    The answer "each year" to a question of two tokens, in windows of three context tokens that share one. The first
    window, `[CLS] q q [SEP] The Nile floods [SEP]`, does not hold it; in the second it has the positions 5 and 6:

    >>> from qa.windows import Template, Texts
    >>> starts, ends = np.array([0, 4, 9, 16, 21]), np.array([3, 8, 15, 20, 25])  # of The Nile floods each year
    >>> contexts = Texts(of_row=np.array([0]), splits=np.array([0, 5]), ids=np.arange(5), starts=starts, ends=ends)
    >>> template = Template(before=[101], between=[102], after=[102], types=(0, 0, 0, 1, 1))
    >>> rows = [{"id": "a", "answers": {"text": ["each year"], "answer_start": [16]}}]
    >>> windows = {"row": np.array([0, 0]), "first": np.array([0, 2]), "last": np.array([3, 5])}
    >>> features = Features(rows, None, contexts, template, names=[], **windows, question_length=np.array([2]))
    >>> features.cls_index = np.array([0, 0])
    >>> label_windows(rows, features).tolist()
    [[0, 0], [5, 6]]
    """
    contexts = features.contexts
    above = np.repeat(np.arange(len(contexts), dtype=np.int64) << 32, np.diff(contexts.splits))
    begin, end = gold_spans(rows)
    above_row = contexts.of_row.astype(np.int64) << 32
    start_token = np.searchsorted(contexts.starts + above, above_row + begin, side="right") - 1
    end_token = np.searchsorted(contexts.ends + above, above_row + end, side="left")
    holds, row = windows_holding(features, begin, end), features.row
    shift = features.context_begin() - features.first
    start = np.where(holds, np.minimum(start_token[row], features.last - 1) + shift, features.cls_index)
    stop = np.where(holds, np.maximum(end_token[row], features.first) + shift, features.cls_index)
    labels = np.stack([start, stop], axis=1)
    labels[begin[row] == UNKNOWN_SPAN] = IGNORED
    return labels.astype(np.int32)


def same_features(features: Features, rows, spec: WindowSpec) -> bool:
    """Return whether features of the first rows with whole questions equal those that the tokenizer builds."""
    whole = lengths_of_rows(features.questions) == features.question_length
    checked = np.flatnonzero(whole)[:CHECKED_ROWS]
    if not len(checked):
        return True
    own = own_features([rows[index] for index in checked], spec, labelled=features.labels is not None)
    mine = np.flatnonzero(np.isin(features.row, checked))
    return all(features.as_dict(index) == next(own, None) for index in mine) and next(own, None) is None


def postprocess_qa_predictions(
    examples,
    features,
    predictions: tuple[np.ndarray, np.ndarray] | Candidates,
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
    output_dir: str | None = None,
    prefix: str | None = None,
    log_level: int = logging.WARNING,
) -> dict[str, str]:
    """Return the answer of every example, `{id: text}`, cut from its context.

    For each window the `n_best_size` best starts are paired with the `n_best_size` best ends; pairs outside the
    context, reversed or longer than `max_answer_length` tokens are dropped. The other pairs of all windows of the
    example are ranked by the sum of their two logits. With negatives the answer is empty when the null score (the
    lowest over the windows) exceeds the best text's score by more than `null_score_diff_threshold` logits.

    Args:
        examples: rows with `id` and `context`, a `datasets.Dataset` or a list of dicts.
        features: what `prepare_features` made, or a `datasets.Dataset` or list of dicts with `example_id`,
            `offset_mapping` (None outside the context), and optionally `token_is_max_context` and `cls_index` (the
            position of the null score, 0 without it).
        predictions: start and end logits, (features, length) each, aligned with the features' first tokens; or the best
            of them, as `QuestionAnsweringTrainer` passes them to its `post_process_function`.
        output_dir: where `predictions.json`, `nbest_predictions.json` and, with negatives, `null_odds.json` go, with
            `prefix` and an underscore before their names.

    Raises:
        ValueError: `predictions` do not match the features, or with negatives an example has no feature.
    """
    logger.setLevel(log_level)
    rules = AnswerRules(
        version_2_with_negative=version_2_with_negative,
        n_best_size=n_best_size,
        max_answer_length=max_answer_length,
        null_score_diff_threshold=null_score_diff_threshold,
    )
    answers = find_answers(examples, features, predictions, rules)
    if output_dir is not None:
        write_answers(answers, output_dir, prefix)
    return answers.texts
