"""Files of questions, as rows of one shape: bytes to records with any columns, records to rows."""

import ast
import csv
import gzip
import io
import json
from pathlib import Path

from qa.errors import UserError


def read_file(path: Path) -> list[dict]:
    """The rows of a data file as it has them, whatever their columns.

    Raises:
        UserError: the file is not what its name says.
    """
    packed = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if packed else path.suffix
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            if kind == ".parquet":
                import pyarrow.parquet

                rows = pyarrow.parquet.read_table(file).to_pylist()
            else:
                text = file.read().decode("utf-8-sig")
                rows = read_csv(text) if kind == ".csv" else read_json(text)
    except (OSError, EOFError, ValueError, csv.Error) as error:  # pyarrow's and json's errors are ValueErrors too
        raise UserError(f"{path}: cannot be read as {kind}: {' '.join(str(error).split())[:300]}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: a row is not an object of columns")
    return rows


def read_csv(text: str) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # the default refuses contexts over 128 KiB
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def read_json(text: str) -> list[dict]:
    """JSON of any supported layout; what is not one document is read as JSON lines."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if "Extra data" not in error.msg:
            raise
        content = [read_json_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if isinstance(content, dict):
        content = content.get("data", [content])
    if not isinstance(content, list):
        raise ValueError("neither a list of rows nor an object with a list under `data`")
    if content and isinstance(content[0], dict) and "paragraphs" in content[0]:
        return flatten_squad(content)
    return content


def read_json_line(line: str, number: int):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON: {error.msg} (column {error.colno})") from error


def flatten_squad(articles: list[dict]) -> list[dict]:
    """SQuAD's own layout (articles > paragraphs > qas, versions 1.1 and 2.0) as one row a question."""
    try:
        return [
            {
                "id": qa["id"],
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": qa.get("answers"),
                "is_impossible": qa.get("is_impossible"),
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"SQuAD's layout (data > paragraphs > qas) breaks off: {error!r}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Records to rows


def check_columns(raw: list[dict], source: str, data, needs_answers: bool) -> None:
    """Raises a UserError for the columns that no row has a value in; a row that says `is_impossible` needs no answers."""
    columns = dict.fromkeys(name for row in raw for name, value in row.items() if value is not None)
    flags = ["question_column", "context_column"]
    flags += ["answer_column"] if needs_answers and not any(map(says_impossible, raw)) else []
    missing = [flag for flag in flags if getattr(data, flag) not in columns]
    if raw and missing:
        raise UserError(
            *(
                f"{source}: no column `{getattr(data, flag)}` (--{flag}); there are: {', '.join(columns)}"
                for flag in missing
            )
        )


def says_impossible(record: dict) -> bool:
    """Return whether a record's `is_impossible` is true, in any spelling that CSV files have."""
    return str(record.get("is_impossible")).strip().lower() in ("true", "1", "1.0", "yes")


def common_shape(record: dict, number: int, data) -> dict:
    """A record with the columns that the flags name as a row; without an id, its number is its id."""
    identity = record.get("id")
    return {
        "id": str(number - 1 if identity is None else identity),
        "title": record.get("title") or "",
        "context": record.get(data.context_column),
        "question": record.get(data.question_column),
        "answers": common_answers(record.get(data.answer_column), record.get("answer_start")),
    }


def common_answers(value, start=None) -> dict | None:
    """Answers in any known form as `{"text": [...], "answer_start": [...]}`; None when the form is not known.

    Forms: that dict, also written out as JSON or as Python prints it (what CSV files hold); a list of
    `{"text", "answer_start"}` (SQuAD's own); a plain text with its start in a column `answer_start` or without one
    (the start is then -1, to be looked up); nothing, also as a text of blanks or null.
    """
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        value = parse_literal(value)
    if value is None or value == "":
        return {"text": [], "answer_start": []}
    if isinstance(value, str):
        value = {"text": [value], "answer_start": [-1 if start in (None, "") else start]}
    if isinstance(value, list):
        if not all(isinstance(answer, dict) for answer in value):
            value = {"text": value, "answer_start": [-1] * len(value)}
        else:
            value = {key: [answer.get(key, -1) for answer in value] for key in ("text", "answer_start")}
    try:
        texts = list(value["text"])
        starts = [int(start) for start in value.get("answer_start", [-1] * len(texts))]
    except (KeyError, TypeError, ValueError):
        return None
    if len(texts) != len(starts) or not all(text is None or isinstance(text, str) for text in texts):
        return None
    given = [(text, start) for text, start in zip(texts, starts) if text is not None and text.strip()]
    return {"text": [text for text, _ in given], "answer_start": [start for _, start in given]}


def parse_literal(text: str):
    """A dict, or a list of dicts or texts, out of a CSV cell; the text itself when it only looks like one."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, dict) or all(isinstance(entry, (dict, str)) for entry in value):
            return value
    return text
