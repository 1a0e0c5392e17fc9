"""Every problem that shows on the command line and the device, before any data or model is read.

`find_problems` returns all of them at once. It reads the values of the flags. The training arguments are built from
them later, since a library raises its own error there if the device does not fit.
"""

from difflib import get_close_matches
from pathlib import Path

from qa.arguments import SPLITS, STAGES, DataArguments
from qa.buckets import read_buckets
from qa.device import runs_on_cpu, zero_stage
from qa.errors import UserError
from qa.metrics import score_names
from qa.preflight import gaudi_problems
from qa.reading import READERS, kind_of


# The smallest value of each number among the data's arguments.
LEAST = {"max_seq_length": 8, "doc_stride": 0, "n_best_size": 1, "max_answer_length": 1, "val_max_answer_length": 2}


LEAST |= dict.fromkeys(("num_beams", "max_train_samples", "max_eval_samples", "max_predict_samples"), 1)


EXACT_MATCH = {"exact_match", "exact", "em"}  # names of one score: in SQuAD 1.1, in SQuAD 2.0, and in common use


def find_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return every problem of a command line and its device, one line each.

    Args:
        training_args: the values of the training flags, as a namespace or as training arguments.
    """
    return [
        *data_problems(data_args, training_args),
        *number_problems(data_args),
        *bucket_problems(data_args, training_args),
        *best_model_problems(data_args, training_args),
        *training_problems(training_args),
        *(gaudi_problems(training_args) if training_args.use_habana else []),
    ]


def data_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return problems of the stages asked for and the data that they need."""
    problems = []
    wanted = {split: getattr(training_args, f"do_{stage}") for split, stage in STAGES.items()}
    if not any(wanted.values()):
        problems.append("nothing to do: add --do_train, --do_eval or --do_predict")
    for split, flag in SPLITS.items():
        path = getattr(data_args, flag)
        origin = SPLITS["train"] if split == "validation" and data_args.validation_split is not None else flag
        if wanted[split] and getattr(data_args, origin) is None and data_args.dataset_name is None:
            problems.append(f"no data for the {split} part: give --{origin} or --dataset_name")
        if path is not None:
            problems += file_problems(flag, Path(path))
    return problems + validation_split_problems(data_args)


def number_problems(data_args: DataArguments) -> list[str]:
    """Return problems of the numbers among the data's arguments."""
    values = {name: getattr(data_args, name, None) for name in LEAST}
    problems = [
        f"--{name} is {value}; give {LEAST[name]} or more"
        for name, value in values.items()
        if value is not None and value < LEAST[name]
    ]
    if data_args.doc_stride >= data_args.max_seq_length:
        problems.append(
            f"--doc_stride {data_args.doc_stride} leaves no room in a window of --max_seq_length {data_args.max_seq_length}: "
            "windows overlap by doc_stride tokens; make it smaller"
        )
    return problems


def validation_split_problems(data_args: DataArguments) -> list[str]:
    """Return problems of `--validation_split`, alone and together with a validation file."""
    problems = []
    if data_args.validation_split is not None and not 0 < data_args.validation_split < 1:
        problems.append(f"--validation_split is {data_args.validation_split}; give a share between 0 and 1, as in 0.1")
    if data_args.validation_split is not None and data_args.validation_file is not None:
        problems.append("--validation_split and --validation_file both name the validation part; omit one of them")
    return problems


