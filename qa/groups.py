"""The scores of all questions, and of groups of them: by question word, lengths, place of the answer and columns of the data."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from qa.answer_table import BETWEEN_GOLDS, AnswerTable, has_answer


MOST_GROUPS = 12
QUESTION_WORDS = {"what", "who", "whom", "whose", "when", "where", "which", "why", "how"}
QUANTITIES = {"many", "much", "long", "often", "old", "far", "large", "high"}
NO_ANSWER = "no answer"
PLACES = ["first fifth", "second", "third", "fourth", "last fifth"]


def score_parts(table: AnswerTable) -> list[dict]:
    """Return the scores of all questions, and with negatives of those with an answer and of those without."""
    answered = has_answer(table)
    kinds = {"": np.ones(len(table), dtype=bool)}
    if "null_odds" in table.columns:
        kinds |= {"with an answer": answered, "without an answer": ~answered}
    names = {"exact_match": "EM", "f1": "F1", "mlqa_exact_match": "MLQA's EM", "mlqa_f1": "MLQA's F1"}
    return [
        {"name": name, "label": label, "of": kind, "values": table.numbers(name), "counted": counted}
        for kind, counted in kinds.items()
        if counted.any()
        for name, label in names.items()
        if name in table.columns
    ]


@dataclass
class Grouping:
    """A way to group the questions."""

    title: str
    names: list[str]  # of the groups, in the order to show
    group: np.ndarray  # (questions,) the place of each question's group among the names


def groupings(table: AnswerTable) -> list[Grouping]:
    """Return the ways to group the questions that put them into more than one group."""
    columns = table.columns
    golds = [gold.split(BETWEEN_GOLDS)[0] for gold in columns["gold"]]
    answered, gold_start = has_answer(table), table.numbers("gold_start")
    fifth = np.floor(len(PLACES) * gold_start / np.maximum(1, columns["context_length"]))
    fifth = np.where(np.isnan(gold_start), len(PLACES), np.minimum(fifth, len(PLACES) - 1)).astype(int)
    place = np.where(answered, fifth, len(PLACES) + 1)
    words = by_range("Words of the answer", np.array([len(gold.split()) for gold in golds]), [0, 1, 2, 3, 4, 7])
    words.names[0] = NO_ANSWER
    found = [
        by_frequency("Question word", [question_word(question) for question in columns["question"]]),
        words,
        by_quarter("Characters of the context", table.numbers("context_length")),
        by_range("Windows", table.numbers("windows"), [1, 2, 3, 4]),
        Grouping("Place of the answer in the context", [*PLACES, "not in the context", NO_ANSWER], place),
    ]
    found += [by_value(f"Column {name}", columns[name]) for name in table.data_columns]
    return [grouping for grouping in found if len(np.unique(grouping.group)) > 1]


def group_parts(table: AnswerTable) -> list[dict]:
    """Return the parts for `with_intervals` of every group: their value is F1, and they have their EM."""
    f1, exact, parts = table.numbers("f1"), table.numbers("exact_match"), []
    for grouping in groupings(table):
        for place in np.unique(grouping.group):
            counted = grouping.group == place
            part = {"title": grouping.title, "group": grouping.names[place], "values": f1, "counted": counted}
            parts.append(part | {"exact_match": float(exact[counted].mean())})
    return parts


def question_word(question: str) -> str:
    """Return the word that says what a question asks for: an English one, else the first.

    >>> question_word("In what year did it end?"), question_word("How many?"), question_word("¿Dónde está?")
    ('what', 'how many', 'dónde')
    """
    words = re.findall(r"\w+", question.lower()) or [""]
    place = next((place for place, word in enumerate(words) if word in QUESTION_WORDS), 0)
    two = words[place : place + 2]
    return " ".join(two) if two[0] == "how" and two[-1] in QUANTITIES else two[0]


def by_frequency(title: str, values: list[str]) -> Grouping:
    """Group by value, the most frequent first; values beyond `MOST_GROUPS` are one group."""
    number = Counter(values)
    names = sorted(number, key=lambda name: (-number[name], name))
    kept = names if len(names) <= MOST_GROUPS else names[: MOST_GROUPS - 1]
    place = dict(zip(kept, range(len(kept))))
    others = [] if len(kept) == len(names) else [f"{len(names) - len(kept)} others"]
    group = np.array([place.get(value, len(kept)) for value in values])
    return Grouping(title, [name or "(empty)" for name in kept] + others, group)


def by_range(title: str, values: np.ndarray, starts: list[float]) -> Grouping:
    """Group by range; each begins at one of the `starts` and ends before the next.

    >>> by_range("Words", np.array([1, 5, 2, 9]), [0, 1, 2, 4, 7]).names
    ['0', '1', '2 to 3', '4 to 6', '7 or more']
    """
    ends = [end - 1 for end in starts[1:]]
    names = [f"{start}" if start == end else f"{start} to {end}" for start, end in zip(starts, ends)]
    return Grouping(title, [*names, f"{starts[-1]} or more"], np.searchsorted(starts, values, side="right") - 1)


def by_quarter(title: str, values: np.ndarray) -> Grouping:
    """Group numbers into four ranges that hold about as many questions each."""
    starts = np.unique(np.ceil(np.quantile(values, [0, 0.25, 0.5, 0.75]))).astype(int).tolist()
    return by_range(title, values, [math.floor(values.min()), *starts[1:]])


def by_value(title: str, values: list[str]) -> Grouping:
    """Group by the values of a column, or by their quarters where they are many numbers."""
    try:
        numbers = np.array(values, dtype=float)
    except ValueError:
        numbers = np.array([np.nan])
    many = len(set(values)) > MOST_GROUPS and np.isfinite(numbers).all() and np.ptp(numbers) >= MOST_GROUPS
    return by_quarter(title, numbers) if many else by_frequency(title, values)
