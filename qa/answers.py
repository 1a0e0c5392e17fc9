"""From logits to answers: best positions, spans, ranking and null odds, on plain arrays."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import starmap
from json.encoder import encode_basestring_ascii
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute

from qa.files import float_strings, json_of_groups, json_of_objects, write_object
from qa.windows import Features


# How many examples are post-processed together: it bounds memory (1,000 windows of 384 tokens take 20 MB).
EXAMPLES_AT_ONCE = 1000  # must fit 16 bits


PAIRS_AT_ONCE = 1 << 20  # of a window's starts and ends, of all windows


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


def best_positions(
    logits: tuple[np.ndarray, np.ndarray],
    cls_index: np.ndarray,
    n_best_size: int,
    lengths: np.ndarray | None = None,
) -> Candidates:
    """The `n_best_size` best starts and ends of each feature.

    Args:
        logits: of starts and ends, (features, length) each.
        cls_index: (features,) the position that stands for "no answer".
        lengths: (features,) tokens of each feature. The positions after them are padding and never among the best, so
            that the result does not depend on how far a feature is padded. Without it every position counts.
    """
    (starts, start_logits), (ends, end_logits) = (best_of_side(side, n_best_size, lengths) for side in logits)
    null = [np.take_along_axis(side, cls_index[:, None], axis=1) for side in logits]
    return Candidates(starts, ends, start_logits, end_logits, np.concatenate(null, axis=1))


def best_of_side(logits: np.ndarray, number: int, lengths: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(features, number) positions of the highest logits, best first, and those logits; -1 and 0 where there are fewer."""
    if lengths is None:
        # The same argsort as a loop over windows would call, so that ties fall as they do there; argpartition's do not.
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
    """A column of a `datasets.Dataset` or of a list of dicts."""
    return list(table[name]) if hasattr(table, "column_names") else [row[name] for row in table]


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


def with_empty_row(start_logits: np.ndarray, end_logits: np.ndarray, scores: np.ndarray) -> str:
    """N-best rows that hold no text, behind the reference's row for that case: the text "empty" with score 0."""
    probabilities = softmax_of_groups(np.array([0.0, *scores]), [0, len(scores) + 1])
    zero = float_strings(np.zeros(1))
    columns = {"text": pyarrow.array(['"empty"']), "start_logit": zero, "end_logit": zero}
    first = json_of_objects(**columns, probability=float_strings(probabilities[:1]))
    others = nbest_rows(start_logits, end_logits, ['""'] * (len(scores)), probabilities[1:])
    return json_of_groups(pyarrow.concat_arrays([first, others]), np.array([0, len(probabilities)]))[0]


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
