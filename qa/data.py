"""Questions from the hub, a folder or a file, as rows of one shape.

A row is a dict `{"id": str, "title": str, "context": str, "question": str, "answers": {"text": [str],
"answer_start": [int]}}`.

- Answers with empty lists: the question is known to have no answer.
- Answers that are None: they are unknown, as in a file to predict.
- A start of -1, in rows to evaluate: the context does not hold the text.
- `row` and `columns`, in rows to answer: the number of its record in the file, from 1, and the values of
  `--report_columns`.
- `gold_answers`, in rows that their file marks as `is_impossible` although it has answers for them: those answers, by
  which the row is scored. Its `answers` are empty.

A hub dataset, a local dataset folder and every file that `qa.reading` reads become such rows. They are checked before
any slow step, and cut to `--max_*_samples` once.
"""

import itertools
import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from qa.arguments import SPLITS, STAGES, DataArguments, ModelArguments
from qa.errors import UserError, short
from qa.held_out import TITLES, parts_of
from qa.named_dataset import load_named_dataset, rows_of_split
from qa.placing import Place, place_answers
from qa.reading import read_file
from qa.shapes import answers_problem, check_columns, column_text, common_shape, record_problem, says_impossible


logger = logging.getLogger(__name__)


def load_rows(
    data_args: DataArguments, model_args: ModelArguments, training_args
) -> tuple[dict[str, list[dict]], dict[str, dict[str, int]]]:
    """Return the checked rows of every split that the stages of a run need: keys out of `train`, `validation`, `test`.

    With `--validation_split` the validation part is held out of the train part, and with `--tune_null_threshold` a part
    `tuning` of the remainder.

    Returns:
        The rows, and counts for the results of each split, see `checked_rows`.

    Raises:
        UserError: data that cannot be read, missing columns, bad rows (unless `--on_bad_rows skip`), or no row left;
            the problems of all splits together.
    """
    load_named = cache(partial(load_named_dataset, data_args, model_args, training_args))
    rows, counts, problems, read = {}, {}, [], {}
    for split, stage in STAGES.items():
        if not getattr(training_args, f"do_{stage}"):
            continue
        try:
            origin = "train" if split == "validation" and data_args.validation_split is not None else split
            source = getattr(data_args, SPLITS[origin]) or f"{data_args.dataset_name} ({origin})"
            if origin not in read:
                read[origin] = read_questions(read_records(origin, data_args, load_named), source, data_args, origin)
            questions = read[origin]
            parts = {split: questions}
            if origin == "train":
                parts = parts_of(questions, source, split, data_args, training_args)
            for name, part in parts.items():
                title = source + (TITLES[name] if len(part) < len(questions) else "")
                checked, counts[name] = checked_rows(part, title, data_args, name)
                rows[name] = checked[: getattr(data_args, f"max_{stage}_samples")]
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return rows, counts


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_records(split: str, data_args: DataArguments, load_named) -> list[dict]:
    """Return the records of a split with all columns of its file, or else of the hub's dataset."""
    path = getattr(data_args, SPLITS[split])
    return read_file(Path(path)) if path else rows_of_split(load_named(), split, data_args.dataset_name)


@dataclass
class Question:
    """A row with facts that its file has about it."""

    number: int  # of its record in the file, from 1
    row: dict
    problem: str | None  # of its id, context or question
    unreadable: str | None  # why its answers cannot be read
    places: list[Place]  # of its answers


def read_questions(records: list[dict], source: str, data_args: DataArguments, split: str) -> list[Question]:
    """Return the questions of a file with their answers moved to where their texts are; the log lists the changes.

    Raises:
        UserError: missing columns.
    """
    is_reported = split == "validation" or split == "train" and data_args.validation_split is not None
    report_columns = data_args.report_columns or () if is_reported else ()
    check_columns(records, source, data_args, needs_answers=split != "test", report_columns=report_columns)
    questions = [read_question(number, record, data_args) for number, record in enumerate(records, start=1)]
    good = [question for question in questions if question.problem is None]
    share_texts([question.row for question in good])
    places, notes = place_answers([question.row for question in good])
    for question, of_row in zip(good, places):
        question.places = of_row
    if split == "test":
        forget_answers([question.row for question in good], source, data_args)
        return questions
    for note in notes:
        logger.warning(f"{source}: {note}")
    return questions


