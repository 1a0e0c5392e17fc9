"""Features from rows, and answers from logits: pure functions on arrays.

A *feature* is one window of an example (a row): question, a stretch of the context and special tokens, at most
`max_seq_length` tokens. Every distinct context and question is tokenized once, windows are index ranges into those
tokens, and nothing is padded before it is batched.
"""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from qa.answers import AnswerRules, Candidates, find_answers, write_answers
from qa.fallback import ListedFeatures, own_features
from qa.padding import PaddingCollator
from qa.windows import (
    CHECKED_ROWS,
    IGNORED,
    UNKNOWN_SPAN,
    Features,
    WindowSpec,
    gold_spans,
    has_labels,
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
) -> "Features | ListedFeatures":
    """The windows of all rows, with labels where the answer of any row is known.

    Windows, ids, masks, types and offsets are those of the tokenizer's own `return_overflowing_tokens`. Where a check
    on the first rows finds a difference (a tokenizer whose tokens depend on the other text of the pair), the tokenizer
    does the work itself, and the features are dicts with the same content.

    Texts are text: the name of a special token in one, as in `<s>20 euros</s>`, does not become that token.

    Args:
        rows: `{"id", "question", "context", "answers": {"text", "answer_start"}}` each; the question is left-stripped.
        tokenizer: a fast one, which stays as it is; for encoders its `padding_side` decides which text comes first.
        max_seq_length: tokens of a feature at most.
        doc_stride: tokens that neighbouring windows of one context share.
        causal: for a model whose tokens see only those before them (`qa.models.is_causal`). The question comes first,
            and each window ends in a special token: the tokenizer's own, else its end-of-text token.

    A question that leaves no room for a window to move on is cut to half the room (counted in the log). Labels are
    the first and last token of the first gold answer, or the no-answer position in both places when there is no answer or
    the window does not hold all of it: the CLS token, else BOS, else 0; for a causal model the last token, which sees all.
    Where the answer (None) or its place (a start of -1) is unknown, the label is `IGNORED`, a position after the last one,
    which models leave out of their loss.
    """
    tokenizer = literal_tokenizer(tokenizer)
    spec = WindowSpec(tokenizer, read_template(tokenizer, causal), max_seq_length, doc_stride)
    features = array_features(rows, spec)
    if features is None or not same_features(features, rows, spec):
        logger.warning(
            "This tokenizer treats pairs in a way of its own; it builds every feature itself, which is slower"
        )
        return ListedFeatures(own_features(rows, spec, has_labels(rows)))
    return features


def array_features(rows, spec: WindowSpec) -> "Features | None":
    """`prepare_features` by index arithmetic; None for tokenizers or texts that it cannot describe."""
    tokenizer = spec.tokenizer
    if tokenizer.truncation_side != "right":
        return None
    questions = tokenize_distinct([row["question"].lstrip() for row in rows], tokenizer, offsets=False)
    contexts = tokenize_distinct([row["context"] for row in rows], tokenizer)
    if not len(contexts.ids):  # a handful of contexts that the tokenizer's normalizer leaves nothing of
        return None
    features = windows_of(Features, rows, questions, contexts, spec)
    features.cls_index = no_answer_positions(tokenizer, spec.template, features.lengths())
    if has_labels(rows):
        features.labels = label_windows(rows, features)
    return features


def label_windows(rows, features: Features) -> np.ndarray:
    """(features, 2) first and last token of each row's first answer, or the no-answer position or IGNORED twice.

    Tokens are found by one binary search over all contexts: a token's key is its context's number above its character.
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
    """Whether the first rows (those with whole questions) come out as from the tokenizer itself."""
    whole = np.diff(features.questions.splits)[features.questions.of_row] == features.question_length
    checked = np.flatnonzero(whole)[:CHECKED_ROWS]
    if not len(checked):
        return True
    own = own_features([rows[index] for index in checked], spec, labelled=features.labels is not None)
    mine = np.flatnonzero(np.isin(features.row, checked))
    return len(own) == len(mine) and all(features.as_dict(index) == other for index, other in zip(mine, own))


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
    """The answer of every example, `{id: text}`, cut from its context.

    Per window the `n_best_size` best starts are paired with the `n_best_size` best ends; pairs outside the context,
    reversed or longer than `max_answer_length` tokens are dropped, and the rest is ranked by the sum of its logits over
    all windows of the example. With negatives the answer is empty when the null score (the lowest over the windows)
    exceeds the best text's score by more than `null_score_diff_threshold` logits.

    Args:
        examples: rows with `id` and `context`, a `datasets.Dataset` or a list of dicts.
        features: what `prepare_features` made, or a `datasets.Dataset` or list of dicts with `example_id`,
            `offset_mapping` (None outside the context), and optionally `token_is_max_context` and `cls_index` (the
            position of the null score, 0 without it).
        predictions: start and end logits, (features, length) each, aligned with the features' first tokens; or the best
            of them, which `QuestionAnsweringTrainer` hands to its `post_process_function`.
        output_dir: where `predictions.json`, `nbest_predictions.json` and, with negatives, `null_odds.json` go, with
            `prefix` and an underscore before their names.

    Raises:
        ValueError: `predictions` do not match the features, or with negatives an example has no feature.
    """
    logger.setLevel(log_level)
    rules = AnswerRules(version_2_with_negative, n_best_size, max_answer_length, null_score_diff_threshold)
    answers = find_answers(examples, features, predictions, rules)
    if output_dir is not None:
        write_answers(answers, output_dir, prefix)
    return answers.texts
