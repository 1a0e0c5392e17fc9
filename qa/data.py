"""Questions from wherever they are kept, as one shape of rows.

A row is a dict `{"id": str, "title": str, "context": str, "question": str, "answers": {"text": [str],
"answer_start": [int]}}`, with empty lists where no answer is known. A hub dataset, a local dataset folder, SQuAD's own
nested JSON, `{"data": [...]}`, a JSON list, JSON lines, CSV and Parquet (each also gzipped) all become such rows, are
checked while nothing slow has been started, and are cut to `--max_*_samples` once.
"""

import ast
import csv
import gzip
import io
import json
import logging
from collections import Counter
from pathlib import Path

from qa.arguments import SPLITS, DataArguments, ModelArguments
from qa.errors import UserError


logger = logging.getLogger(__name__)


def load_rows(data: DataArguments, model: ModelArguments, training) -> dict[str, list[dict]]:
    """The checked rows of every split that `training` asks for: keys out of `train`, `validation`, `test`.

    Raises:
        UserError: data that cannot be read, missing columns, bad rows (unless `--on_bad_rows skip`), or no row left;
            the problems of all splits together.
    """
    wanted = {
        "train": (training.do_train, data.max_train_samples),
        "validation": (training.do_eval, data.max_eval_samples),
        "test": (training.do_predict, data.max_predict_samples),
    }
    hub = None
    rows, problems = {}, []
    for split, (asked, most) in wanted.items():
        if not asked:
            continue
        try:
            path = getattr(data, SPLITS[split])
            if path is None and hub is None:
                with training.main_process_first():  # it downloads, the others find what it downloaded
                    hub = load_hub_dataset(data, model)
            source = path or f"{data.dataset_name} ({split})"
            raw = read_file(Path(path)) if path else rows_of_split(hub, split, data.dataset_name)
            rows[split] = checked_rows(raw, source, data, needs_answers=split != "test")[:most]
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_hub_dataset(data: DataArguments, model: ModelArguments):
    """The `DatasetDict` of `--dataset_name`: a folder that `save_to_disk` wrote, a folder of data files, or a hub name."""
    import datasets

    name = data.dataset_name
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)
        return datasets.load_dataset(
            name,
            data.dataset_config_name,
            cache_dir=model.cache_dir,
            token=model.token,
            trust_remote_code=model.trust_remote_code or None,
        )
    except Exception as error:  # datasets raises a dozen kinds, and all of them mean: this cannot be loaded
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--dataset_name {name}: cannot be loaded: {type(error).__name__}: {reason}") from error


def rows_of_split(dataset, split: str, name: str) -> list[dict]:
    if split not in dataset:
        flag = SPLITS[split]
        raise UserError(f"--dataset_name {name} has no {split} part, only {', '.join(dataset)}; give it with --{flag}")
    return dataset[split].to_list()


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
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"SQuAD's layout (data > paragraphs > qas) breaks off: {error!r}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def checked_rows(raw: list[dict], source: str, data: DataArguments, needs_answers: bool) -> list[dict]:
    """The rows of one split in the common shape, good ones only.

    Raises:
        UserError: missing columns, no row at all, or bad rows: the first five with their row number (from 1) and
            reason, and the total. With `--on_bad_rows skip` bad rows are left out and counted in the log instead.
    """
    check_columns(raw, source, data, needs_answers)
    rows, bad, moved, seen = [], [], 0, Counter()
    for number, record in enumerate(raw, start=1):
        row = common_shape(record, number, data)
        reason = problem_of(row) or answer_problem(row, needs_answers and not data.version_2_with_negative)
        if reason is None and row["id"] in seen:
            reason = f"the id {row['id']!r} stands in row {seen[row['id']]} already"
        if reason is not None:
            bad.append(f"{source}, row {number}: {reason}")
            continue
        seen[row["id"]] = number
        moved += move_answers(row)
        rows.append(row)
    if moved:
        logger.warning(
            f"{source}: {moved} answers did not stand at their answer_start; each was moved to its one place"
        )
    if bad and data.on_bad_rows == "stop":
        total = (
            f"{source}: {len(bad)} of {len(raw)} rows are bad; mend them, or leave them out with --on_bad_rows skip"
        )
        raise UserError(*bad[:5], total)
    if bad:
        logger.warning(f"{source}: left out {len(bad)} of {len(raw)} rows, such as {bad[0]}")
    if not rows:
        raise UserError(f"{source}: no rows" + (" are left" if bad else ""))
    return rows


def check_columns(raw: list[dict], source: str, data: DataArguments, needs_answers: bool) -> None:
    columns = raw[0].keys() if raw else ()
    flags = ["question_column", "context_column"] + (["answer_column"] if needs_answers else [])
    missing = [flag for flag in flags if getattr(data, flag) not in columns]
    if raw and missing:
        raise UserError(
            *(
                f"{source}: no column `{getattr(data, flag)}` (--{flag}); there are: {', '.join(columns)}"
                for flag in missing
            )
        )


def common_shape(record: dict, number: int, data: DataArguments) -> dict:
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
    (the start is then -1, to be looked up); nothing.
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
    known = len(texts) == len(starts) and all(isinstance(text, str) for text in texts)
    return {"text": texts, "answer_start": starts} if known else None


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


def problem_of(row: dict) -> str | None:
    """What is wrong with a row's texts, or None."""
    for name in ("context", "question"):
        text = row[name]
        if not isinstance(text, str):
            return f"the {name} is {'missing' if text is None else f'not a text but {text!r:.40}'}"
        if not text.strip():
            return f"the {name} is empty"
        if not is_unicode(text):
            return f"the {name} holds half a surrogate pair, which is no character"
    return None


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def answer_problem(row: dict, needs_answer: bool) -> str | None:
    """What is wrong with a row's answers, or None; a misplaced answer is no problem when its text occurs exactly once."""
    answers = row["answers"]
    if answers is None:
        return "the answers are neither {text: [...], answer_start: [...]} nor a text"
    if needs_answer and not answers["text"]:
        return "there is no answer, and --version_2_with_negative is not given"
    for text, start in zip(answers["text"], answers["answer_start"]):
        if not text.strip():
            return "an answer is empty"
        if not stands_at(row["context"], text, start) and occurrences(row["context"], text) != 1:
            place = "not in the context" if text not in row["context"] else "more than once in the context"
            where = f"does not stand at its answer_start {start}" if start >= 0 else "has no answer_start"
            return f"the answer {text!r:.60} {where} and is {place}"
    return None


def stands_at(context: str, text: str, start: int) -> bool:
    return start >= 0 and context.startswith(text, start)


def occurrences(context: str, text: str) -> int:
    """How often `text` occurs in `context`, overlapping ones counted, up to 2."""
    first = context.find(text)
    if first < 0:
        return 0
    return 1 if context.find(text, first + 1) < 0 else 2


def move_answers(row: dict) -> int:
    """Moves every misplaced answer of a row to where its text stands; returns how many had a wrong start."""
    answers, moved = row["answers"], 0
    for index, (text, start) in enumerate(zip(answers["text"], answers["answer_start"])):
        if not stands_at(row["context"], text, start):
            answers["answer_start"][index] = row["context"].find(text)
            moved += start >= 0
    return moved
