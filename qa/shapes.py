"""Turn records with any columns into rows of one shape.

A row is `{"id": str, "title": str, "context": str, "question": str, "answers": {"text": [str], "answer_start": [int]}}`.
Annotation tools and libraries write answers in many more forms: `common_answers` lists them, and docs/data.md has an
example of each.
"""

import ast
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator

from qa.errors import UserError, short


TEXT_KEYS = ("text", "answer_text")
START_KEYS = ("answer_start", "start")
UNKNOWN = -1  # the start of an answer that has to be looked up
FLAGS = dict.fromkeys(("true", "1", "1.0", "yes"), True) | dict.fromkeys(("false", "0", "0.0", "no", ""), False)


def check_columns(
    records: list[dict], source: str, data_args, needs_answers: bool, report_columns: Iterable[str] = ()
) -> None:
    """Check that each column that the flags name has a value in some record.

    Answers are also known where `is_impossible` says so.

    Args:
        report_columns: those of `--report_columns`, in data that a report is about.

    Raises:
        UserError: with all columns that are missing.
    """
    columns = dict.fromkeys(name for record in records for name, value in record.items() if value is not None)
    flags = ["question_column", "context_column"] + ["id_column"] * (data_args.id_column is not None)
    flags += ["answer_column"] * (needs_answers and not any(map(says_impossible, records)))
    named = [(flag, getattr(data_args, flag)) for flag in flags]
    named += [("report_columns", name) for name in report_columns]
    missing = [(flag, name) for flag, name in named if name not in columns]
    if records and missing:
        there = ", ".join(shortened(name) for name in itertools.islice(filter(None, columns), 20))
        names, flags = ", ".join(f"`{name}`" for _, name in missing), dict.fromkeys(f"--{flag}" for flag, _ in missing)
        one = "one" if len(missing) == 1 else "ones"
        raise UserError(
            f"{source}: no column {names}; there are: {there}; name the right {one} with {', '.join(flags)}"
        )


def shortened(name: str) -> str:
    """Return the name of a column on one line; the first row of a file without a header may be long texts."""
    line = " ".join(name.split())
    return line if len(line) <= 40 else f"{line[:40]}..."


def common_shape(record: dict, number: int, data_args) -> dict:
    """Return a record, the `number`-th (from 1), as a row: the columns that the flags name, under their common names.

    Without an id, its number (from 0) is its id. `answers` are None where they cannot be read.
    """
    title, identity = record.get("title"), number_text(record.get(data_args.id_column or "id"))
    try:
        answers = answers_of(record, data_args)
    except ValueError:  # `answers_problem` reports it, if the answers are needed
        answers = None
    return {
        "id": str(number - 1 if is_missing(identity) or isinstance(identity, (list, dict)) else identity),
        "title": title if isinstance(title, str) else "",
        "context": record.get(data_args.context_column),
        "question": record.get(data_args.question_column),
        "answers": answers,
    }


def record_problem(record: dict, data_args) -> str | None:
    """Return why a record cannot be a row: fields beyond the header, or an id that is none; None for a good one."""
    if None in record:
        surplus = record[None]
        return (
            f"it has more fields than the header ({len(surplus)}, from {short(surplus[0])} on); "
            "quote fields that contain the delimiter"
        )
    identity = record.get(data_args.id_column or "id")
    if data_args.id_column is not None and is_missing(identity):
        return f"its column `{data_args.id_column}` (--id_column) is empty; fill it, or omit --id_column"
    if isinstance(identity, (list, dict)):
        return f"its id {short(identity)} is neither a text nor a number; name another column with --id_column"
    return None


def answers_problem(record: dict, data_args) -> str | None:
    """Return why a record's answers cannot be read, with the value found; None where they can."""
    try:
        answers_of(record, data_args)
    except ValueError as error:
        return str(error)
    return None


def answers_of(record: dict, data_args) -> dict:
    to_flag(record.get("is_impossible"))  # it is unknown whether such answers count
    context = record.get(data_args.context_column)
    text, answer = context if isinstance(context, str) else "", record.get(data_args.answer_column)
    answer = number_in(answer, text) if isinstance(answer, float) and math.isfinite(answer) else answer
    return common_answers(answer, record.get("answer_start"), text)


