"""The table of answers: a row for each question, with what a person or the report reads about its answer.

`qa.answer_files` writes it to `eval_answers.csv` or `predict_answers.csv`, and reads it again.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from qa.answers import Answers, RankedSpans
from qa.metrics import mlqa_scores_of_each, normalize_all, score_each
from qa.spans import spans_of


CONTEXT_AROUND = 200  # characters of the context that the table shows before and after the answers
LONGEST_WORD = 40  # characters; a context is not cut within a shorter one
WHOLE_CONTEXT = 600  # a shorter context is shown whole
LONGEST_CONTEXT = 20_000  # characters; a cell of Excel holds 32,767
OTHER_CHOICES = 5  # that are kept of a wrong answer
BETWEEN_GOLDS = " | "

Place = tuple[int | None, int | None]  # the first character of a text in its context, and the one after its last
NOWHERE = (None, None)


@dataclass
class Choices:
    """The candidates for the answers to some questions; lists have an entry for each question."""

    rank: list[int] = field(default_factory=list)  # the place of the answer among them, from 0
    scores: list[np.ndarray] = field(default_factory=list)  # of all, the best first; empty for a model that writes
    others: dict[str, list[tuple]] = field(default_factory=dict)  # text and probability, by id of a wrong answer

    def add(self, entries: dict[str, list[dict]], texts: dict[str, str], wrong: set[str]) -> None:
        """Add the entries of the n-best file of some questions.

        Args:
            texts: the answers by id.
            wrong: the ids of the wrong ones.
        """
        for name, rows in entries.items():
            rank = rank_of(rows, texts[name])
            self.rank.append(rank)
            if "start_logit" in rows[0]:
                sides = [[row[side] for row in rows] for side in ("start_logit", "end_logit")]
                self.scores.append(np.array(sides, dtype=np.float32).sum(axis=0))
            if name in wrong:
                others = [row for place, row in enumerate(rows) if place != rank][:OTHER_CHOICES]
                self.others[name] = [(row["text"], row["probability"]) for row in others]


@dataclass
class AnswerTable:
    """The answers to all questions of a stage.

    The columns are those of the file, see docs/report.md: a list for each, with an entry for each question, None where
    it has none. Scores are in percent.
    """

    columns: dict[str, list]
    data_columns: list[str]  # those of the columns that are columns of the data
    choices: Choices

    def __len__(self) -> int:
        return len(self.columns["id"])

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers, (questions,), NaN where a question has none."""
        return np.array(self.columns[name], dtype=float)


def has_answer(table: AnswerTable) -> np.ndarray:
    """Return (questions,) whether each question has a gold answer."""
    return np.array([bool(gold) for gold in table.columns["gold"]])


def make_table(answers: Answers, rows, windows: np.ndarray, golds: list[dict] | None, language: str) -> AnswerTable:
    """Return the table of answers.

    Args:
        rows: the questions; those of `qa.data` also have their `row` of the file, and `columns` of the data.
        windows: (rows,) the number of windows of each.
        golds: the gold answers by which each row is scored; None where they are not known.
        language: of MLQA's scores, or "off".
    """
    ids, contexts = [row["id"] for row in rows], [row["context"] for row in rows]
    texts = None if golds is None else {name: list(gold["text"]) for name, gold in zip(ids, golds)}
    scores = {} if texts is None else answer_scores(answers, texts, language)
    choices, found = read_candidates(answers, texts, scores)
    spans = zip(found["place"], contexts, answers.texts.values())
    places = [written_place(context, text) if place is None else place for place, context, text in spans]
    gold_places = [gold_place(gold) for gold in golds or ids]
    excerpts = [excerpt(context, place, gold) for context, place, gold in zip(contexts, places, gold_places)]
    columns = {
        "id": ids,
        "question": [row["question"] for row in rows],
        "context": [text for text, _ in excerpts],
        "gold": texts and [BETWEEN_GOLDS.join(dict.fromkeys(part)) for part in texts.values()],
        "predicted": list(answers.texts.values()),
        **{name: scores.get(name) for name in ("exact_match", "f1")},
        "probability": found["probability"],
        "null_odds": list(answers.null_odds.values()),
        **place_columns(places, "start", "end"),
        "row": [row.get("row") for row in rows],
        "windows": windows.tolist(),
        "context_length": [len(context) for context in contexts],
        "context_start": [start for _, start in excerpts],
        **(texts and place_columns(gold_places, "gold_start", "gold_end") or {}),
        "right_choice": found.get("right"),
        "best_text": answers.null_odds and list(answers.best_texts.values()),
    }
    columns = {name: column for name, column in (columns | scores).items() if column}
    data = data_columns(rows, columns)
    return AnswerTable(columns | data, list(data), choices)


def place_columns(places: list[Place], start: str, end: str) -> dict[str, list]:
    """Return two columns with these names of the starts and of the ends of places."""
    return {start: [place[0] for place in places], end: [place[1] for place in places]}


def answer_scores(answers: Answers, golds: dict[str, list[str]], language: str) -> dict[str, list[float]]:
    """Return EM and F1 of each answer in percent; with negatives also of the best text, with a language also MLQA's."""
    negatives = bool(answers.null_odds)
    found = {"": score_each(answers.texts, golds, version_2=negatives)}
    if negatives:
        found["best_"] = score_each(answers.best_texts, golds, version_2=True)
    if language != "off":
        found["mlqa_"] = mlqa_scores_of_each(answers.texts, golds, negatives, language)
    return {
        f"{kind}{name}": [100.0 * pair[index] for pair in scores.values()]
        for kind, scores in found.items()
        for index, name in enumerate(("exact_match", "f1"))
    }


