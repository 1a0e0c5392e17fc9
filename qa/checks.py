"""Every problem that shows on the command line and the device, before any data or model is read.

`find_problems` returns all of them at once. It reads the values of the flags. The training arguments are built from
them later, since a library raises its own error there if the device does not fit.
"""

import os
from difflib import get_close_matches
from pathlib import Path

from qa.arguments import SPLITS, STAGES, DataArguments
from qa.buckets import read_buckets
from qa.device import runs_on_cpu, zero_stage
from qa.errors import UserError
from qa.files import json_settings
from qa.folders import folder_problems, short_path
from qa.gaudi_flags import gaudi_flag_problems
from qa.limits import LIMITS, number_problems
from qa.lora import lora_problems
from qa.metrics import score_names
from qa.names import name_problems
from qa.preflight import gaudi_problems
from qa.push import push_problems
from qa.reading import READERS, kind_of


EXACT_MATCH = {"exact_match", "exact", "em"}  # names of one score: in SQuAD 1.1, in SQuAD 2.0, and in common use


def find_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return every problem of a command line and its device, one line each.

    Args:
        training_args: the values of the training flags, as a namespace or as training arguments.
    """
    return [
        *data_problems(data_args, training_args),
        *dict.fromkeys([*number_problems(data_args), *number_problems(training_args)]),
        *stride_problems(data_args),
        *folder_problems(training_args),
        *name_problems(training_args),
        *bucket_problems(data_args, training_args),
        *best_model_problems(data_args, training_args),
        *tuning_problems(data_args, training_args),
        *training_problems(training_args),
        *lora_problems(training_args),
        *([*gaudi_flag_problems(training_args), *gaudi_problems(training_args)] if training_args.use_habana else []),
    ]


def data_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return problems of the stages asked for and the data that they need."""
    problems = []
    wanted = {split: getattr(training_args, f"do_{stage}") for split, stage in STAGES.items()}
    if not any(wanted.values()):
        problems.append("nothing to do: add --do_train, --do_eval or --do_predict")
    if data_args.check_steps is not None and not data_args.check:
        problems.append(f"--check_steps {data_args.check_steps} is a part of --check; add --check")
    for split, flag in SPLITS.items():
        path = getattr(data_args, flag)
        origin = SPLITS["train"] if split == "validation" and data_args.validation_split is not None else flag
        if wanted[split] and getattr(data_args, origin) is None and data_args.dataset_name is None:
            problems.append(f"no data for the {split} part: give --{origin} or --dataset_name")
        if path is not None:
            problems += file_problems(flag, path)
    return problems + validation_split_problems(data_args)


def stride_problems(data_args: DataArguments) -> list[str]:
    """Return the problem with windows that overlap by their whole length."""
    if data_args.doc_stride < data_args.max_seq_length or not LIMITS["max_seq_length"].allows(
        data_args.max_seq_length
    ):
        return []
    return [
        f"--doc_stride {data_args.doc_stride} leaves no room in a window of --max_seq_length {data_args.max_seq_length}: "
        "windows overlap by doc_stride tokens; make it smaller"
    ]


def validation_split_problems(data_args: DataArguments) -> list[str]:
    """Return the problem of `--validation_split` together with a validation file."""
    if data_args.validation_split is None or data_args.validation_file is None:
        return []
    return ["--validation_split and --validation_file both name the validation part; omit one of them"]


def bucket_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return problems of `--length_buckets` and `--pack`, which exclude flags that order or size batches themselves."""
    others = ("group_by_length", "auto_find_batch_size", "use_legacy_prediction_loop")
    given = [name for name in others if getattr(training_args, name)]
    asked = ["length_buckets"] * (data_args.length_buckets is not None) + ["pack"] * data_args.pack
    problems = [f"--{flag} does not go with --{name}; omit one of them" for flag in asked for name in given]
    if json_settings(training_args.accelerator_config).get("dispatch_batches"):
        problems += dispatch_problems(data_args)
    if len(asked) == 2:
        problems.append("--length_buckets and --pack both avoid padding; omit one of them")
    if data_args.length_buckets is None:
        return problems
    try:
        boundaries = read_buckets(data_args.length_buckets)
    except UserError as error:
        return [*problems, *error.problems]
    if not isinstance(boundaries, int) and boundaries[-1] != data_args.max_seq_length:
        problems.append(
            f"--length_buckets ends at {boundaries[-1]}, but features have up to --max_seq_length {data_args.max_seq_length} "
            "tokens; make that the last boundary"
        )
    return problems


def dispatch_problems(data_args: DataArguments) -> list[str]:
    """Return the problem with dispatch_batches, with which rank 0 reads a step's batches as one and shares it out."""
    if data_args.pack:
        return ["--pack does not go with dispatch_batches of --accelerator_config; omit it"]
    one_length = data_args.pad_to_max_length or data_args.length_buckets is not None  # of the batches of a step
    if one_length or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return []
    return [
        "--pad_to_max_length False: the batches of the ranks have several lengths, and dispatch_batches of "
        "--accelerator_config needs one; omit it, or add --length_buckets"
    ]


