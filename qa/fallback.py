"""Features that the tokenizer builds, for tokenizers that index arithmetic cannot describe."""

import numpy as np

from qa.windows import (
    IGNORED,
    MODEL_INPUTS,
    UNKNOWN_SPAN,
    Template,
    WindowSpec,
    gold_span,
    lengths_of_rows,
    no_answer_tokens,
    tokenize_distinct,
    trim_questions,
)


def own_features(rows, spec: WindowSpec, labelled: bool) -> list[dict]:
    """Return what `prepare_features` does, by the tokenizer's own `return_overflowing_tokens`, one row at a time."""
    tokenizer = spec.tokenizer
    questions = tokenize_distinct([row["question"].lstrip() for row in rows], tokenizer)
    contexts = tokenize_distinct([row["context"] for row in rows], tokenizer)
    lengths = lengths_of_rows(questions)
    room = spec.max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - spec.template.appended
    kept = trim_questions(lengths, lengths_of_rows(contexts), room=room, doc_stride=spec.doc_stride)
    features = []
    for index, row in enumerate(rows):
        question = row["question"].lstrip()
        if kept[index] < lengths[index]:
            question = question[: questions.ends[questions.splits[questions.of_row[index]] + kept[index] - 1]]
        features += own_windows(row, question, spec, labelled)
    return features


class ListedFeatures(list):
    """Features that the tokenizer built, as dicts, with the widths and lengths that a trainer reads of `Features`."""

    widths: np.ndarray | None = None  # (features,) the boundary of each feature's bucket
    packing = None  # of batches, a `qa.packing.Packing`

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        if self.packing is not None:
            item = item | {"packing": self.packing}
        return item if self.widths is None else item | {"width": self.widths[index]}

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each feature, (features,)."""
        return np.array([len(feature["input_ids"]) for feature in self])


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
