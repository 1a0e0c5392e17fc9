"""From logits to answers: best positions, spans, ranking and null odds, on plain arrays."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from qa.features import Features
from qa.files import write_json


# Examples that are post-processed together, which bounds memory (1,000 windows of 384 tokens take 20 MB).
EXAMPLES_AT_ONCE = 1000  # must fit into 16 bits


PAIRS_AT_ONCE = 1 << 20  # pairs of a start and an end, over all windows


@dataclass
class AnswerRules:
    """The flags that decide which answers are chosen, by their names."""

    version_2_with_negative: bool = False
    n_best_size: int = 20
    max_answer_length: int = 30
    null_score_diff_threshold: float = 0.0
    temperature: float = 1.0

    @classmethod
    def of(cls, flags) -> "AnswerRules":
        """Return the rules among some flags: a script's `DataArguments`, or a model's `qa.settings.Settings`."""
        return cls(**{rule.name: getattr(flags, rule.name) for rule in fields(cls)})


@dataclass
class RankedSpans:
    """The candidates of some examples, best first: example i has the rows `bounds[i]` to `bounds[i + 1]`.

    Columns save memory: the rows of 200,000 questions as Python objects take over a GB.
    """

    ids: list[str]
    contexts: list[str]
    bounds: np.ndarray  # (examples + 1,)
    begin: np.ndarray  # (rows,) characters of the context; -1 for a row that is the word "empty"
    end: np.ndarray
    start_logit: np.ndarray
    end_logit: np.ndarray
    probability: np.ndarray

    def rows(self) -> dict[str, list[dict]]:
        """Return the entries of the n-best file."""
        bounds = self.bounds.tolist()
        context = np.repeat(np.arange(len(self.ids)), np.diff(self.bounds)).tolist()
        texts = [
            self.contexts[index][begin:end]
            for index, begin, end in zip(context, self.begin.tolist(), self.end.tolist())
        ]
        numbers = zip(self.start_logit.tolist(), self.end_logit.tolist(), self.probability.tolist())
        rows = [
            {"start_logit": start, "end_logit": end, "text": text, "probability": probability}
            for text, (start, end, probability) in zip(texts, numbers)
        ]
        for place in np.flatnonzero(self.begin < 0):
            rows[place] = {"text": "empty"} | {key: value for key, value in rows[place].items() if key != "text"}
        return {name: rows[first:last] for name, first, last in zip(self.ids, bounds, bounds[1:])}


@dataclass
class Answers:
    """The model's answers, by example id in the order of the examples."""

    texts: dict[str, str] = field(default_factory=dict)  # empty for "no answer"
    best_texts: dict[str, str] = field(default_factory=dict)  # the best text, whatever the null score
    null_odds: dict[str, float] = field(default_factory=dict)  # with negatives: null score - score of the best text
    nbest: list = field(default_factory=list)  # parts of the n-best file: `RankedSpans`, or `qa.seq2seq.RankedTexts`


def decide(best_texts: dict[str, str], null_odds: dict[str, float], threshold: float) -> dict[str, str]:
    """Return the answers to questions that may have none, empty where the null odds exceed the threshold.

    >>> decide({"a": "Cairo", "b": "Giza"}, {"a": -3.5, "b": 1.0}, threshold=0.0)
    {'a': 'Cairo', 'b': ''}
    """
    return {name: "" if null_odds[name] > threshold else text for name, text in best_texts.items()}


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