def bucket_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return problems of `--length_buckets`, which excludes flags that order or size batches themselves."""
    if data_args.length_buckets is None:
        return []
    others = ("group_by_length", "auto_find_batch_size", "use_legacy_prediction_loop")
    problems = [f"--length_buckets does not go with --{name}" for name in others if getattr(training_args, name)]
    try:
        boundaries = read_buckets(data_args.length_buckets)
    except UserError as error:
        return [*problems, *error.problems]
    if not isinstance(boundaries, int) and boundaries[-1] != data_args.max_seq_length:
        problems.append(
            f"--length_buckets ends at {boundaries[-1]}, but features have up to --max_seq_length {data_args.max_seq_length} "
            "tokens: the last boundary must be that"
        )
    return problems


def file_problems(flag: str, path: Path) -> list[str]:
    """Return the problems of the data files that show without reading them."""
    if path.is_dir():
        return [f"--{flag} {path} is a folder; name a file in it, or give the folder as --dataset_name"]
    if not path.is_file():
        return [f"--{flag} {path}: there is no such file"]
    if kind_of(path) not in READERS:
        return [f"--{flag} {path}: not one of {', '.join(READERS)} (each may end in .gz)"]
    return []


def best_model_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return problems of choosing the best model: whether it is evaluated, by which score, and which way round."""
    scores = score_names(data_args.version_2_with_negative, data_args.answer_language)
    names = ["loss", *scores] if writes_answers(training_args) else ["loss"]
    best, evaluates = training_args.metric_for_best_model, training_args.eval_strategy != "no"
    needs = {"--eval_strategy epoch (or steps)": evaluates}
    needs[f"--metric_for_best_model {'f1' if 'f1' in names else 'loss'}"] = (
        best or training_args.load_best_model_at_end
    )
    missing = " and ".join(flag for flag, given in needs.items() if not given)
    choosers = ["--save_strategy best"] if training_args.save_strategy == "best" else []
    choosers += ["--early_stopping_patience"] if training_args.early_stopping_patience is not None else []
    problems = [f"{flag} compares evaluations during training; add {missing}" for flag in choosers if missing]
    compares = best and evaluates and training_args.do_train
    return [*problems, *(score_problems(names, scores, training_args) if compares else [])]


def writes_answers(training_args) -> bool:
    """Return whether evaluations answer questions; models that write do so with --predict_with_generate alone."""
    return getattr(training_args, "predict_with_generate", True) and not training_args.prediction_loss_only


def score_problems(names: list[str], scores: list[str], training_args) -> list[str]:
    """Return problems of `--metric_for_best_model` and its direction.

    Args:
        names: of the scores that evaluations of this run have, with its loss.
        scores: those that they have when they answer questions.
    """
    best, name = training_args.metric_for_best_model, training_args.metric_for_best_model.removeprefix("eval_")
    if name in names:
        wrong = training_args.greater_is_better is not None and training_args.greater_is_better == (name == "loss")
        return (
            [f"--greater_is_better {training_args.greater_is_better} keeps the worst {name}; omit it"] if wrong else []
        )
    if name in scores:
        need = "omit --prediction_loss_only" if training_args.prediction_loss_only else "add --predict_with_generate"
        return [f"--metric_for_best_model {best} needs written answers; {need}"]
    synonyms = [known for known in names if {known, name.lower()} <= EXACT_MATCH]
    nearest = (synonyms or get_close_matches(name, names, n=1) or [" or ".join(names[:3])])[0]
    return [f"--metric_for_best_model {best} is no score of this run ({', '.join(names)}); use {nearest}"]


def training_problems(training_args) -> list[str]:
    """Return problems of flags that need others, or another device; the libraries report them late, in a traceback."""
    problems = []
    if training_args.nan_patience < 1:
        problems.append(f"--nan_patience is {training_args.nan_patience}; give 1 or more")
    if training_args.max_train_minutes is not None and not training_args.max_train_minutes > 0:
        problems.append(f"--max_train_minutes is {training_args.max_train_minutes}; give more than 0")
    if training_args.deepspeed and not training_args.do_train and zero_stage(training_args.deepspeed) < 3:
        problems.append(
            f"--deepspeed {training_args.deepspeed}: without --do_train only ZeRO stage 3 has something to distribute; omit "
            "--deepspeed, and the ranks share the questions"
        )
    if training_args.fsdp and runs_on_cpu(training_args):
        problems.append("--fsdp: accelerate shards a model over Gaudis or GPUs, not over CPUs; omit it here")
    return problems
