"""Features as index ranges, and the features of a batch, which a collator writes into its tables.

A batch is written at once where its features are index ranges, else one by one. Both kinds have the same attributes:

    lengths      (batch,) tokens of each feature
    inputs       names of the tables that a model of the tokenizer takes, of `MODEL_INPUTS`
    numbers      {name: (batch,)} labels and `cls_index`, where they are known
    width        the tokens that the batch is padded to with length buckets, else 0
    packing      of the batch, a `qa.packing.Packing`, else None
    targets      the tokens of each answer to write, where they are known
    write(tables, starts)   writes each feature's inputs into flat tables, (tokens,), from its start on
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from qa.shared import SharedFile
from qa.windows import MODEL_INPUTS, Template, Texts


LABELS = ("start_positions", "end_positions")


class Features(torch.utils.data.Dataset):
    """Features as index ranges; item i is a dict of unpadded arrays for a collator.

    Items hold:

    - `input_ids`, and of `attention_mask` and `token_type_ids` those that the tokenizer's models take;
    - `start_positions` and `end_positions` where labels are known;
    - `cls_index` in features for models that mark answers;
    - `width`, the length to pad to, with length buckets;
    - `packing`, the shape of batches, with packing.

    `as_dict(i)` adds the example's id and the offsets, for people and for comparison, as long as the features have them.
    """

    cls_index: np.ndarray | None = None  # (features,) position that means "no answer"
    labels: np.ndarray | None = None  # (features, 2) first and last token of the answer
    widths: np.ndarray | None = None  # (features,) the boundary of each feature's bucket
    packing = None  # of batches, a `qa.packing.Packing`
    shared: SharedFile | None = None  # that they are in, where processes share them

    def __init__(self, rows, questions: Texts, contexts: Texts, template: Template, names: list[str], **arrays):
        self.row_ids = [row["id"] for row in rows]
        self.questions, self.contexts, self.template, self.names = questions, contexts, template, names
        self.row = arrays["row"]  # (features,) the row that each feature is a window of
        self.first, self.last = arrays["first"], arrays["last"]  # (features,) its tokens in contexts.ids
        self.question_length = arrays["question_length"]  # (rows,) tokens kept of each row's question

    def __len__(self) -> int:
        return len(self.row)

    def forget_rows(self) -> None:
        """Free what answers need and training does not: the ids of the rows, and the characters of the tokens."""
        self.row_ids = []
        self.contexts.forget_offsets()

    def __getitem__(self, index: int) -> dict:
        begin, length = self.pieces(np.array([index]))
        item = {"input_ids": self.tokens.ids[ranges(begin.ravel(), length.ravel())].astype(np.int64)}
        if "attention_mask" in self.names:
            item["attention_mask"] = np.ones(length.sum(), dtype=np.int64)
        if "token_type_ids" in self.names:
            item["token_type_ids"] = self.token_types(begin, length).astype(np.int64)
        if self.labels is not None:
            item["start_positions"], item["end_positions"] = self.labels[index]
        if self.cls_index is not None:
            item["cls_index"] = self.cls_index[index]
        if self.widths is not None:
            item["width"] = self.widths[index]
        if self.packing is not None:
            item["packing"] = self.packing
        return item

    def __getitems__(self, indices: Sequence[int]) -> "FeatureBatch":
        """Return the features of a batch, as PyTorch's loaders fetch them."""
        return FeatureBatch(self, indices)

    def as_dict(self, index: int) -> dict:
        """Return feature `index` as plain lists, with `example_id` and `offset_mapping` (None outside the context)."""
        item = {name: value.tolist() for name, value in self[index].items() if name != "packing"}
        begin, length = int(self.context_begin(index)), len(item["input_ids"])
        tokens = slice(self.first[index], self.last[index])
        places = zip(self.contexts.starts[tokens].tolist(), self.contexts.ends[tokens].tolist())
        spans = [(start, end) if start >= 0 else None for start, end in places]
        offsets = [None] * begin + spans + [None] * (length - begin - len(spans))
        identity = self.row_ids[self.row[index]]
        return item | {"example_id": identity, "offset_mapping": offsets}

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each feature, (features,)."""
        return self.last - self.first + self.question_length[self.row] + self.template.special_tokens

    @cached_property
    def tokens(self) -> "Tokens":
        return Tokens.of(self)

    def pieces(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the pieces of some features begin among `tokens.ids`, and their lengths, (chosen, pieces) each."""
        tokens, row = self.tokens, self.row[chosen]
        begin, length = (np.tile(column, (len(chosen), 1)) for column in (tokens.begin, tokens.length))
        begin[:, tokens.question] += self.questions.splits[self.questions.of_row[row]]
        length[:, tokens.question] = self.question_length[row]
        begin[:, tokens.context] += self.first[chosen]
        length[:, tokens.context] = self.last[chosen] - self.first[chosen]
        return begin, length

    def token_types(self, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Return the types of all tokens of some features, whose `pieces` are given."""
        return np.repeat(np.tile(self.tokens.types, len(length)), length.ravel())

    def context_begin(self, chosen: np.ndarray | int | slice = slice(None)) -> np.ndarray:
        """Return the position of the first context token of some features, by default of all, (chosen,)."""
        row = self.row[chosen]
        if self.template.context_first:
            return np.full_like(row, len(self.template.before))
        return len(self.template.before) + self.question_length[row] + len(self.template.between)

    def characters(self, chosen: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first character of some features' tokens, and the one after the last; -1 outside the context.

        Args:
            chosen: (n,) the features.
            positions: (n, m) the tokens of each. The results have this shape.
        """
        place = positions - self.context_begin(chosen)[:, None]
        inside = (place >= 0) & (place < (self.last - self.first)[chosen, None])
        token = np.where(inside, place + self.first[chosen, None], 0)
        return np.where(inside, self.contexts.starts[token], -1), np.where(inside, self.contexts.ends[token], -1)


@dataclass
class Tokens:
    """The ids of all tokens that features consist of, one array, and the pieces of a feature: its template's parts.

    A part is one piece, except that tokens of different types are pieces of their own.
    """

    ids: np.ndarray  # of the template, of all questions, of all contexts
    begin: np.ndarray  # (pieces,) in `ids`; of the question and the context where all of them begin
    length: np.ndarray  # (pieces,) 0 for the question and the context
    types: np.ndarray  # (pieces,)
    question: int  # the piece that it is
    context: int

    @classmethod
    def of(cls, features: Features) -> "Tokens":
        """Return the tokens of features, whose texts then hold none."""
        template, questions, contexts = features.template, features.questions, features.contexts
        special = [*template.before, *template.between, *template.after]
        ids = np.concatenate([np.array(special, dtype=questions.ids.dtype), questions.ids, contexts.ids])
        middle = len(special) + len(questions.ids)
        questions.ids = contexts.ids = None
        texts = [len(special), middle][:: -1 if template.context_first else 1]
        pieces, place, at = [], 0, []
        for part, kind in zip((template.before, texts[0], template.between, texts[1], template.after), template.types):
            if isinstance(part, int):
                at.append(len(pieces))
                pieces.append((part, 0, kind))
            elif np.isscalar(kind):
                pieces.append((place, len(part), kind))
            else:
                pieces += [(place + index, 1, each) for index, each in enumerate(kind)]
            place += 0 if isinstance(part, int) else len(part)
        columns = (np.array(column) for column in zip(*pieces))
        return cls(ids, *columns, *(at[::-1] if template.context_first else at))


class ListedBatch:
    """Features as dicts."""

    def __init__(self, features: Sequence[dict]):
        self.features, first = features, features[0]
        self.lengths = np.array([len(feature["input_ids"]) for feature in features])
        self.inputs = [name for name in MODEL_INPUTS if name in first]
        self.numbers = {
            name: np.array([feature[name] for feature in features]) for name in (*LABELS, "cls_index") if name in first
        }
        self.width, self.packing = max(feature.get("width", 0) for feature in features), first.get("packing")
        self.targets = [feature["labels"] for feature in features] if "labels" in first else None

    def write(self, tables: dict[str, np.ndarray], starts: np.ndarray) -> None:
        for feature, start, length in zip(self.features, starts.tolist(), self.lengths.tolist()):
            for name in self.inputs:
                tables[name][start : start + length] = feature[name]


class FeatureBatch(Sequence):
    """Some of `Features`; as a sequence it has their items, for other collators."""

    def __init__(self, features: Features, indices: Sequence[int]):
        self.features, self.indices = features, np.asarray(indices)
        self.inputs = ["input_ids", *features.names]
        self.numbers = {}
        if features.labels is not None:
            self.numbers |= dict(zip(LABELS, features.labels[self.indices].T))
        if features.cls_index is not None:
            self.numbers["cls_index"] = features.cls_index[self.indices]
        self.width = 0 if features.widths is None else features.widths[self.indices].max()
        self.packing, targets = features.packing, getattr(features, "targets", None)
        self.targets = None if targets is None else [targets.of(index) for index in self.indices]
        self.begin, self.length = features.pieces(self.indices)
        self.lengths = self.length.sum(axis=1)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.features[self.indices[index]]

    def write(self, tables: dict[str, np.ndarray], starts: np.ndarray) -> None:
        places, length = ranges(starts, self.lengths), self.length.ravel()
        tables["input_ids"][places] = self.features.tokens.ids[ranges(self.begin.ravel(), length)]
        if "attention_mask" in tables:
            tables["attention_mask"][places] = 1
        if "token_type_ids" in tables:
            tables["token_type_ids"][places] = self.features.token_types(self.begin, self.length)


def ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return the numbers from `begin[i]` on, `length[i]` of them, for all i in turn.

    >>> ranges(np.array([10, 30]), np.array([3, 2])).tolist()
    [10, 11, 12, 30, 31]
    """
    return np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(length.sum())
