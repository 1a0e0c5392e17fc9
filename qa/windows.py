"""Tokenized texts, the template around them, and cutting windows: what both kinds of features are built from."""

import copy
import json
import logging
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


logger = logging.getLogger(__name__)


# At most this number of rows are also tokenized by the tokenizer itself, to check that both ways agree.
CHECKED_ROWS = 16


# Texts that are tokenized together: the tokenizers library keeps over 100 bytes for each token until the arrays exist.
TEXTS_AT_ONCE = 1000


# In place of the character where an answer begins: the row has no answer; the answer's place is unknown.
NO_ANSWER, UNKNOWN_SPAN = -1, -2


# This label counts in no loss: models of transformers 4.55 ignore positions after the last one.
IGNORED = np.iinfo(np.int32).max


MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PACKED_INPUTS = ("places", "segments", "position_ids")  # in addition, of `qa.packing.PackingCollator`


# Unicode reserves this character: no text may hold it. `literal_tokenizer` puts it before the names of special tokens.
NO_CHARACTER = "\ufdd0"


@dataclass
class Template:
    """The tokens around a pair of texts, `before first between second after`, and the token types of each part."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple  # of before, first, between, second, after: one type for all tokens of a part, or a list
    context_first: bool = False  # otherwise the question comes first
    causal: bool = False  # for models whose tokens see only the tokens before them
    appended: bool = False  # whether `after` ends in a token that the tokenizer does not add

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass
class Texts:
    """Distinct texts, tokenized one after the other: text i holds the tokens `splits[i]` to `splits[i + 1]`.

    Three rows that share two contexts, of three and of four tokens:

    >>> from tokenizers import pre_tokenizers
    >>> words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> rows = ["The Nile floods", "Cairo is a city", "The Nile floods"]
    >>> texts = tokenize_distinct(rows, PreTrainedTokenizerFast(tokenizer_object=words))
    >>> texts.splits.tolist(), texts.of_row.tolist()
    ([0, 3, 7], [0, 1, 0])
    >>> texts.starts.tolist()
    [0, 4, 9, 0, 6, 9, 11]
    """

    of_row: np.ndarray  # (rows,) the text of each row
    splits: np.ndarray  # (texts + 1,)
    ids: np.ndarray | None  # (tokens,); None once the `qa.features.Tokens` of features have them
    starts: np.ndarray  # (tokens,) first character of each token in its text; (0,) where it is not needed
    ends: np.ndarray  # (tokens,) the one after its last; likewise

    def __len__(self) -> int:
        return len(self.splits) - 1

    def forget_offsets(self) -> None:
        """Free the characters of the tokens."""
        self.starts = self.ends = np.zeros(0, dtype=np.int32)

    def of(self, row: int) -> np.ndarray:
        """Return the ids of a row's text."""
        text = self.of_row[row]
        return self.ids[self.splits[text] : self.splits[text + 1]]


@dataclass(frozen=True)
class WindowSpec:
    """How texts become windows."""

    tokenizer: PreTrainedTokenizerFast  # from `literal_tokenizer`
    template: Template
    max_seq_length: int  # tokens of a window at most
    doc_stride: int  # tokens that neighbouring windows of one context share

    @property
    def room(self) -> int:
        """Return the tokens of question and context together that a window holds."""
        return self.max_seq_length - self.template.special_tokens


def windows_of(kind: type, rows, questions: Texts, contexts: Texts, spec: WindowSpec):
    """Return all windows of all rows, without labels, as an instance of `kind`."""
    kept = trim_questions(
        lengths_of_rows(questions), lengths_of_rows(contexts), room=spec.room, doc_stride=spec.doc_stride
    )
    row, first, last = cut_windows(contexts, spec.room - kept, spec.doc_stride)
    names = [name for name in spec.tokenizer.model_input_names if name in ("attention_mask", "token_type_ids")]
    parts = {"questions": questions, "contexts": contexts, "template": spec.template, "names": names}
    return kind(rows, **parts, row=row, first=first, last=last, question_length=kept)


def lengths_of_rows(texts: Texts) -> np.ndarray:
    """Return the number of tokens of each row's text, (rows,)."""
    return np.diff(texts.splits)[texts.of_row]