def file_problems(flag: str, path: str) -> list[str]:
    """Return the problems of the data files that show without reading them."""
    if not path.strip():
        return [f"--{flag} is empty; name a file"]
    if os.path.isdir(path):
        return [f"--{flag} {path} is a folder; name a file in it, or give the folder as --dataset_name"]
    if not os.path.isfile(path):
        return [f"--{flag} {short_path(path)}: there is no such file"]
    if kind_of(Path(path)) not in READERS:
        return [f"--{flag} {path}: not one of {', '.join(READERS)} (each may end in .gz); rename or convert it"]
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
    compares = best is not None and evaluates and training_args.do_train
    if best is not None and not compares and best.removeprefix("eval_") not in every_score():
        names, compares = ["loss", *scores], True
    return [*problems, *(score_problems(names, scores, training_args) if compares else [])]


def tuning_problems(data_args: DataArguments, training_args) -> list[str]:
    """Return problems of `--tune_null_threshold`: it needs a training, questions without an answer, and answers."""
    if data_args.tune_null_threshold is None:
        return []
    needs = {
        "--do_train": training_args.do_train,
        "--version_2_with_negative": data_args.version_2_with_negative,
        "--predict_with_generate": getattr(training_args, "predict_with_generate", True),
    }
    sets = {
        f"--{name}": name in getattr(training_args, "given", ())
        for name in ("null_score_diff_threshold", "temperature")
    }
    sets["--prediction_loss_only"] = training_args.prediction_loss_only
    lists = {
        "add": [flag for flag, there in needs.items() if not there],
        "omit": [flag for flag in sets if sets[flag]],
    }
    advice = [f"{verb} {' and '.join(flags)}" for verb, flags in lists.items() if flags]
    does = f"--tune_null_threshold {data_args.tune_null_threshold} finds threshold and temperature after a training"
    return [f"{does}; {', '.join(advice)}, or omit --tune_null_threshold"] if advice else []


def every_score() -> list[str]:
    """Return the names of the scores of all runs."""
    return ["loss", *score_names(False, "en"), *score_names(True, "en")]


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
    return [
        f"--metric_for_best_model {best or repr(best)} is not a score of this run ({', '.join(names)}); use {nearest}"
    ]


def training_problems(training_args) -> list[str]:
    """Return problems of flags that need others, or another device; the libraries report them late, in a traceback."""
    problems = []
    if training_args.deepspeed and not training_args.do_train and zero_stage(training_args.deepspeed) < 3:
        problems.append(
            f"--deepspeed {training_args.deepspeed}: without --do_train only ZeRO stage 3 has something to distribute; omit "
            "--deepspeed, and the ranks share the questions"
        )
    if training_args.fsdp and runs_on_cpu(training_args):
        problems.append("--fsdp: accelerate shards a model over Gaudis or GPUs, not over CPUs; omit it here")
    if training_args.fp16 and runs_on_cpu(training_args):
        problems.append("--fp16 needs a GPU, and this run is on the CPU; use --bf16, or omit it")
    if training_args.ddp_backend is not None and not training_args.use_habana and "WORLD_SIZE" not in os.environ:
        problems.append(
            f"--ddp_backend {training_args.ddp_backend} is for several ranks, this is one; start them with gaudi_spawn.py, "
            "or omit it"
        )
    if training_args.label_smoothing_factor and not hasattr(training_args, "predict_with_generate"):
        problems.append("--label_smoothing_factor has no effect on a model that marks answers; omit it")
    return problems + push_problems(training_args)