@dataclass
class Candidates:
    """The part of the logits that answers need: each feature's best starts and ends, and its no-answer position."""

    starts: np.ndarray  # (features, n) positions, best first; -1 where there are fewer
    ends: np.ndarray
    start_logits: np.ndarray  # (features, n)
    end_logits: np.ndarray
    null_logits: np.ndarray  # (features, 2) start and end logit of the no-answer position

    def __len__(self) -> int:
        return len(self.starts)

    def of(self, chosen: np.ndarray) -> "Candidates":
        """Return the candidates of some features."""
        return Candidates(*(getattr(self, column.name)[chosen] for column in fields(self)))

    def packed(self) -> np.ndarray:
        """Return all fields in one (features, 4 n + 2) float32 array, in which positions up to 2 ** 24 are exact."""
        return np.concatenate([getattr(self, column.name) for column in fields(self)], axis=1, dtype=np.float32)

    @classmethod
    def unpacked(cls, table: np.ndarray) -> "Candidates":
        """Return the candidates of a `packed` array."""
        n = (table.shape[1] - 2) // 4
        starts, ends, start_logits, end_logits, null_logits = np.split(table, [n, 2 * n, 3 * n, 4 * n], axis=1)
        return cls(
            starts=starts.astype(np.int32),
            ends=ends.astype(np.int32),
            start_logits=start_logits,
            end_logits=end_logits,
            null_logits=null_logits,
        )


def best_positions(
    logits: tuple[np.ndarray, np.ndarray],
    cls_index: np.ndarray,
    n_best_size: int,
    lengths: np.ndarray | None = None,
) -> Candidates:
    """Return the `n_best_size` best starts and ends of each feature.

    Args:
        logits: of starts and ends, (features, length) each.
        cls_index: (features,) the position that means "no answer".
        lengths: (features,) tokens of each feature. The positions after them are padding and never among the best: how
            far a feature is padded does not change its result. Without lengths every position counts.

    >>> starts, ends = np.array([[0.0, 2.0, 1.0, 9.0]]), np.array([[0.0, 1.0, 2.0, 9.0]])
    >>> best = best_positions((starts, ends), cls_index=np.array([0]), n_best_size=2, lengths=np.array([3]))
    >>> best.starts.tolist(), best.ends.tolist(), best.end_logits.tolist()
    ([[1, 2]], [[2, 1]], [[2.0, 1.0]])
    """
    (starts, start_logits), (ends, end_logits) = (best_of_side(side, n_best_size, lengths) for side in logits)
    null = [np.take_along_axis(side, cls_index[:, None], axis=1) for side in logits]
    return Candidates(
        starts=starts,
        ends=ends,
        start_logits=start_logits,
        end_logits=end_logits,
        null_logits=np.concatenate(null, axis=1),
    )