def literal_tokenizer(tokenizer):
    """Return a copy of a tokenizer that takes texts literally: the name of a special token in a text is plain text.

    Tokens that were added to the vocabulary without being special are still found in texts. Ids stay as they are.

    The backend of the copy looks for no special token. BPE, which builds its pieces from characters, needs no more.
    Other models look up whole pieces in their vocabulary, where the copy's special tokens have names that no text
    holds. A copy of a copy is the copy itself.
    """
    if getattr(tokenizer, "is_literal", False):
        return tokenizer
    literal = copy.deepcopy(tokenizer)
    literal.is_literal = True
    backend = literal.backend_tokenizer
    backend.add_special_tokens(literal.all_special_tokens)  # also those that a file lists without marking them
    literal.split_special_tokens = backend.encode_special_tokens = True
    if not isinstance(backend.model, models.BPE):
        settings = backend.to_str()
        for token in literal.added_tokens_decoder.values():
            if token.special:
                settings = settings.replace(quoted(token.content), quoted(NO_CHARACTER + token.content))
        backend.model = Tokenizer.from_str(settings).model
    return literal


def quoted(text: str) -> str:
    """Return a text as the tokenizers library writes it in JSON."""
    return json.dumps(text, ensure_ascii=False)


def read_template(tokenizer, causal: bool = False) -> Template:
    """Return the special tokens that the tokenizer puts around a pair of texts, read off a probe pair.

    For encoders the tokenizer decides on the order: one that pads on the left puts the context first. The context
    tokens of a `causal` model see nothing that comes after them, so the question always comes first. Its windows end
    in a special token, which sees all of the window: the tokenizer's own, else its end-of-text token.
    """
    probe = tokenizer("a", "b", return_token_type_ids=True)
    of_text = [2 if sequence is None else sequence for sequence in probe.sequence_ids()]
    first, second = of_text.index(0), of_text.index(1)
    first_end = len(of_text) - of_text[::-1].index(0)
    second_end = len(of_text) - of_text[::-1].index(1)
    ids, types = probe["input_ids"], probe["token_type_ids"]
    template = Template(
        before=ids[:first],
        between=ids[first_end:second],
        after=ids[second_end:],
        types=(types[:first], types[first], types[first_end:second], types[second], types[second_end:]),
        context_first=tokenizer.padding_side == "left" and not causal,
        causal=causal,
    )
    if causal and not template.after:
        template.after, template.appended = [closing_token(tokenizer)], True
        template.types = (*template.types[:4], types[second])
    return template


def closing_token(tokenizer) -> int:
    """Return the special token that ends a causal model's window where its tokenizer adds none; 0 if it has none."""
    known = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return next((token for token in known if token is not None), 0)


def tokenize_distinct(texts: list[str], tokenizer, offsets: bool = True) -> Texts:
    """Tokenize each distinct text once, without special tokens.

    Without `offsets` that takes half the time, and there are no `starts` and `ends`.
    """
    distinct = dict.fromkeys(texts)
    number = {text: index for index, text in enumerate(distinct)}
    encoded = tokenizer.backend_tokenizer
    encoded.no_truncation()
    encoded.no_padding()
    encode = encoded.encode_batch if offsets else encoded.encode_batch_fast
    once = list(distinct)
    batches = (once[begin : begin + TEXTS_AT_ONCE] for begin in range(0, max(len(once), 1), TEXTS_AT_ONCE))
    arrays = (token_arrays(encode(batch, add_special_tokens=False), offsets) for batch in batches)
    lengths, ids, spans = map(np.concatenate, zip(*arrays))
    return Texts(
        of_row=np.array([number[text] for text in texts], dtype=np.int32),
        splits=np.cumsum(np.concatenate([[0], lengths])),
        ids=ids,
        starts=spans[::2].copy(),
        ends=spans[1::2].copy(),
    )


