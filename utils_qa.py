"""Features from rows, and answers from logits: pure functions on arrays.

A *feature* is one window of an example (a row): question, a stretch of the context and special tokens, at most
`max_seq_length` tokens. Every distinct context and question is tokenized once, windows are index ranges into those
tokens, and nothing is padded before it is batched.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, starmap
from json.encoder import encode_basestring_ascii
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import torch
from transformers import PreTrainedTokenizerFast

from errors_qa import UserError


logger = logging.getLogger(__name__)

# How many rows are tokenized the slow way too, to see that both ways agree.
CHECKED_ROWS = 16
# How many examples are post-processed together: it bounds memory (1,000 windows of 384 tokens take 20 MB).
EXAMPLES_AT_ONCE = 1000  # must fit 16 bits
PAIRS_AT_ONCE = 1 << 20  # of a window's starts and ends, of all windows
# How many texts are tokenized together: the tokenizers library keeps over 100 bytes a token until its arrays are made.
TEXTS_AT_ONCE = 1000

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LABELS = ("start_positions", "end_positions")


# ---------------------------------------------------------------------------------------------------------------------
# Rows -> features


@dataclass
class Template:
    """What a tokenizer puts around a pair of texts: `before first between second after`, ids and token types of each."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple  # of before, first, between, second, after: one for all tokens of a part, or a list
    context_first: bool  # left-padding tokenizers put the context in front of the question

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass
class Texts:
    """Distinct texts, tokenized one behind the other: text i holds the tokens `splits[i]` to `splits[i + 1]`."""

    of_row: np.ndarray  # (rows,) which text a row has
    splits: np.ndarray  # (texts + 1,)
    ids: np.ndarray  # (tokens,)
    starts: np.ndarray  # (tokens,) first character of each token in its text
    ends: np.ndarray  # (tokens,) the one after its last

    def __len__(self) -> int:
        return len(self.splits) - 1