def best_of_side(logits: np.ndarray, number: int, lengths: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the highest logits, best first, and those logits, (features, number) each.

    Where a feature has fewer positions, the others are -1 and their logits 0.
    """
    if lengths is None:
        # A loop over windows would call the same argsort; with argpartition ties would come out in another order.
        order = np.argsort(logits, axis=1)
    else:
        padding = np.arange(logits.shape[1]) >= lengths[:, None]
        order = np.argsort(np.where(padding, -np.inf, logits), axis=1, kind="stable")
    best = order[:, : -number - 1 : -1].astype(np.int32)
    missing = ((0, 0), (0, number - best.shape[1]))
    values = np.pad(np.take_along_axis(logits, best, axis=1), missing)
    best = np.pad(best, missing, constant_values=-1)
    if lengths is not None:
        padding = best >= lengths[:, None]
        best[padding], values[padding] = -1, 0
    return best, values


def column_of(table, name: str) -> list:
    """Return a column of a `datasets.Dataset` or of a list of dicts."""
    return list(table[name]) if hasattr(table, "column_names") else [row[name] for row in table]


def find_answers(
    examples, features, predictions: tuple[np.ndarray, np.ndarray] | Candidates, rules: AnswerRules
) -> Answers:
    """Return the answers of all examples, as `postprocess_qa_predictions` finds them.

    `predictions` may also be the `best_positions` of the logits.

    Raises:
        ValueError: `predictions` do not match the features, or with negatives an example has no feature.
    """
    if not isinstance(predictions, Candidates):
        if len(predictions) != 2:
            raise ValueError("`predictions` should be a tuple with two elements (start_logits, end_logits)")
        predictions = tuple(map(np.asarray, predictions))
    count = len(predictions if isinstance(predictions, Candidates) else predictions[0])
    if count != len(features):
        raise ValueError(f"got {count} predictions and {len(features)} features")
    ids, contexts = column_of(examples, "id"), column_of(examples, "context")
    features = spans_of(features, ids)
    order = np.argsort(features.row, kind="stable")
    bounds = np.searchsorted(features.row[order], np.arange(len(ids) + 1))
    if rules.version_2_with_negative and (np.diff(bounds) == 0).any():
        raise ValueError(f"example {ids[np.flatnonzero(np.diff(bounds) == 0)[0]]!r} has no feature")
    answers = Answers()
    pairs = rules.n_best_size * min(rules.n_best_size, rules.max_answer_length)
    for begin, end in cuts(bounds, max(1, PAIRS_AT_ONCE // pairs)):
        chosen = order[bounds[begin] : bounds[end]]
        best = candidates_of(predictions, features, chosen, rules.n_best_size)
        example = features.row[chosen] - begin
        spans = window_spans(features, chosen, best=best, rules=rules)
        spans["example"] = example[spans.pop("window")]
        null = null_spans(best.null_logits, example) if rules.version_2_with_negative else None
        kept = rank_spans(spans, null, rules.n_best_size)
        add_answers(
            answers,
            ids=ids[begin:end],
            contexts=contexts[begin:end],
            kept=kept,
            null=null,
            temperature=rules.temperature,
        )
    if rules.version_2_with_negative:
        answers.texts = decide(answers.best_texts, answers.null_odds, rules.null_score_diff_threshold)
    return answers


def spans_of(features, ids: list[str]) -> "Features | SpansOfOthers | SpansOfDicts":
    """Return features as arrays whose `row` counts the examples `ids`."""
    if not isinstance(features, Features):
        return SpansOfDicts(features, ids)
    return features if features.row_ids == ids else SpansOfOthers(features, ids)


def candidates_of(predictions, features, chosen: np.ndarray, n_best_size: int) -> Candidates:
    """Return the best positions of the features `chosen`."""
    if isinstance(predictions, Candidates):
        return predictions.of(chosen)
    return best_positions(tuple(side[chosen] for side in predictions), features.cls_index[chosen], n_best_size)


def cuts(bounds: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Yield the first of the examples to answer at once, and the one after the last.

    At most `EXAMPLES_AT_ONCE` with at most `most` windows, or one example. The windows of example i are `bounds[i]` to
    `bounds[i + 1]`.
    """
    begin = 0
    while begin < len(bounds) - 1:
        end = np.searchsorted(bounds, bounds[begin] + most, side="right") - 1
        end = min(max(int(end), begin + 1), begin + EXAMPLES_AT_ONCE, len(bounds) - 1)
        yield begin, end
        begin = end


def window_spans(features, chosen: np.ndarray, best: Candidates, rules: AnswerRules) -> dict[str, np.ndarray]:
    """Return the candidate spans of the windows `chosen`, ordered by window, by rank of the start, by rank of the end.

    Columns: `window`, `begin`, `end` (characters), `start_logit`, `end_logit`, `score`.
    """
    start, end, start_logit, end_logit = best.starts, best.ends, best.start_logits, best.end_logits
    begin_char, end_char = features.characters(chosen, start)[0], features.characters(chosen, end)[1]
    ranks = ranks_of_ends(start, end, rules.max_answer_length)
    missing = ((0, 0), (0, 1))  # of the rank after the last one
    end, end_char = np.pad(end, missing, constant_values=-1), np.pad(end_char, missing, constant_values=-1)
    end_logit, line = np.pad(end_logit, missing), np.arange(len(start))[:, None, None]
    further = end[line, ranks] - start[:, :, None]
    allowed = (further >= 0) & (further < rules.max_answer_length)
    allowed &= (begin_char >= 0)[:, :, None] & (end_char[line, ranks] >= 0)
    most, each = rules.n_best_size, ranks.shape[2]
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


def add_answers(
    answers: Answers, ids: list[str], contexts: list[str], kept: dict, null: dict | None, temperature: float
) -> None:
    """Add the texts, the ranked candidates and, with negatives, the null odds of some examples.

    Where no candidate has a text, the reference's rule holds: the word "empty" with score 0 becomes the best
    candidate. Without negatives it does so only where there is at most one other candidate.
    """
    bounds = np.searchsorted(kept["example"], np.arange(len(ids) + 1))
    best = best_with_text(kept, contexts)
    lost = (best < 0) & ((np.diff(bounds) <= 1) | (null is not None))
    columns = {name: np.zeros(len(ids), kept[name].dtype) for name in ("begin", "end", "start_logit", "end_logit")}
    for name, column in columns.items():
        column[best >= 0] = kept[name][best[best >= 0]]
    spans = zip(columns["begin"].tolist(), columns["end"].tolist())
    texts = [context[begin:end] for context, (begin, end) in zip(contexts, spans)]
    texts = ["empty" if empty else text for text, empty in zip(texts, lost)]
    answers.best_texts |= zip(ids, texts)
    if null is None:
        first = (best == bounds[:-1]) | lost
        answers.texts |= zip(ids, [text if is_first else "" for text, is_first in zip(texts, first)])
    else:
        odds = null["score"] - columns["start_logit"] - columns["end_logit"]
        answers.null_odds |= zip(ids, odds.tolist())
    score = kept["score"] / temperature
    answers.nbest.append(with_probabilities(ids, contexts, kept=kept | {"score": score}, bounds=bounds, lost=lost))


def best_with_text(kept: dict, contexts: list[str]) -> np.ndarray:
    """Return (examples,) the row of each example's best candidate that has a text; -1 where none has."""
    lengths = np.array([len(context) for context in contexts])
    filled = np.flatnonzero(np.minimum(kept["end"], lengths[kept["example"]]) > kept["begin"])
    best = np.full(len(contexts), -1)
    example, first = np.unique(kept["example"][filled], return_index=True)
    best[example] = filled[first]
    return best


def with_probabilities(
    ids: list[str], contexts: list[str], kept: dict, bounds: np.ndarray, lost: np.ndarray
) -> RankedSpans:
    """Return the candidates with a softmax over each example's scores, and a row "empty" for each `lost` example."""
    probability = softmax_of_groups(kept["score"], bounds)
    columns = {name: kept[name] for name in ("begin", "end", "start_logit", "end_logit")}
    if lost.any():
        first = bounds[:-1][lost]
        columns = {name: np.insert(column, first, -1 if name == "begin" else 0) for name, column in columns.items()}
        scores = np.insert(kept["score"].astype(np.float64), first, 0)
        probability = np.insert(probability.astype(np.float64), first, 0)
        bounds = bounds + np.concatenate([[0], np.cumsum(lost)])
        sizes = np.diff(bounds)
        there = np.repeat(lost, sizes)
        probability[there] = softmax_of_groups(scores[there], np.concatenate([[0], np.cumsum(sizes[lost])]))
    return RankedSpans(ids, contexts, bounds, **columns, probability=probability)


def softmax_of_groups(scores: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    """Return the softmax of every group `scores[bounds[i]:bounds[i + 1]]`.

    Groups of one size are the rows of one table: numpy then adds the numbers of each in the order in which it adds
    them when they are alone.

    >>> softmax_of_groups(np.array([2.0, 2.0, 7.0, 5.0, 5.0]), [0, 2, 3, 5]).tolist()
    [0.5, 0.5, 1.0, 0.5, 0.5]
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


def write_answers(answers: Answers, output_dir: str, prefix: str | None = None) -> None:
    """Write `predictions.json`, `nbest_predictions.json` and, where there are any, `null_odds.json`."""
    folder, before = Path(output_dir), "" if prefix is None else f"{prefix}_"
    os.makedirs(folder, exist_ok=True)
    write_json(folder / f"{before}nbest_predictions.json", (part.rows() for part in answers.nbest))
    write_json(folder / f"{before}predictions.json", [answers.texts])
    if answers.null_odds:
        write_json(folder / f"{before}null_odds.json", [answers.null_odds])
    else:  # of an earlier evaluation
        (folder / f"{before}null_odds.json").unlink(missing_ok=True)
