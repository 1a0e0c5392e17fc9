"""An answer as lines for a person: the answer, its probability, where it stands, and the words around it."""

import os
from collections.abc import Iterator


AROUND = 60  # characters that are shown before and after an answer
BOLD = ("\x1b[1m", "\x1b[0m")
BRACKETS = ("[", "]")


def marks_for(stream) -> tuple[str, str]:
    """Return the marks around an answer in its context: bold on a terminal, else brackets.

    Rule: https://no-color.org
    """
    styled = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return BOLD if styled else BRACKETS


def answer_lines(question: str, answer, context: str, marks: tuple[str, str]) -> Iterator[str]:
    """Yield the lines about an answer, a `qa.answerer.Answer`."""
    yield shown(question)
    probability = "" if answer.probability is None else f"probability {answer.probability:.2f}"
    known = answer.start is not None
    place = place_in_words(context, answer.start) if known else "not in the context word for word" * bool(answer.text)
    facts = ", ".join(filter(None, (probability, place)))
    yield f"  {shown(answer.text) or 'no answer'}" + (f"  ({facts})" if facts else "")
    if known:
        yield f"  {marked_excerpt(context, answer.start, answer.end, marks)}"


def place_in_words(context: str, start: int) -> str:
    """Return line and character of a place, both from 1, as editors count them.

    >>> place_in_words("The Nile\\nflows.", 9)
    'line 2, character 1'
    """
    line_start = context.rfind("\n", 0, start) + 1
    return f"line {context.count(chr(10), 0, start) + 1}, character {start - line_start + 1}"


def marked_excerpt(context: str, start: int, end: int, marks: tuple[str, str] = BRACKETS) -> str:
    """Return an answer with the words around it, on one line.

    >>> marked_excerpt("The Nile flows\\nthrough Egypt.", 4, 8)
    'The [Nile] flows through Egypt.'
    """
    before, after = context[max(0, start - AROUND) : start], context[end : end + AROUND]
    if start > AROUND:
        before = f"... {before.partition(' ')[2] or before}"
    if len(context) > end + AROUND:
        after = f"{after.rpartition(' ')[0] or after} ..."
    line = f"{shown(before, ends=True)}{marks[0]}{shown(context[start:end])}{marks[1]}{shown(after, ends=True)}"
    return line.strip()


def shown(text: str, ends: bool = False) -> str:
    """Return a text on one line, without characters that control a terminal.

    Args:
        ends: keep a blank at the beginning and at the end.

    >>> shown("two\\nlines \\x1b[2J")
    'two lines \\ufffd[2J'
    """
    joined = " ".join(text.split())
    if ends and joined:
        joined = f"{' ' * text[0].isspace()}{joined}{' ' * text[-1].isspace()}"
    return "".join(
        "\ufffd" if mark < " " or "\x7f" <= mark <= "\x9f" else mark for mark in joined or " " * (ends and bool(text))
    )