def number_in(number: float, context: str) -> str:
    """Return a number, as a cell of Excel holds one, as text; with a decimal comma where the context has it so.

    >>> number_in(3.5, "Der Anteil stieg auf 3,5 %."), number_in(3.5, "It rose to 3.5 %."), number_in(3.0, "3 %")
    ('3,5', '3.5', '3')
    """
    text = str(number_text(number))
    with_comma = text.replace(".", ",")
    return with_comma if with_comma in context and text not in context else text


def says_impossible(record: dict) -> bool:
    """Return whether a record's `is_impossible` is true, in any spelling of CSV files."""
    try:
        return to_flag(record.get("is_impossible"))
    except ValueError:
        return False


def common_answers(value, start=None, context: str = "") -> dict:
    """Return answers in any known form as `{"text": [...], "answer_start": [...]}`, with empty lists where none is written.

    Forms of `value`:

    - `{"text": [...], "answer_start": [...]}`; each may be a single value; also `answer_text` and `start`;
    - a list of `{"text", "answer_start"}` (SQuAD) or `{"start", "end", "text"}` (Label Studio);
    - `{"text", "char_spans": [[start, end], ...]}` of the `context`, or a list of them (MRQA);
    - a text, a number, or a list of them, with `start` (one or a list) or without;
    - any of these as JSON, or as Python or numpy print it, which CSV cells hold.

    A start counts characters from 0. It may be a whole float (pandas) or a text; nothing and negative ones become -1,
    the start of an answer that has to be looked up. Texts that are null or blank are omitted.

    Raises:
        ValueError: none of these forms, or a start that is no position; with the value found.
    """
    value = parse_cell(value)
    if is_missing(value):
        return {"text": [], "answer_start": []}
    pairs = [pair for pair in answer_pairs(value, parse_cell(start), context) if pair[0].strip()]
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def answer_pairs(value, start, context: str) -> Iterator[tuple[str, int]]:
    """Yield each answer's text and start."""
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for entry in value:
            yield from answer_pairs(entry, None, context)
    elif isinstance(value, dict) and value.get("char_spans"):
        yield from answer_pairs(answers_of_spans(value, context), None, context)
    elif isinstance(value, dict) and value:
        if not any(key in value for key in TEXT_KEYS):
            raise ValueError(f"the answer {short(value)} has no `text`; add it")
        yield from paired(first_of(value, TEXT_KEYS), first_of(value, START_KEYS))
    elif not isinstance(value, dict):
        yield from paired(value, start)


def answers_of_spans(answer: dict, context: str) -> list[dict]:
    """Return MRQA's answers, one for each span: of a text with its spans, or (on the hub) of texts with the spans of each."""
    texts, spans = first_of(answer, TEXT_KEYS), answer["char_spans"]
    try:
        if isinstance(texts, list):
            spans = [list(zip(span["start"], span["end"], strict=True)) for span in spans]
        else:
            texts, spans = [texts], [spans]
        return [
            {"text": text_of_span(context, to_text(text), start, end), "start": start}
            for text, places in zip(texts, spans, strict=True)
            for start, end in places
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"the char_spans {short(answer['char_spans'])} are not [[start, end], ...] for each text"
        ) from error


def text_of_span(context: str, text: str, start: int, end: int) -> str:
    """Return the context from start to end, both inclusive, where that is the text apart from case, articles and punctuation.

    MRQA normalizes its texts (https://github.com/mrqa/MRQA-Shared-Task-2019#dataset-format).

    >>> text_of_span("It is the U.S. Senate.", "us senate", 6, 20), text_of_span("Cairo", "Nile", 0, 4)
    ('the U.S. Senate', 'Nile')
    """
    span = context[start : end + 1]
    same = re.sub(r"\W", "", text).casefold() in re.sub(r"\W", "", span).casefold()
    return span if same and not context.startswith(text, start) else text


