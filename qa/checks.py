"""Everything that can be known wrong from the command line alone."""

from pathlib import Path

from qa.arguments import SPLITS, DataArguments
from qa.buckets import read_buckets
from qa.errors import UserError


FILE_KINDS = (".json", ".jsonl", ".csv", ".parquet")


# The smallest value of each number among the data's arguments.
LEAST = {"max_seq_length": 8, "doc_stride": 0, "n_best_size": 1, "max_answer_length": 1, "val_max_answer_length": 2}


LEAST |= dict.fromkeys(("num_beams", "max_train_samples", "max_eval_samples", "max_predict_samples"), 1)


def check_arguments(data: DataArguments, training) -> None:
    """Everything that can be known wrong from the command line alone, told at once.

    Raises:
        UserError: with every problem found.
    """
    problems = []
    wanted = {"train": training.do_train, "validation": training.do_eval, "test": training.do_predict}
    if not any(wanted.values()):
        problems.append("nothing to do: add --do_train, --do_eval or --do_predict")
    for split, flag in SPLITS.items():
        path = getattr(data, flag)
        if wanted[split] and path is None and data.dataset_name is None:
            problems.append(f"no data for the {split} part: give --{flag} or --dataset_name")
        if path is not None:
            problems += check_file(flag, Path(path))
    for name, least in LEAST.items():
        value = getattr(data, name, None)
        if value is not None and value < least:
            problems.append(f"--{name} is {value}, it must be {least} or more")
    problems += bucket_problems(data, training)
    if data.doc_stride >= data.max_seq_length:
        problems.append(
            f"--doc_stride {data.doc_stride} leaves no room in a window of --max_seq_length {data.max_seq_length}: "
            "windows overlap by doc_stride tokens, so it must be smaller"
        )
    if problems:
        raise UserError(*problems)


def bucket_problems(data: DataArguments, training) -> list[str]:
    """What `--length_buckets` cannot be, and what it does not go with: whatever orders or sizes batches itself."""
    if data.length_buckets is None:
        return []
    others = ("group_by_length", "auto_find_batch_size", "use_legacy_prediction_loop")
    problems = [f"--length_buckets does not go with --{name}" for name in others if getattr(training, name)]
    try:
        boundaries = read_buckets(data.length_buckets)
    except UserError as error:
        return [*problems, *error.problems]
    if not isinstance(boundaries, int) and boundaries[-1] != data.max_seq_length:
        problems.append(
            f"--length_buckets ends at {boundaries[-1]}, but features have up to --max_seq_length {data.max_seq_length} "
            "tokens: the last boundary must be that"
        )
    return problems


def check_file(flag: str, path: Path) -> list[str]:
    """The problems of a data file that can be seen from outside."""
    if not path.is_file():
        return [f"--{flag} {path}: there is no such file"]
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in FILE_KINDS:
        return [f"--{flag} {path}: not one of {', '.join(FILE_KINDS)} (each may end in .gz)"]
    return []