def token_arrays(encodings: list, offsets: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of tokens of each text; the ids of all tokens; with `offsets` start and end of each, in turn."""
    lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, total)
    spans = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings if offsets))
    return lengths, ids, np.fromiter(spans, np.int32, 2 * total * offsets)


def trim_questions(questions: np.ndarray, contexts: np.ndarray, room: int, doc_stride: int) -> np.ndarray:
    """Return the number of tokens to keep of each question, (rows,), where question and context share `room` tokens.

    A context that does not fit next to its question is cut into windows that share `doc_stride` tokens, so the
    question must leave more room than that. A longer question keeps half of the room without `doc_stride`: with a room
    of 12 and a stride of 4 that is 4 tokens. A long question whose context fits stays whole.

    Args:
        questions, contexts: (rows,) tokens of each.

    >>> trim_questions(np.array([3, 9, 9]), np.array([20, 20, 3]), room=12, doc_stride=4).tolist()
    [3, 4, 9]
    """
    stuck = (questions + contexts > room) & (room - questions <= doc_stride)
    longest = (room - doc_stride) // 2
    if stuck.any():
        logger.warning(f"{stuck.sum()} questions are too long for their windows and were cut to {longest} tokens")
    return np.where(stuck, np.minimum(questions, longest), questions).astype(np.int32)


def cut_windows(contexts: Texts, room: np.ndarray, doc_stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of every window, in order, the row, the first token in `contexts.ids` and the one after its last.

    The rule is that of the tokenizers library (0.21, `Encoding.truncate`): windows of `room` (rows,) tokens start
    every `room - doc_stride` tokens until one reaches the end of the context. A context of 10 tokens with a room of 4
    and a stride of 1 has windows that start at 0, 3 and 6; the next context, of 3 tokens, has one:

    >>> contexts = Texts(of_row=np.array([0, 1]), splits=np.array([0, 10, 13]), ids=None, starts=None, ends=None)
    >>> [column.tolist() for column in cut_windows(contexts, room=np.array([4, 4]), doc_stride=1)]
    [[0, 0, 0, 1], [0, 3, 6, 10], [4, 7, 10, 13]]
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
    """Return the special tokens that may mean "no answer", the preferred one first."""
    return [token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token is not None]


def no_answer_positions(tokenizer, template: Template, lengths: np.ndarray) -> np.ndarray:
    """Return the position that means "no answer" in each feature, (features,).

    It is that of the CLS token, else of the BOS token, else 0; for causal models that of the last token.
    """
    if template.causal:
        return (lengths - 1).astype(np.int32)
    for token in no_answer_tokens(tokenizer):
        if token in template.before:
            return np.full(len(lengths), template.before.index(token), dtype=np.int32)
        if token in template.after:
            return (lengths - len(template.after) + template.after.index(token)).astype(np.int32)
    return np.zeros(len(lengths), dtype=np.int32)


def gold_span(answers: dict | None) -> tuple[int, int]:
    """Return the first character of a row's first answer and the one after its last, or NO_ANSWER or UNKNOWN_SPAN twice.

    >>> gold_span({"text": ["Cairo"], "answer_start": [36]}), gold_span({"text": [], "answer_start": []})
    ((36, 41), (-1, -1))
    >>> gold_span({"text": ["paraphrase"], "answer_start": [-1]}), gold_span(None)
    ((-2, -2), (-2, -2))
    """
    if answers is not None and not answers["text"]:
        return NO_ANSWER, NO_ANSWER
    if answers is None or answers["answer_start"][0] < 0:
        return UNKNOWN_SPAN, UNKNOWN_SPAN
    return answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])


def gold_spans(rows) -> tuple[np.ndarray, np.ndarray]:
    """Return `gold_span` of every row, (rows,) each."""
    spans = np.array([gold_span(row["answers"]) for row in rows])
    return spans[:, 0], spans[:, 1]


def windows_holding(features, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return whether each window holds all characters `begin` to `end` (rows,) of its row's context, (features,)."""
    contexts, row = features.contexts, features.row
    filled = features.last > features.first
    if not filled.any():
        return filled
    left, right = np.where(filled, features.first, 0), np.where(filled, features.last - 1, 0)
    spanned = (contexts.starts[left] <= begin[row]) & (contexts.ends[right] >= end[row])
    return filled & (begin[row] >= 0) & spanned


def has_answers(rows) -> bool:
    """Return whether the answer of any row, or that it has none, is known."""
    return any(row["answers"] is not None for row in rows)


def has_labels(rows) -> bool:
    """Return whether the place of any row's answer, or that it has none, is known."""
    return any(gold_span(row["answers"])[0] != UNKNOWN_SPAN for row in rows)