def read_question(number: int, record: dict, data_args: DataArguments) -> Question:
    row = common_shape(record, number, data_args)
    if says_impossible(record):
        if row["answers"] is not None and row["answers"]["text"]:
            row["gold_answers"] = row["answers"]
        row["answers"] = {"text": [], "answer_start": []}
    if data_args.report_columns:
        row["columns"] = {name: column_text(record.get(name)) for name in data_args.report_columns}
    problem = record_problem(record, data_args) or text_problem(row)
    return Question(number, row, problem, answers_problem(record, data_args) if row["answers"] is None else None, [])


def share_texts(rows: list[dict]) -> None:
    """Let rows with the same context, or the same title, share one string, as a file has one for each."""
    texts = {}
    for row in rows:
        for name in ("context", "title"):
            row[name] = texts.setdefault(row[name], row[name])


def gold_answers(row: dict) -> dict | None:
    """Return the answers by which a row is scored, None where they are unknown."""
    return row.get("gold_answers", row["answers"])


def forget_answers(rows: list[dict], source: str, data_args: DataArguments) -> None:
    """Make the answers of a test file unknown, unless all its questions can be scored.

    Test files are often published with empty answers, so one question at least must have an answer.
    """
    golds = [gold_answers(row) for row in rows]
    lacking = sum(gold is None or not (gold["text"] or data_args.version_2_with_negative) for gold in golds)
    answered = any(gold is not None and gold["text"] for gold in golds)
    if answered and not lacking:
        return
    if answered:
        logger.warning(f"{source}: {lacking} of {len(rows)} questions have no readable answer; no answer is scored")
    for row in rows:
        row["answers"] = None
        row.pop("gold_answers", None)


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def checked_rows(
    questions: list[Question], source: str, data_args: DataArguments, split: str
) -> tuple[list[dict], dict[str, int]]:
    """Return the good rows of one split, and counts for its results: `skipped_rows` and `ambiguous_answers`.

    Raises:
        UserError: no row at all, or bad rows that are to stop the run: the first five with row number, id and reason,
            and the total.
    """
    good, bad, numbers = [], {"stop": [], "skip": []}, {}
    for question in questions:
        reason, policy = problem_and_policy(question, data_args, split)
        same = (question.row["id"], question.row["context"])
        if reason is None and same in numbers:
            reason = f"row {numbers[same]} has this id too, and the same context"
        if reason is None:
            numbers[same] = question.number
            good.append(question)
        else:
            bad[policy].append(f"row {question.number}, id {short(question.row['id'])}: {reason}")
    if bad["stop"]:
        are = "is" if len(bad["stop"]) == 1 else "are"
        total = f"{source}: {len(bad['stop'])} of {len(questions)} rows {are} bad"
        first = (f"{source}, {line}" for line in bad["stop"][:5])
        raise UserError(*first, f"{total}; fix them, or skip them with --on_bad_rows skip")
    if not good:
        raise UserError(f"{source}: no rows" + (" are left; fix some" if bad["skip"] else "; add some"))
    ambiguous = sum(map(is_ambiguous, good))
    counts = {"skipped_rows": len(bad["skip"]), "ambiguous_answers": ambiguous if split == "train" else 0}
    rows = [question.row for question in good]
    if split != "train":
        for question in good:
            question.row["row"] = question.number
    log_checks(good, bad["skip"], make_ids_unique(rows), source, split)
    return rows, {name: count for name, count in counts.items() if count}


