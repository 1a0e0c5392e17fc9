"""Places of answers in their contexts: offsets in other units, blanks around a text, a choice among several places.

A file of questions may have the place of each answer, may lack it, or may have a wrong one. Here every answer of a
file gets the place of its text, if its context holds that text.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from qa.numbers import count_of


class Place(NamedTuple):
    """The place of one answer in its context."""

    text: str
    given: int  # its first character according to the file, -1 where the file has none
    start: int  # its first character, -1 where the context does not hold the text
    choices: int  # number of places from which `start` was chosen; 1 where the file is right
    alike: str = ""  # a stretch of a context without the text that looks like it

    @property
    def moved(self) -> bool:
        return self.given >= 0 and self.start not in (-1, self.given)

    def __str__(self) -> str:
        where = f"is not at its answer_start {self.given}" if self.given >= 0 else "has no answer_start"
        place = "is not in the context" if self.start < 0 else f"occurs {self.choices} times in the context"
        hint = f", which has {self.alike!r:.60}; copy that" if self.alike else ""
        return f"the answer {self.text!r:.60} {where} and {place}{hint}"


def place_answers(rows: list[dict]) -> tuple[list[list[Place]], list[str]]:
    """Move the answers of every row of a file to where their texts are.

    Texts lose the blanks around them. An answer that its context does not hold gets the start -1 and comes after the
    others of its row.

    Returns:
        The places of each row's answers in the file's order, and a line for the log on each kind of change.
    """
    known = [row for row in rows if row["answers"] is not None]
    trimmed = sum(trim_answers(row["answers"]) for row in known)
    unit = convert_starts(known)
    places = [place_row(row) if row["answers"] is not None else [] for row in rows]
    moved = sum(place.moved for of_row in places for place in of_row)
    notes = {
        f"{count_of(trimmed, 'answer')} had blanks around the text, which were removed": trimmed,
        f"each answer_start counted {unit} and was converted": unit,
        f"{count_of(moved, 'answer')} did not begin at answer_start; each was moved to its text, the nearest of several": moved,
    }
    return places, [note for note, happened in notes.items() if happened]


def trim_answers(answers: dict) -> int:
    """Remove the blanks around the texts of one row; return how many answers had some.

    >>> answers = {"text": [" north ", "Cairo"], "answer_start": [14, -1]}
    >>> trim_answers(answers), answers
    (1, {'text': ['north', 'Cairo'], 'answer_start': [15, -1]})
    """
    trimmed = 0
    for index, (text, start) in enumerate(zip(answers["text"], answers["answer_start"])):
        if text != text.strip():
            before = len(text) - len(text.lstrip())
            answers["text"][index] = text.strip()
            answers["answer_start"][index] = start + before if start >= 0 else start
            trimmed += 1
    return trimmed


# ---------------------------------------------------------------------------------------------------------------------
# Offsets in other units


def from_utf16(context: str, start: int) -> int:
    """Convert an offset in UTF-16 code units, as JavaScript and Java count.

    >>> from_utf16("😀 Nile", 3)
    2
    """
    return len(context.encode("utf-16-le")[: 2 * start].decode("utf-16-le", "ignore"))


def from_utf8(context: str, start: int) -> int:
    """Convert an offset in bytes of UTF-8.

    >>> from_utf8("Rhône flows", 7)
    6
    """
    return len(context.encode()[:start].decode(errors="ignore"))


def without_returns(context: str, start: int) -> int:
    r"""Convert an offset that counts line ends as one character, in a context that has \r\n.

    >>> without_returns("a\r\nb\r\nc", 4)
    6
    """
    place = context.find("\r")
    while 0 <= place <= start:
        start += 1
        place = context.find("\r", place + 1)
    return start


def with_returns(context: str, start: int) -> int:
    r"""Convert an offset that counts line ends as two characters, in a context that has \n.

    >>> with_returns("a\nb\nc", 6)
    4
    """
    place = context.find("\n")
    while 0 <= place < start:
        start -= 1
        place = context.find("\n", place + 1)
    return start


UNITS: dict[str, Callable[[str, int], int]] = {
    "UTF-16 code units": from_utf16,
    "bytes of UTF-8": from_utf8,
    "line ends as one character": without_returns,
    "line ends as two characters": with_returns,
}


def convert_starts(rows: list[dict]) -> str | None:
    """Convert all starts of a file where they count another unit than characters; return the name of that unit.

    That is the case where counting characters does not put every answer at its text, and one other unit does. Missing
    starts, and answers that are not in their context, do not count as evidence.

    >>> row = {"context": "😀 Cairo, Cairo", "answers": {"text": ["Cairo"], "answer_start": [10]}}
    >>> convert_starts([row]), row["answers"]["answer_start"]
    ('UTF-16 code units', [9])
    """
    answers = [
        (row, index, text, start)
        for row in rows
        for index, (text, start) in enumerate(zip(row["answers"]["text"], row["answers"]["answer_start"]))
        if start >= 0 and text in row["context"]
    ]
    if all(is_at(row["context"], text, start) for row, _, text, start in answers):
        return None
    found = {}
    for unit, convert in UNITS.items():
        starts = converted_starts(convert, ((row["context"], text, start) for row, _, text, start in answers))
        if starts is not None:
            found.setdefault(starts, unit)
    if len(found) != 1:
        return None
    ((starts, unit),) = found.items()
    for (row, index, _, _), start in zip(answers, starts):
        row["answers"]["answer_start"][index] = start
    return unit


def converted_starts(
    convert: Callable[[str, int], int], answers: Iterable[tuple[str, str, int]]
) -> tuple[int, ...] | None:
    """Return the starts of (context, text, start) by one unit, None where a text is not at its own start."""
    starts = []
    for context, text, start in answers:
        starts.append(convert(context, start))
        if not is_at(context, text, starts[-1]):
            return None
    return tuple(starts)


# ---------------------------------------------------------------------------------------------------------------------
# The choice of a place


def place_row(row: dict) -> list[Place]:
    """Move the answers of one row to their places and those without a place to the end; return all places."""
    answers = row["answers"]
    starts = zip(answers["text"], answers["answer_start"])
    places = [find_place(row["context"], text, start) for text, start in starts]
    placed_first = sorted(places, key=lambda place: place.start < 0)
    answers["text"] = [place.text for place in placed_first]
    answers["answer_start"] = [place.start for place in placed_first]
    return places


def find_place(context: str, text: str, start: int) -> Place:
    """Return the place of an answer: its start where the text is there, else the nearest place, else the first.

    >>> find_place("Cairo is Cairo", "Cairo", 8).start, find_place("Cairo is Cairo", "Cairo", -1).start
    (9, 0)
    """
    if is_at(context, text, start):
        return Place(text, start, start, 1)
    found = occurrences(context, text)
    nearest = min(found, key=lambda place: abs(place - start) if start >= 0 else place, default=-1)
    return Place(text, start, nearest, len(found), "" if found else alike(context, text))


LOOKS = str.maketrans("„“”«»‚‘’‐‑‒–—−", '"' * 5 + "'" * 3 + "-" * 6)  # what keyboards have in place of each


def alike(context: str, text: str) -> str:
    """Return the first stretch of a context that equals a text apart from case, blanks, and the kind of quotes and dashes.

    >>> alike("Er sagte „Ja“ – zweimal.", '"ja" - zweimal'), alike("a b", "c")
    ('„Ja“ – zweimal', '')
    """
    words = map(re.escape, text.translate(LOOKS).split())
    found = re.search(r"\s+".join(words), context.translate(LOOKS), flags=re.IGNORECASE)
    return context[found.start() : found.end()] if found else ""


def is_at(context: str, text: str, start: int) -> bool:
    return start >= 0 and context.startswith(text, start)


def occurrences(context: str, text: str) -> list[int]:
    """Return where a text occurs; where it also occurs as whole words, only those places.

    >>> occurrences("an artist makes art", "art"), occurrences("1912-1912", "191"), occurrences("aaa", "aa")
    ([16], [0, 5], [0, 1])
    """
    found, place = [], context.find(text)
    while place >= 0:
        found.append(place)
        place = context.find(text, place + 1)
    return [place for place in found if is_whole(context, place, place + len(text))] or found


def is_whole(context: str, begin: int, end: int) -> bool:
    """Return whether no word crosses the beginning or the end of a stretch of text."""
    return not any(
        0 < edge < len(context) and context[edge - 1].isalnum() and context[edge].isalnum() for edge in (begin, end)
    )
