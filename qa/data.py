"""Questions from wherever they are kept, as one shape of rows.

A row is a dict `{"id": str, "title": str, "context": str, "question": str, "answers": {"text": [str],
"answer_start": [int]}}`, with empty lists where no answer is known. A hub dataset, a local dataset folder, SQuAD's own
nested JSON, `{"data": [...]}`, a JSON list, JSON lines, CSV and Parquet (each also gzipped) all become such rows, are
checked while nothing slow has been started, and are cut to `--max_*_samples` once.
"""

import logging
from collections import Counter
from pathlib import Path

from qa.arguments import SPLITS, DataArguments, ModelArguments
from qa.errors import UserError
from qa.reading import check_columns, common_shape, read_file


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
