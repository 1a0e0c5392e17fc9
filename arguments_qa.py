"""What to run: the flags of the scripts as dataclasses, and reading and checking a command line.

Flags keep the names and defaults of optimum-habana's question-answering example. A first argument that ends in
`.json`, `.yaml` or `.yml` is a file of arguments; flags behind it override what it says.
"""

import json
import logging
import sys
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Optional

from device_qa import settle_lazy_mode, training_arguments  # before anything that imports PyTorch: see there


# isort: split
import transformers
from transformers import HfArgumentParser

from errors_qa import UserError


SPLITS = {"train": "train_file", "validation": "validation_file", "test": "test_file"}
FILE_KINDS = (".json", ".jsonl", ".csv", ".parquet")
# The smallest value of each number among the data's arguments.
LEAST = {"max_seq_length": 8, "doc_stride": 0, "n_best_size": 1, "max_answer_length": 1, "val_max_answer_length": 2}
LEAST |= dict.fromkeys(("num_beams", "max_train_samples", "max_eval_samples", "max_predict_samples"), 1)


@dataclass
class ModelArguments:
    """Which model and tokenizer to start from."""

    model_name_or_path: str = field(metadata={"help": "Folder of a model, or its name on the hub."})
    config_name: Optional[str] = field(
        default=None, metadata={"help": "Folder or hub name of a configuration other than the model's own."}
    )
    tokenizer_name: Optional[str] = field(
        default=None, metadata={"help": "Folder or hub name of a tokenizer other than the model's own."}
    )
    cache_dir: Optional[str] = field(default=None, metadata={"help": "Folder that keeps what the hub sends."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    token: Optional[str] = field(
        default=None, metadata={"help": "Access token for the hub; by default the one `huggingface-cli login` keeps."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code that the model's or the dataset's repository brings. Only for authors you trust."
        },
    )


@dataclass
class DataArguments:
    """Which questions to read and how they become features; shared by both scripts."""

    dataset_name: Optional[str] = field(
        default=None, metadata={"help": "Name of a dataset on the hub (`squad`, `squad_v2`), or a folder of one."}
    )
    dataset_config_name: Optional[str] = field(default=None, metadata={"help": "Configuration of that dataset."})
    train_file: Optional[str] = field(
        default=None,
        metadata={"help": "Training questions: SQuAD's own JSON, a JSON list, JSON lines, CSV or Parquet (.gz too)."},
    )
    validation_file: Optional[str] = field(
        default=None, metadata={"help": "Questions to evaluate on, in any of the same formats."}
    )
    test_file: Optional[str] = field(
        default=None, metadata={"help": "Questions to predict, in any of the same formats; answers may be missing."}
    )
    overwrite_cache: bool = field(
        default=False,
        metadata={"help": "Without effect, kept for old commands: features are built anew in seconds, never cached."},
    )
    preprocessing_num_workers: Optional[int] = field(
        default=None, metadata={"help": "Without effect, kept for old commands: the tokenizer uses all cores itself."}
    )
    max_seq_length: int = field(
        default=384, metadata={"help": "Tokens of a feature: question, context window and special tokens together."}
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "Pad every feature to `max_seq_length` (one shape, what a Gaudi wants), not to its batch's longest."
        },
    )
    max_train_samples: Optional[int] = field(
        default=None, metadata={"help": "Train on the first so many questions only (all their windows are kept)."}
    )
    max_eval_samples: Optional[int] = field(
        default=None, metadata={"help": "Evaluate the first so many questions only."}
    )
    max_predict_samples: Optional[int] = field(
        default=None, metadata={"help": "Predict the first so many questions only."}
    )
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Some questions have no answer, as in SQuAD 2.0."}
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={
            "help": "Answer nothing when the no-answer score exceeds the best answer's by more than this many logits."
        },
    )
    doc_stride: int = field(
        default=128, metadata={"help": "Tokens that neighbouring windows of a long context have in common."}
    )
    n_best_size: int = field(default=20, metadata={"help": "Candidates kept for each question."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer, in tokens."})
    question_column: str = field(default="question", metadata={"help": "Column of the data that holds the question."})
    context_column: str = field(default="context", metadata={"help": "Column of the data that holds the context."})
    answer_column: str = field(
        default="answers",
        metadata={
            "help": "Column of the data that holds the answers: {text: [...], answer_start: [...]}, or a plain text."
        },
    )
    on_bad_rows: str = field(
        default="stop",
        metadata={
            "help": "What bad rows do (no context, duplicate id, an answer that is not in its context...): "
            "`stop` tells them and ends the run, `skip` leaves them out and counts them.",
            "choices": ["stop", "skip"],
        },
    )
    check: bool = field(
        default=False,
        metadata={
            "help": "Only check device, arguments, data and tokenizer; exit with 0 if a run could start, else 2."
        },
    )


@dataclass
class Seq2SeqModelArguments(ModelArguments):
    """Which encoder-decoder to start from."""

    use_fast_tokenizer: bool = field(
        default=True,
        metadata={
            "help": "Without effect, kept for old commands: the fast tokenizer is used, windows need its offsets."
        },
    )


@dataclass
class Seq2SeqDataArguments(DataArguments):
    """What an encoder-decoder needs to know beside: how answers are written."""

    val_max_answer_length: Optional[int] = field(
        default=None,
        metadata={
            "help": "Longest answer that evaluation and prediction write, in tokens, the one that starts it included; "
            "by default `max_answer_length`. `--generation_max_length` overrides it."
        },
    )
    num_beams: Optional[int] = field(
        default=None,
        metadata={
            "help": "Beams that evaluation and prediction write with; by default what the model says (mostly 1)."
        },
    )
    ignore_pad_token_for_loss: bool = field(
        default=True, metadata={"help": "Leave the padding of the answers out of the loss."}
    )

    def __post_init__(self):
        if self.val_max_answer_length is None:
            self.val_max_answer_length = self.max_answer_length


class CommandLine(HfArgumentParser):
    """`HfArgumentParser` whose mistakes are `UserError`s of one line instead of pages of usage."""

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")


def start(argv: list[str] | None, model_type: type, data_type: type, seq2seq: bool = False) -> tuple:
    """What a script does first: reads and checks its command line, and the device; starts the log and seeds.

    Returns the model's, the data's and the training's arguments.
    """
    argv = settle_lazy_mode(with_file(sys.argv[1:] if argv is None else argv))
    model, data, training = parse_command_line(argv, model_type, data_type, training_arguments(seq2seq))
    check_arguments(data, training)
    start_logging(training)
    transformers.set_seed(training.seed)
    return model, data, training


def with_file(argv: list[str]) -> list[str]:
    """The command line with the flags of the file that its first argument names, if it does, in front."""
    if argv and argv[0].endswith((".json", ".yaml", ".yml")):
        return flags_of_file(Path(argv[0])) + argv[1:]
    return argv


def parse_command_line(argv: list[str], *dataclass_types: type) -> tuple:
    """Reads `argv` (without the program's name) into one instance of each dataclass.

    Raises:
        UserError: unknown flags (with the nearest known one), values of the wrong type, missing ones, a file of
            arguments that cannot be read, and combinations that the dataclasses themselves refuse.
    """
    parser = CommandLine(dataclass_types)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(with_file(argv), return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if unknown:
        known = [f"--{f.name}" for dataclass_type in dataclass_types for f in fields(dataclass_type)]
        flags = [word for word in unknown if word.startswith("-")]  # what else is unknown are their values
        raise UserError(*(unknown_argument(word, known) for word in flags or unknown))
    return tuple(parsed)


def flags_of_file(path: Path) -> list[str]:
    """The arguments of a JSON or YAML file as the flags that would say the same (None is left out)."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            settings = json.loads(text)
        else:
            import yaml

            settings = yaml.safe_load(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a file of arguments: {error}") from error
    except Exception as error:  # yaml.YAMLError is no ValueError, and its text spans lines
        raise UserError(f"{path}: cannot be read as a file of arguments: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a file of arguments holds one `flag: value` each, not a {type(settings).__name__}")
    flags = []
    for name, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def unknown_argument(word: str, known: list[str]) -> str:
    nearest = get_close_matches(word.split("=")[0], known, n=1)
    return f"unknown argument {word}" + (f" (did you mean {nearest[0]}?)" if nearest else " (see --help)")


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
    if data.doc_stride >= data.max_seq_length:
        problems.append(
            f"--doc_stride {data.doc_stride} leaves no room in a window of --max_seq_length {data.max_seq_length}: "
            "windows overlap by doc_stride tokens, so it must be smaller"
        )
    if problems:
        raise UserError(*problems)


def check_file(flag: str, path: Path) -> list[str]:
    """The problems of a data file that can be seen from outside."""
    if not path.is_file():
        return [f"--{flag} {path}: there is no such file"]
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in FILE_KINDS:
        return [f"--{flag} {path}: not one of {', '.join(FILE_KINDS)} (each may end in .gz)"]
    return []


def start_logging(training) -> None:
    """One format for the log of the scripts and of the libraries, at the level that `--log_level` asks of this rank."""
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", datefmt="%m/%d/%Y %H:%M:%S", stream=sys.stdout
    )
    logging.getLogger("huggingface_hub").handlers.clear()  # its own would tell everything a second time
    level = training.get_process_log_level()
    if training.should_log and training.log_level == "passive":
        level = logging.INFO
        for chatty in (
            "configuration_utils",
            "modeling_utils",
            "tokenization_utils_base",
            "generation.configuration_utils",
        ):
            logging.getLogger(f"transformers.{chatty}").setLevel(logging.WARNING)
    logging.getLogger().setLevel(level)
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