def paired(texts, starts) -> Iterable[tuple[str, int]]:
    """Return the pairs of texts and starts, lists or single values; a single text may have several starts."""
    if not isinstance(texts, list):
        texts = [texts] * (len(starts) if isinstance(starts, list) and starts else 1)
    if is_missing(starts) or all(map(is_missing, texts)):
        starts = [UNKNOWN] * len(texts)
    elif not isinstance(starts, list):
        starts = [starts]
    if len(texts) != len(starts):
        raise ValueError(f"{len(texts)} answers, {short(texts)}, have {len(starts)} starts, {short(starts)}")
    return zip(map(to_text, texts), map(to_start, starts))


def to_text(value) -> str:
    """Return an answer as a text; nothing is ""."""
    if is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"the answer {short(value)} is not a text; write it as one")
    return str(number_text(value))


def column_text(value) -> str:
    """Return the value of any column as a text; nothing is "".

    >>> column_text(2021.0), column_text("a"), column_text(None), column_text(["a", 1])
    ('2021', 'a', '', '["a", 1]')
    """
    if is_missing(value):
        return ""
    return json.dumps(value, default=str) if isinstance(value, (list, dict)) else str(number_text(value))


def number_text(value):
    """Return a whole float without the `.0` that pandas and Excel add to integers; return other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_start(value) -> int:
    """Return a start as an integer, -1 for one that is unknown: nothing, or a negative one."""
    if is_missing(value):
        return UNKNOWN
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer() or number >= 2**31:
        raise ValueError(f"the answer_start {short(value)} is not a position in a text; count its characters from 0")
    return max(int(number), UNKNOWN)


def to_flag(value) -> bool:
    """Return `is_impossible` as a bool; nothing is False."""
    word = "" if is_missing(value) else str(value).strip().lower() if isinstance(value, (str, int, float)) else None
    if word not in FLAGS:
        raise ValueError(f"is_impossible is {short(value)}; write true or false")
    return FLAGS[word]


def is_missing(value) -> bool:
    """Return whether a value is missing: null, an empty cell, or the NaN that pandas makes of them."""
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)


def first_of(record: dict, keys: Iterable[str]):
    """Return the value of the first of the keys that has one, None without."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


# ---------------------------------------------------------------------------------------------------------------------
# Cells


# A quoted text, a number or a name, then a blank in place of a comma: numpy prints arrays as `['a' 'b']`.
SEPARATED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\w.+-]+)(\s+(?=['"\w.+-]))?""", re.DOTALL)
DICT_LIKE = re.compile(r"\[?\s*\{\s*['\"]")


def parse_cell(cell):
    """Return the list or dict that a cell holds as JSON, or as Python or numpy print it; else the cell itself.

    Nothing is evaluated. `array([...], dtype=...)` is its list, `nan` is None.

    Raises:
        ValueError: the cell begins as a dict does and cannot be read, or there can be no such list or dict.
    """
    text = cell.strip() if isinstance(cell, str) else ""
    if text[:1] not in ("{", "["):
        return cell
    try:
        return parse_literal(text)
    except (TypeError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply" if not isinstance(error, TypeError) else error
        raise ValueError(f"the cell {short(cell)} cannot be read: {reason}; write answers as JSON") from error
    except (SyntaxError, ValueError) as error:
        if DICT_LIKE.match(text):
            raise ValueError(
                f"the cell {short(cell)} is neither JSON nor what Python prints; write answers as JSON"
            ) from error
        return cell


def parse_literal(text: str) -> list | dict:
    try:
        return json.loads(text)
    except ValueError:
        pass
    with_commas = SEPARATED.sub(lambda match: match[1] + ("," if match[2] else ""), text)
    tree = ast.parse(with_commas, mode="eval").body
    if not isinstance(tree, (ast.List, ast.Dict)):
        raise ValueError("neither a list nor a dict")
    return ast.literal_eval(PlainLists().visit(tree))


class PlainLists(ast.NodeTransformer):
    """Replace numpy's calls by their argument (`array([1], dtype=int32)` by `[1]`), tuples by lists, `nan` by None."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = getattr(node.func, "id", None) or getattr(getattr(node.func, "value", None), "id", None)
        return self.visit(node.args[0]) if name in ("array", "np", "numpy") and node.args else node

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return ast.List(self.generic_visit(node).elts, ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if node.id == "nan" else node