# ---------------------------------------------------------------------------------------------------------------------
# Candidates


def read_candidates(
    answers: Answers, golds: dict[str, list[str]] | None, scores: dict[str, list]
) -> tuple[Choices, dict[str, list]]:
    """Return the candidates for all answers, and by name lists with an entry for each question: what they say about it.

    These are `place`, `probability` and with gold answers `right`: which candidate is the first right one.
    """
    names = list(answers.texts)
    wrong = {name for name, exact in zip(names, scores.get("exact_match", ())) if not exact}
    best = scores.get("best_exact_match", scores.get("exact_match", ()))
    best_wrong = {name for name, exact in zip(names, best) if not exact}
    choices, places, probabilities, right = Choices(), [], [], {}
    for part in answers.nbest:
        entries = part.rows()  # of 1,000 questions: those of 200,000 would take over a GB
        choices.add(entries, answers.texts, wrong)
        ranks = choices.rank[len(places) :]
        places += answer_places(part, entries, ranks)
        chosen = zip(entries.items(), ranks)
        probabilities += [probability_of(rows, answers.texts[name], rank) for (name, rows), rank in chosen]
        right |= {} if golds is None else first_right(entries, golds, best_wrong)
    found = {"place": places, "probability": probabilities}
    return choices, found | ({} if golds is None else {"right": [right.get(name) for name in names]})


def rank_of(rows: list[dict], text: str) -> int:
    """Return the place of an answer among its candidates, from 0; that of the best one for an answer that is not there.

    The candidates of a model that writes do not include "no answer".
    """
    return next((place for place, row in enumerate(rows) if row["text"] == text), 0)


def probability_of(rows: list[dict], text: str, rank: int) -> float | None:
    """Return the probability of an answer: among the candidates, or for a model that writes that of writing it."""
    row = rows[rank]
    if "score" not in row:
        return row["probability"]
    score = row["score"] if text.strip() or "null_score" not in row else min(row["null_score"] for row in rows)
    return None if score is None else math.exp(min(0.0, score))


def first_right(entries: dict[str, list[dict]], golds: dict[str, list[str]], wrong: set[str]) -> dict[str, int]:
    """Return which candidate that has a text is the first right one, from 1; without questions where none is right.

    Args:
        wrong: the ids of the questions whose best text is wrong; that of the others is right.
    """
    texts = {
        name: list(dict.fromkeys(row["text"] for row in rows if row["text"].strip()))
        for name, rows in entries.items()
        if golds[name]
    }
    open_cases = {name: choices for name, choices in texts.items() if name in wrong}
    normalized = normalize_all(text for name in open_cases for text in (*open_cases[name], *golds[name]))
    found = {}
    for name, choices in texts.items():
        right = {normalized[text] for text in golds[name]} if name in open_cases else ()
        place = next((place for place, text in enumerate(choices, 1) if not right or normalized[text] in right), None)
        found |= {} if place is None else {name: place}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Places


def answer_places(part, entries: dict[str, list[dict]], ranks: list[int]) -> list[Place | None]:
    """Return where the answers to the questions of a part are in their contexts; None for written answers."""
    if not isinstance(part, RankedSpans):
        return [None] * len(entries)
    chosen = part.bounds[:-1] + np.array(ranks, dtype=int)
    places = zip(part.begin[chosen].tolist(), part.end[chosen].tolist())
    return [(begin, end) if 0 <= begin < end else NOWHERE for begin, end in places]


def written_place(context: str, text: str) -> Place:
    """Return the first place where a context has a written answer."""
    start = context.find(text.strip()) if text.strip() else -1
    return (start, start + len(text.strip())) if start >= 0 else NOWHERE


def gold_place(gold) -> Place:
    """Return the place of the first gold answer whose place is known."""
    if not isinstance(gold, dict):
        return NOWHERE
    places = zip(gold["answer_start"], gold["text"])
    return next(((start, start + len(text)) for start, text in places if start >= 0), NOWHERE)


def excerpt(context: str, *places: Place) -> tuple[str, int]:
    """Return as much of a context as its answers need, from a word to a word, and at which character it begins.

    >>> text, start = excerpt("x" * 1000 + " Cairo " + "y" * 1000, (1001, 1006), (None, None))
    >>> len(text), start
    (405, 801)
    """
    if len(context) <= WHOLE_CONTEXT:
        return context, 0
    known = [place for place in places if place[0] is not None]
    first, last = (min(begin for begin, _ in known), max(end for _, end in known)) if known else (0, CONTEXT_AROUND)
    begin, end = max(0, first - CONTEXT_AROUND), min(last, first + LONGEST_CONTEXT) + CONTEXT_AROUND
    if begin:
        begin = context.find(" ", begin, min(begin + LONGEST_WORD, first)) + 1 or begin
    if end < len(context):
        blank = context.rfind(" ", max(end - LONGEST_WORD, last), end)
        end = blank if blank >= 0 else end
    return context[begin:end], begin


def window_counts(features, ids: list[str]) -> np.ndarray:
    """Return the number of windows of each question, (questions,)."""
    return np.bincount(spans_of(features, ids).row, minlength=len(ids))


def data_columns(rows: Iterable[dict], taken: Iterable[str]) -> dict[str, list]:
    """Return the columns of the data that the rows hold; one whose name is `taken` has another.

    >>> data_columns([{"columns": {"topic": "rivers", "f1": "3"}}], taken=["id", "f1"])
    {'topic': ['rivers'], 'f1 (data)': ['3']}
    """
    names = dict.fromkeys(name for row in rows for name in row.get("columns", ()))
    return {
        f"{name} (data)" if name in taken else name: [row.get("columns", {}).get(name) for row in rows]
        for name in names
    }