class Features(torch.utils.data.Dataset):
    """Features as index ranges; item i is a dict of unpadded arrays for a collator.

    Items hold `input_ids`, `attention_mask` and `token_type_ids` as far as the tokenizer's models take them, and
    `start_positions`, `end_positions` where labels are known, `cls_index` where spans are asked for, and `width` where
    length buckets say what to pad to. `as_dict(i)` adds what people look at.
    """

    cls_index: np.ndarray | None = None  # (features,) position that stands for "no answer"
    labels: np.ndarray | None = None  # (features, 2) first and last token of the answer
    widths: np.ndarray | None = None  # (features,) the boundary of each feature's bucket

    def __init__(self, rows, questions: Texts, contexts: Texts, template: Template, names: list[str], **arrays):
        self.row_ids = [row["id"] for row in rows]
        self.questions, self.contexts, self.template, self.names = questions, contexts, template, names
        self.row = arrays["row"]  # (features,) which row a feature is a window of
        self.first, self.last = arrays["first"], arrays["last"]  # (features,) its tokens in contexts.ids
        self.question_length = arrays["question_length"]  # (rows,) tokens kept of each row's question

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict:
        template, row = self.template, self.row[index]
        begin = self.questions.splits[self.questions.of_row[row]]
        question = self.questions.ids[begin : begin + self.question_length[row]]
        context = self.contexts.ids[self.first[index] : self.last[index]]
        first, second = (context, question) if template.context_first else (question, context)
        parts = (template.before, first, template.between, second, template.after)
        item = {"input_ids": np.concatenate(parts, dtype=np.int64, casting="unsafe")}
        if "attention_mask" in self.names:
            item["attention_mask"] = np.ones(len(item["input_ids"]), dtype=np.int64)
        if "token_type_ids" in self.names:
            types = (np.broadcast_to(kind, len(part)) for kind, part in zip(template.types, parts))
            item["token_type_ids"] = np.concatenate(list(types), dtype=np.int64, casting="unsafe")
        if self.labels is not None:
            item["start_positions"], item["end_positions"] = self.labels[index]
        if self.cls_index is not None:
            item["cls_index"] = self.cls_index[index]
        if self.widths is not None:
            item["width"] = self.widths[index]
        return item

    def as_dict(self, index: int) -> dict:
        """Feature `index` as plain lists, with `example_id` and `offset_mapping` (None outside the context)."""
        item = {name: value.tolist() for name, value in self[index].items()}
        begin, length = self.context_begin()[index], len(item["input_ids"])
        tokens = slice(self.first[index], self.last[index])
        spans = list(zip(self.contexts.starts[tokens].tolist(), self.contexts.ends[tokens].tolist()))
        offsets = [None] * begin + spans + [None] * (length - begin - len(spans))
        identity = self.row_ids[self.row[index]]
        return item | {"example_id": identity, "offset_mapping": offsets}

    def lengths(self) -> np.ndarray:
        """(features,) tokens of each feature."""
        return self.last - self.first + self.question_length[self.row] + self.template.special_tokens

    def context_begin(self) -> np.ndarray:
        """(features,) position of the first context token of each feature."""
        if self.template.context_first:
            return np.full(len(self), len(self.template.before))
        return len(self.template.before) + self.question_length[self.row] + len(self.template.between)

    def characters(self, chosen: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First character, and the one after the last, of the tokens at `positions` (len(chosen), n) of some features.

        -1 outside the context.
        """
        place = positions - self.context_begin()[chosen, None]
        inside = (place >= 0) & (place < (self.last - self.first)[chosen, None])
        token = np.where(inside, place + self.first[chosen, None], 0)
        return np.where(inside, self.contexts.starts[token], -1), np.where(inside, self.contexts.ends[token], -1)


def prepare_features(
    rows: Sequence[dict], tokenizer: PreTrainedTokenizerFast, max_seq_length: int, doc_stride: int
) -> "Features | ListedFeatures":
    """The windows of all rows, with labels where any row has an answer.

    Windows, ids, masks, types and offsets are those of the tokenizer's own `return_overflowing_tokens`. Where a check
    on the first rows finds a difference (a tokenizer whose tokens depend on the other text of the pair), the tokenizer
    does the work itself, and the features are dicts with the same content.

    Args:
        rows: `{"id", "question", "context", "answers": {"text", "answer_start"}}` each; the question is left-stripped.
        tokenizer: a fast one; `padding_side` decides which text comes first.
        max_seq_length: tokens of a feature at most.
        doc_stride: tokens that neighbouring windows of one context share.

    A question that leaves no room for a window to move on is cut to half the room (counted in the log). Labels are
    the first and last token of the first gold answer, or the no-answer position (CLS, else BOS, else 0) in both places
    when the window does not hold the whole answer.
    """
    template = read_template(tokenizer)
    features = array_features(rows, tokenizer, template, max_seq_length, doc_stride)
    if features is None or not same_features(features, rows, tokenizer, max_seq_length, doc_stride):
        logger.warning(
            "This tokenizer treats pairs in a way of its own; it builds every feature itself, which is slower"
        )
        return ListedFeatures(own_features(rows, tokenizer, max_seq_length, doc_stride, has_answers(rows)))
    return features


def array_features(rows, tokenizer, template: Template, max_seq_length: int, doc_stride: int) -> "Features | None":
    """`prepare_features` by index arithmetic; None for tokenizers or texts that it cannot describe."""
    if tokenizer.truncation_side != "right":
        return None
    questions = tokenize_distinct([row["question"].lstrip() for row in rows], tokenizer, offsets=False)
    contexts = tokenize_distinct([row["context"] for row in rows], tokenizer)
    if not len(contexts.ids):  # a handful of contexts that the tokenizer's normalizer leaves nothing of
        return None
    features = windows_of(Features, rows, questions, contexts, template, tokenizer, max_seq_length, doc_stride)
    features.cls_index = no_answer_positions(tokenizer, template, features.lengths())
    if has_answers(rows):
        features.labels = label_windows(rows, features)
    return features


def windows_of(
    kind: type,
    rows,
    questions: Texts,
    contexts: Texts,
    template: Template,
    tokenizer,
    max_seq_length: int,
    doc_stride: int,
) -> "Features":
    """All windows of all rows, without labels, as an instance of `kind`."""
    length = np.diff(questions.splits)[questions.of_row]
    most = max_seq_length - template.special_tokens
    length = trim_questions(length, np.diff(contexts.splits)[contexts.of_row], most, doc_stride)
    row, first, last = cut_windows(contexts, most - length, doc_stride)
    names = [name for name in tokenizer.model_input_names if name in ("attention_mask", "token_type_ids")]
    return kind(rows, questions, contexts, template, names, row=row, first=first, last=last, question_length=length)


def read_template(tokenizer) -> Template:
    """Reads off a probe pair where the tokenizer puts special tokens and which types it gives."""
    probe = tokenizer("a", "b", return_token_type_ids=True)
    of_text = [2 if sequence is None else sequence for sequence in probe.sequence_ids()]
    first, second = of_text.index(0), of_text.index(1)
    first_end = len(of_text) - of_text[::-1].index(0)
    second_end = len(of_text) - of_text[::-1].index(1)
    ids, types = probe["input_ids"], probe["token_type_ids"]
    return Template(
        before=ids[:first],
        between=ids[first_end:second],
        after=ids[second_end:],
        types=(types[:first], types[first], types[first_end:second], types[second], types[second_end:]),
        context_first=tokenizer.padding_side == "left",
    )


def tokenize_distinct(texts: list[str], tokenizer, offsets: bool = True) -> Texts:
    """Tokenizes each distinct text once, without special tokens; without offsets (all 0 then) in half the time."""
    distinct = dict.fromkeys(texts)
    number = {text: index for index, text in enumerate(distinct)}
    encoded = tokenizer.backend_tokenizer
    encoded.no_truncation()
    encoded.no_padding()
    encode = encoded.encode_batch if offsets else encoded.encode_batch_fast
    once = list(distinct)
    batches = (once[begin : begin + TEXTS_AT_ONCE] for begin in range(0, max(len(once), 1), TEXTS_AT_ONCE))
    arrays = (token_arrays(encode(batch, add_special_tokens=False)) for batch in batches)
    lengths, ids, spans = map(np.concatenate, zip(*arrays))
    return Texts(
        of_row=np.array([number[text] for text in texts], dtype=np.int32),
        splits=np.cumsum(np.concatenate([[0], lengths])),
        ids=ids,
        starts=spans[::2].copy(),
        ends=spans[1::2].copy(),
    )


def token_arrays(encodings: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many tokens each text has; the ids of all; of each in turn where it starts and ends in its text."""
    lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, total)
    spans = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return lengths, ids, np.fromiter(spans, np.int32, 2 * total)


