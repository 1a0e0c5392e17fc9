"""Reading a command line, and the file of arguments that it may begin with, into dataclasses; and `--help`.

    arguments, problems = read_command_line(["config.yaml", "--seed", "7"], (ModelArguments, DataArguments, ...), __doc__)

`qa.argument_file` expands a file of arguments before.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from enum import EnumMeta as EnumType

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from qa.argument_file import is_argument_file
from qa.errors import UserError, short
from qa.limits import LIMITS, Limit
from qa.secret_flags import without_secrets, without_tokens


# The flags that `--help` lists, by topic. `--help_all` lists the others too: those that only the libraries define.
HELP = {
    "The run": "output_dir overwrite_output_dir do_train do_eval do_predict check check_steps debug_traceback resume_from_checkpoint "
    "resume_anyway save_strategy save_total_limit eval_strategy load_best_model_at_end metric_for_best_model "
    "early_stopping_patience max_train_minutes nan_patience logging_steps report_to seed",
    "Data": "dataset_name dataset_config_name train_file validation_file test_file id_column question_column "
    "context_column answer_column validation_split max_train_samples max_eval_samples max_predict_samples on_bad_rows "
    "ambiguous_answers version_2_with_negative overwrite_cache preprocessing_num_workers",
    "Model": "model_name_or_path config_name tokenizer_name cache_dir model_revision token trust_remote_code "
    "use_fast_tokenizer lora_r lora_alpha lora_dropout lora_target_modules merge_lora",
    "Features and answers": "max_seq_length doc_stride pad_to_max_length length_buckets pack max_answer_length n_best_size "
    "null_score_diff_threshold tune_null_threshold temperature answer_language eval_report report_columns predict_with_generate val_max_answer_length num_beams language_code "
    "ignore_pad_token_for_loss",
    "Training": "learning_rate num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps warmup_ratio weight_decay lr_scheduler_type bf16 attn_implementation "
    "gradient_checkpointing deepspeed",
    "The model card and the hub": "language license push_to_hub hub_model_id hub_private_repo",
    "Gaudi": "use_habana gaudi_config_name use_lazy_mode use_hpu_graphs_for_inference torch_compile "
    "torch_compile_backend throughput_warmup_steps recipe_cache",
}
# One line for each flag of the libraries that `--help` lists; their own texts take up to twelve.
LIBRARY_HELP = {
    "output_dir": "Folder for the model, checkpoints, results and answers.",
    "overwrite_output_dir": "Start again in an --output_dir that holds files, instead of resuming or refusing.",
    "do_train": "Train on the training questions.",
    "do_eval": "Answer and score the validation questions.",
    "do_predict": "Answer the test questions.",
    "resume_from_checkpoint": "Checkpoint folder to resume from; by default the last one in --output_dir, with false none.",
    "save_strategy": "When to write checkpoints: no, steps, epoch or best.",
    "save_total_limit": "Number of checkpoints to keep; by default all.",
    "eval_strategy": "When to evaluate during training: no, steps or epoch.",
    "load_best_model_at_end": "Keep the model of the best evaluation instead of the last one.",
    "metric_for_best_model": "Score that decides which evaluation is the best, such as f1.",
    "seed": "Seed of the answer head, of dropout and of the order of the questions.",
    "predict_with_generate": "Write answers in evaluation and prediction; without it there is a loss only.",
    "learning_rate": "Highest learning rate.",
    "num_train_epochs": "Passes over the training questions.",
    "max_steps": "Number of training steps, in place of --num_train_epochs.",
    "per_device_train_batch_size": "Features that one device takes in a training step.",
    "per_device_eval_batch_size": "Features that one device takes in an evaluation step.",
    "gradient_accumulation_steps": "Batches that add up to one update.",
    "warmup_ratio": "Share of the steps over which the learning rate rises to its highest value.",
    "weight_decay": "Weight decay of AdamW.",
    "lr_scheduler_type": "How the learning rate falls after the warm-up: linear, cosine, constant and others.",
    "bf16": "Compute in bfloat16 where that is accurate enough.",
    "gradient_checkpointing": "Save memory by computing activations twice.",
    "deepspeed": "DeepSpeed configuration file.",
    "push_to_hub": "Upload the model, its card and its scores to the hub at the end.",
    "hub_model_id": "Repository to upload to, as in OWNER/NAME; by default named like --output_dir.",
    "hub_private_repo": "Make that repository private.",
    "use_habana": "Run on Gaudi cards; without it on a GPU, on Apple silicon or on the CPU.",
    "gaudi_config_name": "Folder or hub name of a Gaudi configuration.",
    "use_lazy_mode": "Use lazy mode; by default yes, unless --torch_compile is given.",
    "use_hpu_graphs_for_inference": "Record evaluation as HPU graphs; needs lazy mode.",
    "torch_compile": "Compile the model with torch.compile.",
    "torch_compile_backend": "Backend of torch.compile; on a Gaudi hpu_backend.",
    "throughput_warmup_steps": "First steps to leave out of the reported throughput.",
}

# Flags that one of the scripts alone has, and that script.
FLAGS_OF_ONE_SCRIPT = {
    f"--{name}": "run_seq2seq_qa.py"
    for name in "val_max_answer_length language_code num_beams ignore_pad_token_for_loss use_fast_tokenizer sortish_sampler "
    "predict_with_generate generation_max_length generation_num_beams generation_config".split()
} | {"--pack": "run_qa.py"}


def read_command_line(argv: list[str], dataclass_types: tuple[type, ...], description: str | None = None) -> tuple:
    """Read flags into a namespace that holds the values of all fields of the dataclasses.

    Args:
        argv: flags without the program's name, the file of arguments already expanded by `expand_file`.

    Returns:
        The namespace, in which `given` has the names of the flags that are there, and a list of what is wrong: unknown
        flags (with the nearest known one), values of the wrong type and missing flags. The values in question are then
        the defaults.

    Raises:
        UserError: the command line cannot be parsed at all.
    """
    parser = CommandLine(dataclass_types, description=description)
    values, unknown = parser.parse_known_args(argv)
    values.given = frozenset(parser.given)
    known = [f"--{f.name}" for dataclass_type in dataclass_types for f in fields(dataclass_type)]
    flags = [word for word in unknown if word.startswith("-")]  # the other unknown words are their values
    problems = parser.problems + [unknown_argument(word, known) for word in without_secrets(flags or unknown)]
    return values, problems + [
        f"--{name} is missing; add it" for name in parser.required if getattr(values, name) is None
    ]


def build(dataclass_type: type, values: argparse.Namespace, problems: Iterable[str] = ()):
    """Make the dataclass of the values that a command line gave for its fields.

    Args:
        problems: the flags that they begin with keep their defaults, so that a library does not report them again.
    """
    wrong = {match[1] for problem in problems if (match := re.match(r"--(\w+)", problem))}
    kept = [f.name for f in fields(dataclass_type) if f.init and f.name not in wrong]
    return dataclass_type(**{name: getattr(values, name) for name in kept})


class CommandLine(HfArgumentParser):
    """`HfArgumentParser` that collects every problem in a line each, and lists its flags by topic."""

    def __init__(self, dataclass_types, **options):
        super().__init__(dataclass_types, formatter_class=FlagFormatter, **options)
        self.add_argument("--help_all", action=HelpAll, nargs=0, help=argparse.SUPPRESS, default=argparse.SUPPRESS)
        self.problems: list[str] = []
        self.given: set[str] = set()  # the names of the flags on the command line
        self.required = [action.dest for action in self._actions if action.required]
        for action in self._actions:
            action.required = False  # argparse would stop at the first problem of this kind
            # Of `Optional[dict | str]` transformers 4.55.4 takes the second type, and Python may return an equal union
            # that another module made, with the types in another order.
            action.type = {dict: str, string_to_bool: read_bool}.get(action.type, action.type)
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)  # argparse's knows no -1e-5

    def error(self, message: str):
        message = without_tokens(re.sub(r"(--\w[\w-]*)=\S*", r"\1", message))  # the value may be a secret
        message = re.sub(r"^argument (--\w+)[^:]*:", r"\1:", message)  # of its spellings, one
        message = re.sub(r", --\w+-[\w-]+", "", message)
        message = re.sub(r"(could match (?:--\w+, ){5}).*", r"\1...", message)
        message = re.sub(r": expected (at least )?one argument", " lacks its value", message)
        raise UserError(*self.problems, f"{message} (see --help)")

    def _get_nargs_pattern(self, action) -> str:
        """Take all words up to the next flag for a flag of one value, so that a surplus is reported with its flag."""
        return "(A+)" if action.option_strings and action.nargs is None else super()._get_nargs_pattern(action)

    def _get_values(self, action, arg_strings):
        """Return the value of a flag; note what is wrong with it and go on with the default."""
        self.given.add(action.dest)
        if action.option_strings and arg_strings == ["--"]:  # argparse would make an empty list of it
            self.problems.append(f"{action.option_strings[0]} lacks its value; `--` is none")
            return action.default
        if action.nargs is None and len(arg_strings) > 1:
            self.problems.append(surplus_values(action.option_strings[0], arg_strings))
            arg_strings = arg_strings[:1]
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as error:
            self.problems.append(wrong_value(action, error.message, arg_strings[0]))
            return action.const if is_argument_file(arg_strings[0]) else action.default

    def format_help(self, everything: bool = False) -> str:
        """Format the flags of `HELP`, or all of them, by topic."""
        flags = {action.dest: action for action in reversed(self._actions)}  # of --x and --no_x, the first
        topics = {title: [flags.pop(name) for name in names.split() if name in flags] for title, names in HELP.items()}
        rest = sorted(flags.values(), key=lambda action: action.dest) if everything else []
        topics["Of the libraries" if everything else ""] = rest
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for title, actions in topics.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text("" if everything else "--help_all lists the other flags too, those of the libraries.")
        return formatter.format_help()


def read_bool(text: str) -> bool:
    """Return the truth value of a word: true, yes, on, t, y, 1 or their opposites, in any case."""
    return string_to_bool({"on": "true", "off": "false"}.get(text.lower(), text))


def surplus_values(flag: str, words: list[str]) -> str:
    """Return the message for a flag of one value that several words follow."""
    if len(words) == 2 and is_argument_file(words[1]) and not words[0].startswith("["):
        return misplaced_file(words[1])
    shown = " ".join(map(short_word, without_secrets([flag, *words])[1:5])) + " ..." * (len(words) > 4)
    return f"{flag} takes one value, {len(words)} are given: {shown}; give one, and quote a value that contains blanks"


def wrong_value(action: argparse.Action, message: str, word: str) -> str:
    """Return the message for a value of the wrong type.

    Args:
        message: argparse's own, which names the choices of a flag.
    """
    flag, (word,) = action.option_strings[0], without_secrets([word])
    if action.type is read_bool:
        return misplaced_file(word) if is_argument_file(word) else f"{flag} is {short_word(word)}; give true or false"
    if action.type in (int, float):
        whole = "a whole number, " if action.type is int else ""
        return f"{flag} is {short_word(word)}; give {whole}{LIMITS.get(action.dest, Limit()).describe()}"
    choices = action.choices or (action.type if isinstance(action.type, EnumType) else ())
    if choices:
        return f"{flag} is {short_word(word)}; give one of {', '.join(getattr(choice, 'value', choice) for choice in choices)}"
    return f"{flag}: {' '.join(without_tokens(message).split())}"


class HelpAll(argparse.Action):
    """Print all flags and exit."""

    def __call__(self, parser, *_):
        print(parser.format_help(everything=True), end="")
        sys.exit()


class FlagFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each flag, its default, and texts of one paragraph."""

    def _format_action_invocation(self, action) -> str:
        long = next((word for word in action.option_strings if word.startswith("--")), action.dest)
        return f"{long} {self._format_args(action, self._get_default_metavar_for_optional(action))}".strip()

    def _get_default_metavar_for_optional(self, action) -> str:
        if action.choices:
            return "|".join(map(str, action.choices)) if len(action.choices) < 6 else "NAME"
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X", "read_bool": "true|false"}.get(kind, "TEXT")

    def _format_args(self, action, default_metavar) -> str:
        return default_metavar if action.nargs in (None, "?") else super()._format_args(action, default_metavar)

    def _get_help_string(self, action) -> str:
        text = LIBRARY_HELP.get(action.dest) or " ".join((action.help or "").split()).replace("%", "%%")
        known = action.default is not None and action.default is not argparse.SUPPRESS and action.default != ""
        return f"{text} (default: %(default)s)" if known and action.default != [] else text


def unknown_argument(word: str, known: list[str]) -> str:
    """Return the message for a word that is no flag, with the nearest flag that is one."""
    if is_argument_file(word):
        return misplaced_file(word)
    name = short_word(word.split("=")[0])
    if name in FLAGS_OF_ONE_SCRIPT:
        return f"{name} is a flag of {FLAGS_OF_ONE_SCRIPT[name]}; omit it"
    nearest = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"unknown argument {name}" + (f" (did you mean {nearest[0]}?)" if nearest else " (see --help)")


def misplaced_file(word: str) -> str:
    return f"{word}: a file of arguments has to be the first word after the script; move it there"


def short_word(word: str) -> str:
    """Return a word as it is, or shortened and quoted where it is long or hard to see."""
    return word if 0 < len(word) <= 80 and word.isprintable() else short(word)
