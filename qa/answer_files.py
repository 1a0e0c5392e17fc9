"""The table of answers as CSV, as spreadsheets open it: UTF-8 with a byte order mark, and no text that runs as a formula."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from qa.answer_table import AnswerTable, Choices
from qa.files import read_object, write_whole


WHOLE_NUMBERS = "start end row windows context_length context_start gold_start gold_end right_choice".split()
FRACTIONS = "exact_match f1 probability null_odds best_exact_match best_f1 mlqa_exact_match mlqa_f1".split()
TEXTS = ["id", "question", "context", "gold", "predicted", "best_text"]
DIGITS = 6  # of a fraction
LINES_AT_ONCE = 1000

# Excel, LibreOffice and Google Sheets take such a text for a formula; Excel also with the wide signs of East Asia. Those
# that begin with apostrophes are among them, so that removing one restores the text.
FORMULA = re.compile("'*[\\s\0]*[-=+@\uff0d\uff1d\uff0b\uff20]|'*[\t\r]")
NUMBER = re.compile(r"[-+]?\d[\d.,]*%?")


def table_name(stage: str) -> str:
    return f"{stage}_answers.csv"


def write_table(folder: Path, stage: str, table: AnswerTable) -> None:
    """Write the table of answers of a stage."""
    write_whole(folder / table_name(stage), csv_chunks(table.columns))


def csv_chunks(columns: dict[str, list]) -> Iterator[bytes]:
    """Yield a table as CSV; a character that UTF-8 does not have, half a surrogate pair, as its number."""
    rows = zip(*(list(map(cell_writer(name), column)) for name, column in columns.items()))
    yield b"\xef\xbb\xbf"
    yield csv_lines([list(map(guarded, columns))])
    while part := list(islice(rows, LINES_AT_ONCE)):
        yield csv_lines(part)


def csv_lines(rows: list) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def cell_writer(name: str):
    """Return the function that turns a value of a column into what the file shows of it."""
    if name in FRACTIONS:
        return lambda value: None if value is None else f"{value:.{DIGITS}g}"
    return (lambda value: value) if name in WHOLE_NUMBERS else guarded


def guarded(text: str | None) -> str | None:
    """Return a text with an apostrophe before it if a spreadsheet would run it; a number cannot do harm.

    >>> guarded("=1+1"), guarded("'@SUM(1)"), guarded("-5"), guarded("1-2")
    ("'=1+1", "''@SUM(1)", '-5', '1-2')
    """
    return f"'{text}" if text and FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def unguarded(text: str) -> str:
    """Return the text that `guarded` had.

    >>> unguarded(guarded("'=1+1")), unguarded(guarded("'tis"))
    ("'=1+1", "'tis")
    """
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def read_table(folder: Path, stage: str) -> AnswerTable:
    """Read a table and the candidates for its answers from the files of a run.

    Raises:
        OSError: there is no such table.
        ValueError: it is none of this version.
    """
    columns = read_csv_columns(folder / table_name(stage))
    known = {*WHOLE_NUMBERS, *FRACTIONS, *TEXTS}
    missing = {"id", "question", "context", "predicted", "row"}.difference(columns)
    if missing:
        raise ValueError(f"no column {min(missing)}")
    choices = Choices()
    texts = dict(zip(columns["id"], columns["predicted"]))
    wrong = {name for name, exact in zip(columns["id"], columns.get("exact_match", ())) if not exact}
    odds = read_object(folder / f"{stage}_null_odds.json")  # with all digits
    if "null_odds" in columns:
        columns["null_odds"] = [odds.get(name, value) for name, value in zip(columns["id"], columns["null_odds"])]
    entries = read_object(folder / f"{stage}_nbest_predictions.json")
    choices.add({name: entries[name] for name in texts if entries.get(name)}, texts, wrong)
    return AnswerTable(columns, [name for name in columns if name not in known], choices)


def read_csv_columns(path: Path) -> dict[str, list]:
    """Return the columns of a table; an empty cell of a text is "", that of a number None."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = list(csv.reader(file, strict=True)) or [[]]
    header = list(map(unguarded, header))
    kinds = dict.fromkeys(WHOLE_NUMBERS, int) | dict.fromkeys(FRACTIONS, float)
    readers = [kinds.get(name, unguarded) for name in header]
    cells = zip(*rows) if rows else [()] * len(header)
    return {
        name: [reader(cell) if cell or reader is unguarded else None for cell in column]
        for name, reader, column in zip(header, readers, cells, strict=True)
    }


def first_rows(path: Path, number: int) -> list[dict[str, str]]:
    """Return the first rows of a table, as texts by column."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [
            {unguarded(name): unguarded(cell or "") for name, cell in row.items()}
            for row in islice(csv.DictReader(file), number)
        ]