def problem_and_policy(question: Question, data_args: DataArguments, split: str) -> tuple[str | None, str]:
    """Return why a question is bad for a split, None for a good one, and the policy for it: `stop` or `skip`."""
    reason = problem_of(question, data_args, split)
    if reason is None and split == "train" and data_args.ambiguous_answers != "first" and is_ambiguous(question):
        reason = f"{label_place(question)}; --ambiguous_answers first takes the nearest or first"
        return reason, data_args.ambiguous_answers
    return reason, data_args.on_bad_rows


def problem_of(question: Question, data_args: DataArguments, split: str) -> str | None:
    """Return the problem that makes a question useless for a split, which needs answers to score or to train on."""
    if question.problem is not None or split == "test":
        return question.problem
    answers = question.row["answers"] if split == "train" else gold_answers(question.row)
    if answers is None:
        return question.unreadable
    if not answers["text"] and not data_args.version_2_with_negative:
        marked = " (is_impossible)" if "gold_answers" in question.row else ""
        return f"there is no answer{marked}, and --version_2_with_negative is not given"
    if split == "train" and answers["text"] and label_place(question) is None:
        return str(question.places[0])
    return None


def text_problem(row: dict) -> str | None:
    """Return the problem with a row's context or question, None where both are good."""
    for name in ("context", "question"):
        text = row[name]
        if not isinstance(text, str):
            return f"the {name} is {'missing' if text is None else f'not a text but {short(text)}'}"
        if not text.strip():
            return f"the {name} is empty"
        if not is_unicode(text):
            return f"the {name} holds half a surrogate pair, which is not a character"
    return None


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def label_place(question: Question) -> Place | None:
    """Return the place of the answer that training takes: the first one that the context holds."""
    return next((place for place in question.places if place.start >= 0), None)


def is_ambiguous(question: Question) -> bool:
    """Return whether the label's place was chosen among several."""
    place = label_place(question)
    return place is not None and place.choices > 1


def make_ids_unique(rows: list[dict]) -> dict[str, str]:
    """Give rows whose id an earlier row has new ones, `ID-2` and so on; return the old id of each new one.

    >>> rows = [{"id": "a"}, {"id": "a"}, {"id": "a-2"}, {"id": "a"}]
    >>> make_ids_unique(rows), [row["id"] for row in rows]
    ({'a-3': 'a', 'a-4': 'a'}, ['a', 'a-3', 'a-2', 'a-4'])
    """
    taken = {row["id"] for row in rows}
    suffixes, seen, renamed = defaultdict(lambda: itertools.count(2)), set(), {}
    for row in rows:
        old = row["id"]
        if old in seen:
            row["id"] = next(new for number in suffixes[old] if (new := f"{old}-{number}") not in taken)
            taken.add(row["id"])
            renamed[row["id"]] = old
        seen.add(old)
    return renamed


def log_checks(good: list[Question], skipped: list[str], renamed: dict[str, str], source: str, split: str) -> None:
    """Report how many rows the checks skipped or changed, and answers whose place is not certain."""
    number = len(good)
    ambiguous = sum(map(is_ambiguous, good)) if split == "train" else 0
    nowhere = sum(bool(question.places) and label_place(question) is None for question in good)
    new, old = next(iter(renamed.items()), (None, None))
    lines = {
        f"skipped {len(skipped)} of {len(skipped) + number} rows, such as {next(iter(skipped), None)}": skipped,
        f"{len(renamed)} questions had the id of a question about another context; each got its own, such as {new!r} for "
        f"{old!r}": renamed and split != "train",
        f"{ambiguous} of {number} questions have an answer that occurs several times; training takes the place nearest to "
        "its answer_start, else the first (--ambiguous_answers)": ambiguous,
        f"{nowhere} of {number} questions have no answer that is in the context; they are scored, and left out of the "
        "loss": nowhere and split == "validation",
    }
    for line, happened in lines.items():
        if happened:
            logger.warning(f"{source}: {line}")
