"""Candidate spans of windows: pairs of a start and an end, in characters of the context, ranked for each example."""

from collections.abc import Sequence

import numpy as np

from qa.candidates import Candidates
from qa.features import Features


# Examples that are post-processed together, which bounds memory (1,000 windows of 384 tokens take 20 MB).
EXAMPLES_AT_ONCE = 1000  # must fit into 16 bits


class SpansOfOthers:
    """`Features` of other examples, or of the same ones in another order: `row` counts the examples `ids`."""

    def __init__(self, features: Features, ids: list[str]):
        number = {identity: index for index, identity in enumerate(ids)}
        used = np.unique(features.row)
        of_row = np.zeros(len(features.row_ids), dtype=np.int32)
        of_row[used] = [number[features.row_ids[row]] for row in used]
        self.row, self.cls_index, self.characters = of_row[features.row], features.cls_index, features.characters


class SpansOfDicts:
    """The arrays of `Features` that answers need, taken from features in dicts."""

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
        """Return what `Features.characters` does; a token with more context elsewhere has no first character."""
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


def column_of(table, name: str) -> list:
    """Return a column of a `datasets.Dataset` or of a list of dicts."""
    return list(table[name]) if hasattr(table, "column_names") else [row[name] for row in table]


def spans_of(features, ids: list[str]) -> "Features | SpansOfOthers | SpansOfDicts":
    """Return features as arrays whose `row` counts the examples `ids`."""
    if not isinstance(features, Features):
        return SpansOfDicts(features, ids)
    return features if features.row_ids == ids else SpansOfOthers(features, ids)


def window_spans(
    features, chosen: np.ndarray, best: Candidates, n_best_size: int, max_answer_length: int
) -> dict[str, np.ndarray]:
    """Return the candidate spans of the windows `chosen`, ordered by window, by rank of the start, by rank of the end.

    Columns: `window`, `begin`, `end` (characters), `start_logit`, `end_logit`, `score`.
    """
    start, end, start_logit, end_logit = best.starts, best.ends, best.start_logits, best.end_logits
    begin_char, end_char = features.characters(chosen, start)[0], features.characters(chosen, end)[1]
    ranks = ranks_of_ends(start, end, max_answer_length)
    missing = ((0, 0), (0, 1))  # of the rank after the last one
    end, end_char = np.pad(end, missing, constant_values=-1), np.pad(end_char, missing, constant_values=-1)
    end_logit, line = np.pad(end_logit, missing), np.arange(len(start))[:, None, None]
    further = end[line, ranks] - start[:, :, None]
    allowed = (further >= 0) & (further < max_answer_length)
    allowed &= (begin_char >= 0)[:, :, None] & (end_char[line, ranks] >= 0)
    most, each = n_best_size, ranks.shape[2]
    allowed = allowed.reshape(len(start), -1)
    if most < allowed.shape[1]:  # a pair that is not among its window's best is not among its example's; ties are kept
        score = (start_logit[:, :, None] + end_logit[line, ranks]).reshape(allowed.shape)
        score[~allowed] = -np.inf
        allowed &= ~(score < np.partition(score, -most, axis=1)[:, -most, None])
    window, pair = np.divmod(np.flatnonzero(allowed), max(1, allowed.shape[1]))
    row, place = np.divmod(pair, max(1, each))
    column = np.broadcast_to(ranks, (len(start), start.shape[1], each))[window, row, place]
    start_logit, end_logit = start_logit[window, row], end_logit[window, column]
    return {
        "window": window,
        "begin": begin_char[window, row],
        "end": end_char[window, column],
        "start_logit": start_logit,
        "end_logit": end_logit,
        "score": start_logit + end_logit,
    }


def ranks_of_ends(start: np.ndarray, end: np.ndarray, max_answer_length: int) -> np.ndarray:
    """Return the ranks of the ends that may belong to each start, in their order, (windows, starts, ends).

    All of them, as (1, 1, ends), unless an answer has fewer places to end: then those of the nearest places from the
    start on, and the number of ranks where there are fewer.

    >>> ranks_of_ends(np.array([[4, 7, 5]]), np.array([[5, 4, 7]]), max_answer_length=2).tolist()
    [[[0, 1], [2, 3], [0, 2]]]
    """
    windows, number = end.shape
    if number <= max_answer_length:
        return np.arange(number)[None, None]
    by_place = np.argsort(end, axis=1)
    above = np.arange(windows)[:, None] * (max(start.max(), end.max()) + 2)
    places = (np.take_along_axis(end, by_place, axis=1) + above).ravel()
    first = np.searchsorted(places, start + above) - np.arange(windows)[:, None] * number
    nearest = first[:, :, None] + np.arange(max_answer_length)
    ranks = by_place[np.arange(windows)[:, None, None], np.minimum(nearest, number - 1)]
    return np.sort(np.where(nearest < number, ranks, number), axis=2)


def null_spans(logits: np.ndarray, example: np.ndarray) -> dict[str, np.ndarray]:
    """Return the no-answer candidate of every example, from its first window with the lowest null score.

    Example 0 has two windows, example 1 one:

    >>> logits = np.array([[3.0, 3.0], [1.0, 2.0], [4.0, 4.0]])
    >>> null_spans(logits, example=np.array([0, 0, 1]))["score"].tolist()
    [3.0, 8.0]
    """
    start_logit, end_logit = logits.T
    score = start_logit + end_logit
    order = np.lexsort((score, example))
    lowest = order[np.flatnonzero(np.diff(example[order], prepend=-1))]
    return {
        "example": example[lowest],
        "begin": np.zeros(len(lowest), dtype=np.int32),
        "end": np.zeros(len(lowest), dtype=np.int32),
        "start_logit": start_logit[lowest],
        "end_logit": end_logit[lowest],
        "score": score[lowest],
    }


def rank_spans(spans: dict, null: dict | None, n_best_size: int) -> dict[str, np.ndarray]:
    """Return the `n_best_size` best candidates of every example, best first; if needed the null candidate comes last.

    Example 0 has three candidates, example 1 one. The null candidates begin and end at 0:

    >>> columns = {"example": [0, 0, 0, 1], "begin": [4, 9, 6, 7], "end": [5, 12, 8, 9], "score": [1.0, 3.0, 2.0, 5.0]}
    >>> spans = {name: np.array(column) for name, column in columns.items()}
    >>> rank_spans(spans, None, n_best_size=2)["begin"].tolist()
    [9, 6, 7]
    >>> null = {"example": np.array([0, 1]), "begin": np.zeros(2), "end": np.zeros(2), "score": np.array([0.5, 9.0])}
    >>> ranked = rank_spans(spans, null, n_best_size=2)
    >>> ranked["example"].tolist(), ranked["score"].tolist()
    ([0, 0, 0, 1, 1], [3.0, 2.0, 0.5, 9.0, 5.0])
    """
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
