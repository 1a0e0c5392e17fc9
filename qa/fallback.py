"""Features that the tokenizer builds, for tokenizers that index arithmetic cannot describe."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from qa.features import LABELS, Features, ranges
from qa.windows import (
    IGNORED,
    MODEL_INPUTS,
    UNKNOWN_SPAN,
    Template,
    Texts,
    WindowSpec,
    gold_span,
    lengths_of_rows,
    no_answer_tokens,
    tokenize_distinct,
    trim_questions,
)


def own_features(rows, spec: WindowSpec, labelled: bool) -> Iterator[dict]:
    """Yield what `prepare_features` returns, by the tokenizer's own `return_overflowing_tokens`, one row at a time."""
    tokenizer = spec.tokenizer
    questions = tokenize_distinct([row["question"].lstrip() for row in rows], tokenizer)
    contexts = tokenize_distinct([row["context"] for row in rows], tokenizer)
    lengths = lengths_of_rows(questions)
    room = spec.max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - spec.template.appended
    kept = trim_questions(lengths, lengths_of_rows(contexts), room=room, doc_stride=spec.doc_stride)
    for index, row in enumerate(rows):
        question = row["question"].lstrip()
        if kept[index] < lengths[index]:
            question = question[: questions.ends[questions.splits[questions.of_row[index]] + kept[index] - 1]]
        yield from own_windows(row, question, spec, labelled)


class OwnFeatures(Features):
    """Features of which every token is kept: arrays of all windows one after the other, which count as their contexts.

    Args:
        windows: each with `input_ids`, `cls_index`, `example_id`, `offset_mapping` and, in all or none of them, labels.
    """

    def __init__(self, rows, windows: Iterable[dict]):
        number = {row["id"]: index for index, row in enumerate(rows)}
        columns = {name: array("i") for name in (*MODEL_INPUTS, "starts", "ends", "row", "last", "cls_index", *LABELS)}
        for window in windows:
            for name in MODEL_INPUTS:
                columns[name].extend(window.get(name, ()))
            for place, name in enumerate(("starts", "ends")):
                columns[name].extend(-1 if span is None else span[place] for span in window["offset_mapping"])
            columns["row"].append(number[window["example_id"]])
            columns["last"].append(len(columns["input_ids"]))
            for name in {"cls_index", *LABELS} & window.keys():
                columns[name].append(window[name])
        columns = {name: np.array(column, dtype=np.int32) for name, column in columns.items()}
        last, nothing = columns["last"], np.zeros(0, dtype=np.int32)
        super().__init__(
            rows,
            questions=Texts(np.zeros(len(rows), dtype=np.int32), np.zeros(2, dtype=int), nothing, nothing, nothing),
            contexts=Texts(columns["row"], last, columns["input_ids"], columns["starts"], columns["ends"]),
            template=Template(before=[], between=[], after=[], types=(0,) * 5),
            names=[name for name in MODEL_INPUTS[1:] if len(columns[name])],
            row=columns["row"],
            first=np.concatenate([[0], last[:-1]]).astype(np.int32),
            last=last,
            question_length=np.zeros(len(rows), dtype=np.int32),
        )
        self.types, self.cls_index = columns["token_type_ids"].astype(np.int8), columns["cls_index"]
        if len(columns[LABELS[0]]):
            self.labels = np.stack([columns[name] for name in LABELS], axis=1)

    def token_types(self, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
        return self.types[ranges(begin.ravel(), length.ravel())]


def own_windows(row: dict, question: str, spec: WindowSpec, labelled: bool) -> list[dict]:
    """Return the windows of one row, as the tokenizer cuts them."""
    tokenizer, template, question_first = spec.tokenizer, spec.template, not spec.template.context_first
    encoding = tokenizer(
        *((question, row["context"]) if question_first else (row["context"], question)),
        truncation="only_second" if question_first else "only_first",
        max_length=spec.max_seq_length - template.appended,
        stride=spec.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    # Without a post-processor tokenizers 0.21 reports the sequence of each token in the first window only.
    unreported = tokenizer.backend_tokenizer.post_processor is None
    question_length = encoding.sequence_ids(0).count(int(not question_first))
    windows = []
    for window, ids in enumerate(encoding["input_ids"]):
        of_text = encoding.sequence_ids(window)
        if unreported:
            rest = len(ids) - question_length
            of_text = [0] * question_length + [1] * rest if question_first else [0] * rest + [1] * question_length
        inside = [sequence == int(question_first) for sequence in of_text]
        offsets = [span if here else None for span, here in zip(encoding["offset_mapping"][window], inside)]
        feature = {name: encoding[name][window] for name in MODEL_INPUTS if name in encoding}
        if template.appended:
            append_last(feature, template)
            offsets, of_text = [*offsets, None], [*of_text, None]
        feature["cls_index"] = own_no_answer_position(feature["input_ids"], of_text, tokenizer, template)
        if labelled:
            positions = answer_positions(offsets, gold_span(row["answers"])) or (feature["cls_index"],) * 2
            feature["start_positions"], feature["end_positions"] = positions
        windows.append(feature | {"example_id": row["id"], "offset_mapping": offsets})
    return windows


def append_last(feature: dict, template: Template) -> None:
    """Add the template's last token to a feature, with the type of the token before; the tokenizer does not add it."""
    for name in feature:
        feature[name] = [*feature[name], template.after[-1] if name == "input_ids" else feature[name][-1]]


def own_no_answer_position(ids: list[int], of_text: list[int | None], tokenizer, template: Template) -> int:
    """Return what `no_answer_positions` does, for one window whose special tokens have None in `of_text`."""
    if template.causal:
        return len(ids) - 1
    special = [token if sequence is None else None for token, sequence in zip(ids, of_text)]
    return next((special.index(token) for token in no_answer_tokens(tokenizer) if token in special), 0)


def answer_positions(offsets: list[tuple[int, int] | None], span: tuple[int, int]) -> tuple[int, int] | None:
    """Return the first and last token of an answer's `gold_span` in a window; None where it is not all there."""
    begin, end = span
    if begin == UNKNOWN_SPAN:
        return IGNORED, IGNORED
    context = [position for position, place in enumerate(offsets) if place is not None]
    if begin < 0 or not context:
        return None
    if offsets[context[0]][0] > begin or offsets[context[-1]][1] < end:
        return None
    start = max(position for position in context if offsets[position][0] <= begin)
    return start, min(position for position in context if offsets[position][1] >= end)
