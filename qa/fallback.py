"""Features that the tokenizer builds itself, where index arithmetic cannot describe what it does."""

import numpy as np

from qa.windows import (
    IGNORED,
    MODEL_INPUTS,
    UNKNOWN_SPAN,
    gold_span,
    no_answer_tokens,
    tokenize_distinct,
    trim_questions,
)


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
            positions = answer_positions(offsets, gold_span(row["answers"])) or (feature["cls_index"],) * 2
            feature["start_positions"], feature["end_positions"] = positions
        windows.append(feature | {"example_id": row["id"], "offset_mapping": offsets})
    return windows


def answer_positions(offsets: list[tuple[int, int] | None], span: tuple[int, int]) -> tuple[int, int] | None:
    """First and last token of an answer's `gold_span` in one window; None when the window does not hold all of it."""
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
