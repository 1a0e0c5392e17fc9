"""From logits or best positions to answers: texts, candidates with probabilities, and null odds, on plain arrays."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from qa.candidates import Candidates, best_positions
from qa.files import write_json
from qa.spans import EXAMPLES_AT_ONCE, column_of, null_spans, rank_spans, spans_of, window_spans


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
        spans = window_spans(features, chosen, best, rules.n_best_size, rules.max_answer_length)
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