def trim_questions(questions: np.ndarray, contexts: np.ndarray, most: int, doc_stride: int) -> np.ndarray:
    """(rows,) tokens to keep of questions of the given lengths, when `most` tokens hold question and context window.

    A context that does not fit beside its question is cut into windows that share `doc_stride` tokens, so the question
    must leave more room than that. One that does not is cut so that half of the rest goes to new tokens.
    """
    stuck = (questions + contexts > most) & (most - questions <= doc_stride)
    if stuck.any():
        logger.warning(
            f"{stuck.sum()} questions are too long for their windows and were cut to {(most - doc_stride) // 2} tokens"
        )
    return np.where(stuck, np.minimum(questions, (most - doc_stride) // 2), questions).astype(np.int32)


def cut_windows(contexts: Texts, room: np.ndarray, doc_stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows of every row, in order: which row, its first token, the one after its last.

    The rule of the tokenizers library (0.21, `Encoding.truncate`): windows of `room` tokens start every
    `room - doc_stride` tokens until one reaches the end of the context.
    """
    begin = contexts.splits[contexts.of_row]
    length = contexts.splits[contexts.of_row + 1] - begin
    step = np.maximum(room - doc_stride, 1)  # where a context fits whole, room may be less than doc_stride
    count = 1 + np.maximum(0, -(-(length - room) // step))
    row = np.repeat(np.arange(len(count), dtype=np.int32), count)
    window = np.arange(len(row)) - (np.cumsum(count) - count)[row]
    first = window * step[row]
    last = np.minimum(first + room[row], length[row])
    return row, (begin[row] + first).astype(np.int32), (begin[row] + last).astype(np.int32)


def no_answer_tokens(tokenizer) -> list[int]:
    """The special tokens that stand for "no answer", the preferred one first."""
    return [token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token is not None]


def no_answer_positions(tokenizer, template: Template, lengths: np.ndarray) -> np.ndarray:
    """(features,) position of the CLS token, else of the BOS token, else 0."""
    for token in no_answer_tokens(tokenizer):
        if token in template.before:
            return np.full(len(lengths), template.before.index(token), dtype=np.int32)
        if token in template.after:
            return (lengths - len(template.after) + template.after.index(token)).astype(np.int32)
    return np.zeros(len(lengths), dtype=np.int32)


def label_windows(rows, features: Features) -> np.ndarray:
    """(features, 2) first and last token of each row's first answer, or the no-answer position twice.

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
    return np.stack([start, stop], axis=1).astype(np.int32)


def gold_spans(rows) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) first character of each row's first answer, and the one after its last; both -1 without an answer."""
    answered = [row["answers"] if row["answers"]["text"] else None for row in rows]
    begin = np.array([-1 if answers is None else answers["answer_start"][0] for answers in answered])
    return begin, begin + [0 if answers is None else len(answers["text"][0]) for answers in answered]


def windows_holding(features: Features, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(features,) whether a window holds all the characters `begin` to `end` (rows,) of its row's context."""
    contexts, row = features.contexts, features.row
    filled = features.last > features.first
    if not filled.any():
        return filled
    left, right = np.where(filled, features.first, 0), np.where(filled, features.last - 1, 0)
    spanned = (contexts.starts[left] <= begin[row]) & (contexts.ends[right] >= end[row])
    return filled & (begin[row] >= 0) & spanned


def same_features(features: Features, rows, tokenizer, max_seq_length: int, doc_stride: int) -> bool:
    """Whether the first rows (those with whole questions) come out as from the tokenizer itself."""
    whole = np.diff(features.questions.splits)[features.questions.of_row] == features.question_length
    checked = np.flatnonzero(whole)[:CHECKED_ROWS]
    if not len(checked):
        return True
    labelled = features.labels is not None
    own = own_features([rows[index] for index in checked], tokenizer, max_seq_length, doc_stride, labelled)
    mine = np.flatnonzero(np.isin(features.row, checked))
    return len(own) == len(mine) and all(features.as_dict(index) == other for index, other in zip(mine, own))


def has_answers(rows) -> bool:
    return any(row["answers"]["text"] for row in rows)


def own_features(rows, tokenizer, max_seq_length: int, doc_stride: int, labelled: bool) -> list[dict]:
    """`prepare_features` by the tokenizer's own `return_overflowing_tokens`, one row at a time."""
    questions = tokenize_distinct([row["question"].lstrip() for row in rows], tokenizer)
    contexts = tokenize_distinct([row["context"] for row in rows], tokenizer)
    lengths = np.diff(questions.splits)[questions.of_row]
    most = max_seq_length - tokenizer.num_special_tokens_to_add(pair=True)
    kept = trim_questions(lengths, np.diff(contexts.splits)[contexts.of_row], most, doc_stride)
    features = []
    for index, row in enumerate(rows):
        question = row["question"].lstrip()
        if kept[index] < lengths[index]:
            question = question[: questions.ends[questions.splits[questions.of_row[index]] + kept[index] - 1]]
        features += own_windows(row, question, tokenizer, max_seq_length, doc_stride, labelled)
    return features


class ListedFeatures(list):
    """Features that the tokenizer built itself, dicts, with what `Features` offers a trainer."""

    widths: np.ndarray | None = None  # (features,) the boundary of each feature's bucket

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        return item if self.widths is None else item | {"width": self.widths[index]}

    def lengths(self) -> np.ndarray:
        """(features,) tokens of each feature."""
        return np.array([len(feature["input_ids"]) for feature in self])


def own_windows(
    row: dict, question: str, tokenizer, max_seq_length: int, doc_stride: int, labelled: bool
) -> list[dict]:
    """The windows of one row, as the tokenizer cuts them."""
    right = tokenizer.padding_side == "right"
    encoding = tokenizer(
        *((question, row["context"]) if right else (row["context"], question)),
        truncation="only_second" if right else "only_first",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    # tokenizers 0.21 then tells which tokens are the context's in the first window only
    untold = tokenizer.backend_tokenizer.post_processor is None
    question_length = encoding.sequence_ids(0).count(int(not right))
    windows = []
    for window, ids in enumerate(encoding["input_ids"]):
        of_text = encoding.sequence_ids(window)
        if untold:
            rest = len(ids) - question_length
            of_text = [0] * question_length + [1] * rest if right else [0] * rest + [1] * question_length
        inside = [sequence == int(right) for sequence in of_text]
        offsets = [span if here else None for span, here in zip(encoding["offset_mapping"][window], inside)]
        feature = {name: encoding[name][window] for name in MODEL_INPUTS if name in encoding}
        special = [token if sequence is None else None for token, sequence in zip(ids, of_text)]
        feature["cls_index"] = next(
            (special.index(token) for token in no_answer_tokens(tokenizer) if token in special), 0
        )
        if labelled:
            positions = answer_positions(offsets, row["answers"]) or (feature["cls_index"],) * 2
            feature["start_positions"], feature["end_positions"] = positions
        windows.append(feature | {"example_id": row["id"], "offset_mapping": offsets})
    return windows


def answer_positions(offsets: list[tuple[int, int] | None], answers: dict) -> tuple[int, int] | None:
    """First and last token of the first gold answer in one window; None when the window does not hold all of it."""
    context = [position for position, span in enumerate(offsets) if span is not None]
    if not answers["text"] or not context:
        return None
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    if offsets[context[0]][0] > begin or offsets[context[-1]][1] < end:
        return None
    start = max(position for position in context if offsets[position][0] <= begin)
    return start, min(position for position in context if offsets[position][1] >= end)


@dataclass
class PaddingCollator:
    """Batches features: pads them to their bucket's width, else to `length` tokens or the batch's longest, on the right.

    On the right whichever side the tokenizer prefers: nothing is generated here, and a causal model's padding on the left
    attends to nothing. Its logits, which the loss counts, are then what a device makes of that, on a Gaudi not what they
    are elsewhere. Returns (batch, length) int64 tensors of the model's inputs, (batch,) labels and `cls_index`; what else a
    feature carries is left behind.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int | None = None
    multiple_of: int = 1

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(feature["input_ids"]) for feature in features]
        bucket = max(feature.get("width", 0) for feature in features)
        width = bucket or self.length or -(-max(lengths) // self.multiple_of) * self.multiple_of
        padding = (self.tokenizer.pad_token_id, 0, self.tokenizer.pad_token_type_id)
        batch = {}
        for name, value in zip(MODEL_INPUTS, padding):
            if name in features[0]:
                table = np.full((len(features), width), value, dtype=np.int64)
                for row, feature, length in zip(table, features, lengths):
                    row[:length] = feature[name]
                batch[name] = torch.from_numpy(table)
        for name in (*LABELS, "cls_index"):
            if name in features[0]:
                batch[name] = torch.tensor([feature[name] for feature in features], dtype=torch.int64)
        return batch


# ---------------------------------------------------------------------------------------------------------------------
# Rows -> features of encoder-decoders: a text to read, and the answer to write


class Seq2SeqFeatures(Features):
    """Features whose label is a text: items hold `labels`, the tokens of the answer to write, where any is known."""

    targets: Texts | None = None  # the distinct answers, special tokens included
    target: np.ndarray | None = None  # (features,) which of them is a feature's

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        if self.targets is not None:
            begin, end = self.targets.splits[self.target[index]], self.targets.splits[self.target[index] + 1]
            item["labels"] = self.targets.ids[begin:end].astype(np.int64)
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
    """The windows of all rows, each to be read as `question: Q context: C` with its stretch of C.

    A context that fits gives one feature, the tokenizer's own ids of that text. A longer one is cut as for
    `prepare_features`: windows share `doc_stride` tokens, the question stands in front of each, and a question that
    leaves no room is cut.

    The target is the first gold answer, at most `max_answer_length` tokens with the special ones. Windows that do not
    hold it have the empty target with negatives; without, they are left out of training and keep the answer for the
    evaluation loss. Rows without an answer have the empty target.

    Raises:
        UserError: there is nothing to train on.
    """
    template = read_seq2seq_template(tokenizer)
    questions, contexts = seq2seq_texts(rows, tokenizer, template)
    features = windows_of(Seq2SeqFeatures, rows, questions, contexts, template, tokenizer, max_seq_length, doc_stride)
    if not (training or has_answers(rows)):
        return features
    cut = [len(row["context"]) - len(row["context"].lstrip()) - 1 for row in rows]  # seq2seq_texts puts a space there
    begin, end = gold_spans(rows)
    only = np.bincount(features.row, minlength=len(rows)) == 1
    holds = windows_holding(features, np.where(begin < 0, -1, begin - cut), end - cut) | only[features.row]
    if training and not version_2_with_negative:
        keep_windows(features, holds)
        holds = holds[holds]
    written = [row["answers"]["text"][0] if row["answers"]["text"] else "" for row in rows]
    of_window = np.array(written, dtype=object)[features.row]
    if version_2_with_negative:
        of_window[~holds] = ""
    features.targets = tokenize_targets(of_window.tolist(), tokenizer, max_answer_length)
    features.target = features.targets.of_row
    return features


def read_seq2seq_template(tokenizer) -> Template:
    """What stands around question and context: the special tokens of one text, and the word that begins the context.

    "question:" is not among it; it is the beginning of the question's text.
    """
    probe = tokenizer("a")
    inside = probe.sequence_ids().index(0)
    last = len(probe["input_ids"]) - probe.sequence_ids()[::-1].index(0)
    before, after = probe["input_ids"][:inside], probe["input_ids"][last:]
    between = tokenizer.backend_tokenizer.encode(" context:", add_special_tokens=False).ids
    return Template(before, between, after, types=(0,) * 5, context_first=False)


def seq2seq_texts(rows, tokenizer, template: Template) -> tuple[Texts, Texts]:
    """The tokens of `question: Q` and of ` C`, each distinct text tokenized once.

    Where a check on the first rows finds that the parts do not add up to the whole, every whole text is tokenized.
    """
    questions = [f"question: {row['question'].lstrip()}" for row in rows]
    contexts = [f" {row['context'].lstrip()}" for row in rows]
    parts = tokenize_distinct(questions, tokenizer, offsets=False), tokenize_distinct(contexts, tokenizer)
    for index in range(min(CHECKED_ROWS, len(rows))):
        question, context = (texts.ids[slice(*texts.splits[texts.of_row[index] :][:2])] for texts in parts)
        own = tokenizer(f"{questions[index]} context:{contexts[index]}")["input_ids"]
        if own != [*template.before, *question, *template.between, *context, *template.after]:
            logger.warning("This tokenizer joins words of question and context; every text is tokenized whole")
            template.between = []
            return split_texts([f"{question} context:" for question in questions], contexts, tokenizer)
    return parts


def split_texts(fronts: list[str], contexts: list[str], tokenizer) -> tuple[Texts, Texts]:
    """The tokens of each front and of the context behind it, out of the tokens of both together."""
    whole = tokenize_distinct([front + context for front, context in zip(fronts, contexts)], tokenizer)
    begin, end = whole.splits[whole.of_row], whole.splits[whole.of_row + 1]
    fronts_length = np.array([len(front) for front in fronts])
    middle = [first + np.searchsorted(whole.ends[first:last], length, side="right")
              for first, last, length in zip(begin, end, fronts_length)]  # fmt: skip
    return take_texts(whole, begin, middle, 0), take_texts(whole, middle, end, fronts_length)


def take_texts(texts: Texts, begin, end, shift) -> Texts:
    """The tokens `begin[i]` to `end[i]` of `texts` as one text a row, its characters counted from `shift[i]` on."""
    length = np.subtract(end, begin)
    token = np.repeat(np.asarray(begin) - (np.cumsum(length) - length), length) + np.arange(length.sum())
    shift = np.repeat(np.broadcast_to(shift, length.shape), length)
    splits = np.cumsum([0, *length])
    return Texts(
        np.arange(len(length)), splits, texts.ids[token], texts.starts[token] - shift, texts.ends[token] - shift
    )


def keep_windows(features: Features, kept: np.ndarray) -> None:
    """Leaves out the windows that are not `kept`, and tells of questions that lose all of theirs."""
    lost = len(features.row_ids) - len(np.unique(features.row[kept]))
    if lost:
        logger.warning(f"{lost} answers lie in no single window; their questions are left out of training")
    if not kept.any():
        raise UserError("no window holds a whole answer, so there is nothing to train on; raise --max_seq_length")
    features.row, features.first, features.last = (a[kept] for a in (features.row, features.first, features.last))


def tokenize_targets(texts: list[str], tokenizer, max_length: int) -> Texts:
    """The answers as labels, at most `max_length` tokens each with the special ones; without places in the text."""
    distinct = list(dict.fromkeys(texts))
    number = {text: index for index, text in enumerate(distinct)}
    ids = tokenizer(text_target=distinct, max_length=max_length, truncation=True)["input_ids"]
    splits = np.cumsum([0, *map(len, ids)])
    nowhere = np.zeros(0, dtype=np.int32)
    of_row = np.array([number[text] for text in texts], dtype=np.int32)
    return Texts(of_row, splits, np.fromiter(chain.from_iterable(ids), np.int32, splits[-1]), nowhere, nowhere)


@dataclass
class Seq2SeqCollator(PaddingCollator):
    """`PaddingCollator` that also pads `labels`, to `label_length` tokens or to the batch's longest answer.

    `decoder_inputs` (labels -> ids, both padded) makes `decoder_input_ids`, for a loss that the model does not compute.
    """

    label_length: int | None = None
    label_padding: int = -100
    decoder_inputs: Callable[..., torch.Tensor] | None = None

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(features)
        if "labels" in features[0]:
            width = self.label_length or max(len(feature["labels"]) for feature in features)
            table = np.full((len(features), width), self.label_padding, dtype=np.int64)
            for row, feature in zip(table, features):
                row[: len(feature["labels"])] = feature["labels"]
            batch["labels"] = torch.from_numpy(table)
            if self.decoder_inputs is not None:
                batch["decoder_input_ids"] = self.decoder_inputs(labels=batch["labels"])
        return batch


# ---------------------------------------------------------------------------------------------------------------------
# Logits -> answers


@dataclass
class Answers:
    """What the model answers, by example id in the order of the examples."""

    texts: dict[str, str]  # the answer, empty for "no answer"
    nbest: dict[str, str]  # JSON of the candidates with their scores and probabilities, from best to worst
    null_odds: dict[str, float]  # with negatives: score of no answer minus score of the best text
    best_texts: dict[str, str]  # the best non-empty text, whatever the null score


class SpansOfDicts:
    """The arrays that answers need (as `Features` has them) out of features in dicts."""

    def __init__(self, features: Sequence[dict], ids: list[str]):
        number = {identity: index for index, identity in enumerate(ids)}
        columns = getattr(features, "column_names", None) or features[0].keys()
        self.row = np.array([number[identity] for identity in column_of(features, "example_id")], dtype=np.int32)
        self.spans = column_of(features, "offset_mapping")
        self.max_context = column_of(features, "token_is_max_context") if "token_is_max_context" in columns else None
        self.cls_index = np.array(
            column_of(features, "cls_index") if "cls_index" in columns else np.zeros(len(self.row), int)
        )

    def characters(self, chosen: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Features.characters`; a token that has more context in another window has no first character either."""
        begin = np.full(positions.shape, -1)
        end = begin.copy()
        for line, index in enumerate(chosen):
            spans = self.spans[index]
            allowed = self.max_context[index] if self.max_context is not None else None
            for column, position in enumerate(positions[line].tolist()):
                span = spans[position] if 0 <= position < len(spans) else None
                if span is not None and len(span) >= 2:
                    end[line, column] = span[1]
                    if allowed is None or allowed.get(str(position), False):
                        begin[line, column] = span[0]
        return begin, end


@dataclass
class Candidates:
    """What answers need of the logits of each feature: its best starts and ends, and its no-answer position."""

    starts: np.ndarray  # (features, n) positions, best first; -1 where there are fewer
    ends: np.ndarray
    start_logits: np.ndarray  # (features, n)
    end_logits: np.ndarray
    null_logits: np.ndarray  # (features, 2) start and end logit of the no-answer position

    def __len__(self) -> int:
        return len(self.starts)

    def of(self, chosen: np.ndarray) -> "Candidates":
        """Those of some features."""
        return Candidates(*(getattr(self, column.name)[chosen] for column in fields(self)))

    def packed(self) -> np.ndarray:
        """All in one (features, 4 n + 2) float32 array, which holds positions exactly up to 2 ** 24."""
        return np.concatenate([getattr(self, column.name) for column in fields(self)], axis=1, dtype=np.float32)

    @classmethod
    def unpacked(cls, table: np.ndarray) -> "Candidates":
        """What `packed` was given."""
        n = table.shape[1] // 4
        starts, ends, *logits = np.split(table, [n, 2 * n, 3 * n, 4 * n], axis=1)
        return cls(starts.astype(np.int32), ends.astype(np.int32), *logits)


def best_positions(logits: tuple[np.ndarray, np.ndarray], cls_index: np.ndarray, n_best_size: int) -> Candidates:
    """The `n_best_size` best starts and ends of each feature.

    Args:
        logits: of starts and ends, (features, length) each.
        cls_index: (features,) the position that stands for "no answer".
    """
    positions, values = [], []
    for side in logits:
        # The same argsort as a loop over windows would call, so that ties fall as they do there; argpartition's do not.
        best = np.argsort(side, axis=1)[:, : -n_best_size - 1 : -1].astype(np.int32)
        missing = ((0, 0), (0, n_best_size - best.shape[1]))
        values.append(np.pad(np.take_along_axis(side, best, axis=1), missing))
        positions.append(np.pad(best, missing, constant_values=-1))
    null = [np.take_along_axis(side, cls_index[:, None], axis=1) for side in logits]
    return Candidates(*positions, *values, np.concatenate(null, axis=1))


def column_of(table, name: str) -> list:
    """A column of a `datasets.Dataset` or of a list of dicts."""
    return list(table[name]) if hasattr(table, "column_names") else [row[name] for row in table]


def postprocess_qa_predictions(
    examples,
    features,
    predictions: tuple[np.ndarray, np.ndarray],
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
        predictions: start and end logits, (features, length) each, aligned with the features' first tokens.
        output_dir: where `predictions.json`, `nbest_predictions.json` and, with negatives, `null_odds.json` go, with
            `prefix` and an underscore in front of their names.

    Raises:
        ValueError: `predictions` do not match the features, or with negatives an example has no feature.
    """
    logger.setLevel(log_level)
    parts = find_answers(
        examples,
        features,
        predictions,
        version_2_with_negative,
        n_best_size,
        max_answer_length,
        null_score_diff_threshold,
    )
    if output_dir is None:
        return {identity: text for part in parts for identity, text in part.texts.items()}
    return write_answers(parts, output_dir, prefix).texts


def find_answers(
    examples,
    features,
    predictions: tuple[np.ndarray, np.ndarray] | Candidates,
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
) -> Iterator[Answers]:
    """What `postprocess_qa_predictions` writes and returns, and the best non-empty texts; of some examples at a time.

    `predictions` may also be the `best_positions` of the logits.
    """
    if not isinstance(predictions, Candidates):
        if len(predictions) != 2:
            raise ValueError("`predictions` should be a tuple with two elements (start_logits, end_logits)")
        predictions = tuple(map(np.asarray, predictions))
    count = len(predictions if isinstance(predictions, Candidates) else predictions[0])
    if count != len(features):
        raise ValueError(f"got {count} predictions and {len(features)} features")
    ids, contexts = column_of(examples, "id"), column_of(examples, "context")
    if not (isinstance(features, Features) and features.row_ids == ids):
        features = (
            [features.as_dict(index) for index in range(len(features))] if isinstance(features, Features) else features
        )
        features = SpansOfDicts(features, ids)
    order = np.argsort(features.row, kind="stable")
    bounds = np.searchsorted(features.row[order], np.arange(len(ids) + 1))
    if version_2_with_negative and (np.diff(bounds) == 0).any():
        raise ValueError(f"example {ids[np.flatnonzero(np.diff(bounds) == 0)[0]]!r} has no feature")

    def part(begin: int, end: int) -> Answers:
        chosen = order[bounds[begin] : bounds[end]]
        if isinstance(predictions, Candidates):
            best = predictions.of(chosen)
        else:
            best = best_positions(
                tuple(values[chosen] for values in predictions), features.cls_index[chosen], n_best_size
            )
        spans = window_spans(features, chosen, best, n_best_size, max_answer_length)
        spans["example"] = (features.row[chosen] - begin)[spans.pop("window")]
        null = null_spans(best.null_logits, features.row[chosen] - begin) if version_2_with_negative else None
        kept = rank_spans(spans, null, n_best_size)
        return collect_answers(ids[begin:end], contexts[begin:end], kept, null, null_score_diff_threshold)

    return starmap(part, cuts(bounds, max(1, PAIRS_AT_ONCE // n_best_size**2)))


def cuts(bounds: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Examples to answer at once, from one to before another: `EXAMPLES_AT_ONCE` at most, with `most` windows at most,
    which `bounds` (examples + 1,) says the first of; or one example."""
    begin = 0
    while begin < len(bounds) - 1:
        end = np.searchsorted(bounds, bounds[begin] + most, side="right") - 1
        end = min(max(int(end), begin + 1), begin + EXAMPLES_AT_ONCE, len(bounds) - 1)
        yield begin, end
        begin = end


def window_spans(
    features, chosen, best: Candidates, n_best_size: int, max_answer_length: int
) -> dict[str, np.ndarray]:
    """The candidate spans of the windows `chosen`, one by one, the best starts first and for each the best ends first.

    Columns: `window`, `begin`, `end` (characters), `start_logit`, `end_logit`, `score`.
    """
    start, end, start_logit, end_logit = best.starts, best.ends, best.start_logits, best.end_logits
    begin_char, end_char = features.characters(chosen, start)[0], features.characters(chosen, end)[1]
    further = end[:, None, :] - start[:, :, None]
    allowed = (
        (further >= 0) & (further < max_answer_length) & (begin_char >= 0)[:, :, None] & (end_char >= 0)[:, None, :]
    )
    allowed = allowed.reshape(len(start), -1)
    if n_best_size < allowed.shape[1]:  # what is not among a window's best cannot be among its example's; ties stay
        score = (start_logit[:, :, None] + end_logit[:, None, :]).reshape(allowed.shape)
        score[~allowed] = -np.inf
        allowed &= ~(score < np.partition(score, -n_best_size, axis=1)[:, -n_best_size, None])
    window, pair = np.divmod(np.flatnonzero(allowed), max(1, allowed.shape[1]))
    row, column = np.divmod(pair, max(1, end.shape[1]))
    start_logit, end_logit = start_logit[window, row], end_logit[window, column]
    return {
        "window": window,
        "begin": begin_char[window, row],
        "end": end_char[window, column],
        "start_logit": start_logit,
        "end_logit": end_logit,
        "score": start_logit + end_logit,
    }


def null_spans(logits: np.ndarray, example: np.ndarray) -> dict[str, np.ndarray]:
    """The no-answer candidate of every example: that of its window with the lowest null score, the first of equals."""
    start_logit, end_logit = logits.T
    score = start_logit + end_logit
    order = np.lexsort((score, example))
    lowest = order[np.flatnonzero(np.diff(example[order], prepend=-1))]
    return {
        "example": example[lowest],
        "begin": np.zeros(len(lowest), dtype=np.int64),
        "end": np.zeros(len(lowest), dtype=np.int64),
        "start_logit": start_logit[lowest],
        "end_logit": end_logit[lowest],
        "score": score[lowest],
    }


def rank_spans(spans: dict, null: dict | None, n_best_size: int) -> dict[str, np.ndarray]:
    """The `n_best_size` best candidates of every example, best first; the null candidate last when it is not among them."""
    if null is not None:
        spans = {name: np.concatenate([spans[name], null[name]]) for name in null}
    order = np.argsort(-spans["score"], kind="stable")
    order = order[np.argsort(spans["example"][order].astype(np.uint16), kind="stable")]  # a radix sort, for 16 bits
    example = spans["example"][order]
    rank = np.arange(len(order)) - np.searchsorted(example, np.arange(EXAMPLES_AT_ONCE))[example]
    kept = {name: column[order[rank < n_best_size]] for name, column in spans.items()}
    if null is not None:
        empty = (kept["begin"] == 0) & (kept["end"] == 0)
        lost = ~np.isin(null["example"], kept["example"][empty])
        kept = {name: np.concatenate([column, null[name][lost]]) for name, column in kept.items()}
        order = np.argsort(kept["example"], kind="stable")
        kept = {name: column[order] for name, column in kept.items()}
    return kept


def collect_answers(ids, contexts, kept: dict, null: dict | None, threshold: float) -> Answers:
    """Those of the examples `ids`: texts, n-best rows with probabilities, null odds."""
    answers = Answers({}, {}, {}, {})
    bounds = np.searchsorted(kept["example"], np.arange(len(ids) + 1))
    begins, ends = kept["begin"].tolist(), kept["end"].tolist()
    spans = zip(kept["example"].tolist(), begins, ends)
    texts = [encode_basestring_ascii(contexts[example][begin:end]) for example, begin, end in spans]
    rows = nbest_rows(kept["start_logit"], kept["end_logit"], texts, softmax_of_groups(kept["score"], bounds))
    nbest = json_of_groups(rows, bounds)
    edges = bounds.tolist()
    for index, identity in enumerate(ids):
        first, last = edges[index], edges[index + 1]
        best = next((place for place in range(first, last) if texts[place] != '""'), None)
        if best is not None:
            answers.best_texts[identity] = contexts[index][begins[best] : ends[best]]
            answers.texts[identity] = answers.best_texts[identity] if best == first else ""
        elif last - first <= 1 or null is not None:
            answers.best_texts[identity] = answers.texts[identity] = "empty"
            nbest[index] = with_empty_row(*(kept[name][first:last] for name in ("start_logit", "end_logit", "score")))
        else:
            answers.best_texts[identity] = answers.texts[identity] = ""
        answers.nbest[identity] = nbest[index]
        if null is not None:
            best_logits = (kept["start_logit"][best], kept["end_logit"][best]) if best is not None else (0, 0)
            odds = null["score"][index] - best_logits[0] - best_logits[1]
            answers.null_odds[identity] = float(odds)
            answers.texts[identity] = "" if odds > threshold else answers.best_texts[identity]
    return answers


def softmax_of_groups(scores: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    """The softmax of every group `scores[bounds[i]:bounds[i + 1]]`.

    Groups of one size are rows of one table, so that each is summed in the order in which numpy sums it alone.
    """
    result = np.empty(len(scores), dtype=scores.dtype)
    bounds = np.asarray(bounds)
    sizes = np.diff(bounds)
    for size in np.unique(sizes[sizes > 0]):
        places = bounds[:-1][sizes == size, None] + np.arange(size)
        table = scores[places]
        table = np.exp(table - table.max(axis=1, keepdims=True))
        result[places] = table / table.sum(axis=1, keepdims=True)
    return result


def nbest_rows(start_logits, end_logits, texts: list[str], probabilities) -> pyarrow.StringArray:
    """The rows of the n-best file, as `json.dumps` writes them at their indentation; `texts` are JSON already."""
    start, end, probability = map(float_strings, (start_logits, end_logits, probabilities))
    text = pyarrow.array(texts, pyarrow.string())
    return json_of_objects(start_logit=start, end_logit=end, text=text, probability=probability)


def json_of_objects(**columns: pyarrow.StringArray) -> pyarrow.StringArray:
    """One JSON object a row, out of columns that are JSON already."""
    parts, before = [], "        {\n"
    for name, column in columns.items():
        parts += [f'{before}            "{name}": ', column]
        before = ",\n"
    return pyarrow.compute.binary_join_element_wise(*parts, "\n        }", "")


def json_of_groups(rows: pyarrow.StringArray, bounds: np.ndarray) -> list[str]:
    """JSON lists of the rows `bounds[i]` to `bounds[i + 1]` each."""
    groups = pyarrow.ListArray.from_arrays(pyarrow.array(bounds, pyarrow.int32()), rows)
    joined = pyarrow.compute.binary_join(groups, ",\n")
    return pyarrow.compute.binary_join_element_wise("[\n", joined, "\n    ]", "").to_pylist()


def with_empty_row(start_logits: np.ndarray, end_logits: np.ndarray, scores: np.ndarray) -> str:
    """N-best rows that hold no text, behind the reference's row for that case: the text "empty" with score 0."""
    probabilities = softmax_of_groups(np.array([0.0, *scores]), [0, len(scores) + 1])
    zero = float_strings(np.zeros(1))
    columns = {"text": pyarrow.array(['"empty"']), "start_logit": zero, "end_logit": zero}
    first = json_of_objects(**columns, probability=float_strings(probabilities[:1]))
    others = nbest_rows(start_logits, end_logits, ['""'] * (len(scores)), probabilities[1:])
    return json_of_groups(pyarrow.concat_arrays([first, others]), np.array([0, len(probabilities)]))[0]


def float_strings(values: np.ndarray) -> pyarrow.StringArray:
    """Every number as `json.dumps` writes it: by Arrow's cast, five times as fast, where that has the same form.

    Both write the shortest digits that read back as the same number, but whole numbers and exponents look different.
    """
    values = values.astype(np.float64)
    size = np.abs(values)
    other_form = ~((size >= 1e-4) & (size < 1e10) & (size != np.floor(size)))
    strings = pyarrow.compute.cast(pyarrow.array(values), pyarrow.string())
    others = [repr(value) if value - value == 0 else json.dumps(value) for value in values[other_form].tolist()]
    return pyarrow.compute.replace_with_mask(strings, other_form, pyarrow.array(others, pyarrow.string()))


def choose_windows(
    examples,
    features: Seq2SeqFeatures,
    texts: list[str],
    scores: np.ndarray,
    null_scores: np.ndarray | None = None,
    null_score_diff_threshold: float = 0.0,
) -> Answers:
    """The answer of every example out of what was written for each of its windows: the text with the best score.

    Args:
        texts: (features,) what the model wrote.
        scores: (features,) the log-probability of that.
        null_scores: (features,) with negatives, the log-probability of the empty answer. An example's null score is the
            lowest of its windows, as in `find_answers`, and the answer is empty when it exceeds the best text's score
            by more than `null_score_diff_threshold`.

    The n-best rows, one for each window, are `{text, score, probability, window}`, with negatives also `null_score`;
    probabilities are a softmax over the windows' scores, and `window` counts from the beginning of the context.
    """
    ids = column_of(examples, "id")
    if features.row_ids != ids or len(texts) != len(features):
        raise ValueError(f"got {len(texts)} texts and {len(features)} features of {len(features.row_ids)} examples")
    blank = np.array([null_scores is not None and not text.strip() for text in texts])
    order = np.lexsort((-scores, blank, features.row))
    bounds = np.searchsorted(features.row[order], np.arange(len(ids) + 1))
    window = np.arange(len(features)) - np.searchsorted(features.row, np.arange(len(ids)))[features.row]
    texts, scores = [texts[index] for index in order], scores[order]
    columns = {
        "text": pyarrow.array(map(encode_basestring_ascii, texts), pyarrow.string()),
        "score": float_strings(scores),
        "probability": float_strings(softmax_of_groups(scores, bounds)),
        "window": pyarrow.compute.cast(pyarrow.array(window[order]), pyarrow.string()),
    }
    if null_scores is not None:
        columns["null_score"] = float_strings(null_scores[order])
    nbest = dict(zip(ids, json_of_groups(json_of_objects(**columns), bounds)))
    best_texts = {identity: texts[first] for identity, first in zip(ids, bounds)}
    if null_scores is None:
        return Answers(best_texts, nbest, {}, best_texts)
    odds = np.minimum.reduceat(null_scores[order], bounds[:-1]) - scores[bounds[:-1]]
    null_odds = dict(zip(ids, odds.tolist()))
    chosen = {name: "" if null_odds[name] > null_score_diff_threshold else best_texts[name] for name in ids}
    return Answers(chosen, nbest, null_odds, best_texts)


def write_answers(parts: Iterable[Answers], output_dir: str, prefix: str | None = None) -> Answers:
    """Writes `predictions.json`, `nbest_predictions.json` and, where there are any, `null_odds.json`.

    The bytes are those of `json.dumps(..., indent=4)`, which has no fast encoder for indented output.

    Returns:
        All parts as one, but for the n-best rows: they take the most memory, and are written part by part.
    """
    folder, before = Path(output_dir), "" if prefix is None else f"{prefix}_"
    os.makedirs(folder, exist_ok=True)
    whole = Answers({}, {}, {}, {})

    def nbest_of_parts() -> Iterator[tuple[str, str]]:
        for part in parts:
            for name in ("texts", "null_odds", "best_texts"):
                getattr(whole, name).update(getattr(part, name))
            yield from part.nbest.items()

    write_object(folder / f"{before}nbest_predictions.json", nbest_of_parts())
    texts = zip(whole.texts, map(encode_basestring_ascii, whole.texts.values()))
    write_object(folder / f"{before}predictions.json", texts)
    if whole.null_odds:
        odds = float_strings(np.array(list(whole.null_odds.values()))).to_pylist()
        write_object(folder / f"{before}null_odds.json", zip(whole.null_odds, odds))
    return whole


def write_object(path: Path, items: Iterable[tuple[str, str]]) -> None:
    """Writes a JSON object, entry by entry; the values are JSON already."""
    before = "\n"
    with path.open("w") as file:
        file.write("{")
        for key, value in items:
            file.write(f"{before}    {encode_basestring_ascii(str(key))}: {value}")
            before = ",\n"
        file.write("}\n" if before == "\n" else "\n}\n")
