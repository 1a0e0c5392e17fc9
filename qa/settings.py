"""How a trained model is asked: `qa_settings.json` next to it holds lengths, threshold and temperature.

    settings = read_settings(Path("out"))
    settings.max_seq_length, settings.null_score_diff_threshold

Every training writes the file. Evaluation and prediction use it where `--tune_null_threshold` has tuned it.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from qa.arguments import DataArguments
from qa.errors import UserError, short
from qa.files import parse_json, write_json
from qa.limits import number_problems


SETTINGS_FILE = "qa_settings.json"
VERSION = 1  # of the file; a reader refuses later ones
KINDS = ("span", "written")
COLUMNS = ("id", "question", "context", "answer")
NOT_ASKED = ("id_column", "answer_column", "answer_language")  # questions without answers may lack them
TUNED = ("null_score_diff_threshold", "temperature", "tuned_on")


@dataclass(frozen=True)
class Settings:
    """The flags with which a model answers as in its evaluation, by their names.

    Attributes:
        kind: "span" for a model that marks its answers (`run_qa.py`), "written" for one that writes them.
        max_seq_length: tokens of a window, never more than the model takes.
        null_score_diff_threshold: the answer is empty where the null odds exceed it, in logits.
        temperature: by which scores are divided before a softmax makes probabilities of them.
        tuned_on: the number of held-out questions that threshold and temperature were found on; 0 without tuning.
        columns: of the training data, by the name of their flag without `_column`: id, question, context, answer.
        language: by whose rules answers are scored (`--answer_language`); None for SQuAD's rules alone.
        language_code, generation_max_length, generation_num_beams: of a model that writes; None as it is configured.
    """

    kind: str
    max_seq_length: int
    doc_stride: int
    max_answer_length: int
    n_best_size: int
    version_2_with_negative: bool
    null_score_diff_threshold: float = 0.0
    temperature: float = 1.0
    tuned_on: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    language: str | None = None
    language_code: str | None = None
    generation_max_length: int | None = None
    generation_num_beams: int | None = None


def make_settings(data_args, kind: str, length: int, generation=None) -> Settings:
    """Return the settings of a run.

    Args:
        data_args: its `DataArguments`.
        length: tokens of a window.
        generation: the training's arguments, of a model that writes.
    """
    names = "doc_stride max_answer_length n_best_size version_2_with_negative null_score_diff_threshold temperature tuned_on"
    columns = {name: getattr(data_args, f"{name}_column") for name in COLUMNS}
    return Settings(
        kind=kind,
        max_seq_length=length,
        **{name: getattr(data_args, name) for name in names.split()},
        columns={name: column for name, column in columns.items() if column is not None},
        language=None if data_args.answer_language == "off" else data_args.answer_language,
        language_code=getattr(data_args, "language_code", None),
        generation_max_length=getattr(generation, "generation_max_length", None),
        generation_num_beams=getattr(generation, "generation_num_beams", None),
    )


def write_settings(folder: Path, settings: Settings) -> None:
    """Write `qa_settings.json`."""
    write_json(Path(folder) / SETTINGS_FILE, [{"version": VERSION} | to_entries(settings)])


def to_entries(settings: Settings) -> dict:
    """Return the entries of the file; JSON has no infinity, so an infinite threshold is written as a text."""
    entries = asdict(settings)
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in entries.items()}


def read_settings(folder: Path) -> Settings | None:
    """Return the settings in a model's folder, None where there are none.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    path = Path(folder) / SETTINGS_FILE
    if not os.path.isfile(path):
        return None
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({short(str(error))}); restore it, or remove it") from None
    version = content.pop("version", None) if isinstance(content, dict) else None
    if is_whole(version) and version > VERSION:
        raise UserError(
            f"{path} is of version {version}, later than {VERSION}; update this project, or remove the file"
        )
    problem = problem_of(content) if is_whole(version) and version > 0 else f"its version is {short(version)}"
    if problem is not None:
        raise UserError(f"{path} is damaged: {problem}; restore it, or remove it")
    return Settings(**from_entries(content))


def from_entries(content: dict) -> dict:
    """Return the entries of the file with the thresholds of `to_entries` as numbers again.

    >>> from_entries({"kind": "span", "null_score_diff_threshold": "-inf"})
    {'kind': 'span', 'null_score_diff_threshold': -inf}
    """
    return {name: float(value) if value in ("inf", "-inf") else value for name, value in content.items()}


def problem_of(content: dict) -> str | None:
    """Return the first problem of the file's entries.

    >>> entries = {"kind": "span", "max_seq_length": 384, "doc_stride": 128, "max_answer_length": 30, "n_best_size": 20}
    >>> problem_of(entries), problem_of(entries | {"version_2_with_negative": 3})
    ('there is no version_2_with_negative', 'version_2_with_negative is 3')
    >>> problem_of(entries | {"version_2_with_negative": False, "temperature": 0})
    'temperature is 0; give 0.01 or more, 1000 at most'
    """
    content, names = from_entries(content), [entry.name for entry in fields(Settings)]
    for name in names[:6]:
        if name not in content:
            return f"there is no {name}"
    for name, value in content.items():
        if name not in names:
            return f"{short(name)} is unknown"
        if not is_valid(name, value):
            return f"{name} is {short(value)}"
    problems = number_problems(Settings(**content))
    return problems[0].removeprefix("--") if problems else None


def is_valid(name: str, value) -> bool:
    """Return whether an entry is of its type."""
    kinds: dict[str, Callable] = {
        "kind": lambda value: value in KINDS,
        "version_2_with_negative": lambda value: isinstance(value, bool),
        "columns": lambda value: (
            isinstance(value, dict)
            and value.keys() <= set(COLUMNS)
            and all(isinstance(text, str) for text in value.values())
        ),
        "null_score_diff_threshold": is_number,
        "temperature": is_number,
        "tuned_on": lambda value: is_whole(value) and value >= 0,
    }
    kinds |= dict.fromkeys(("language", "language_code"), lambda value: value is None or isinstance(value, str))
    writing = ("generation_max_length", "generation_num_beams")
    kinds |= dict.fromkeys(writing, lambda value: value is None or is_whole(value))
    return kinds.get(name, is_whole)(value)


def is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    return isinstance(value, float) or is_whole(value)


# ---------------------------------------------------------------------------------------------------------------------
# Using them


def use_settings(values) -> str | None:
    """Set the flags that are not on the command line to the tuned settings of the model; return a line that says so.

    A training uses none. Nor does a model whose threshold was not tuned, or one of the hub.

    Args:
        values: of all flags, with `given`, see `read_command_line`.

    Raises:
        UserError: the model's settings cannot be read.
    """
    if values.do_train or not values.model_name_or_path:
        return None
    settings = read_settings(Path(values.model_name_or_path))
    if settings is None or not settings.tuned_on:
        return None
    flags = {name: value for name, value in to_flags(settings).items() if is_open(name, values)}
    changed = {name: value for name, value in flags.items() if getattr(values, name) != value}
    for name, value in changed.items():
        setattr(values, name, value)
    listed = " ".join(f"--{name} {value}" for name, value in changed.items())
    path = Path(values.model_name_or_path) / SETTINGS_FILE
    return f"{path}, tuned on {settings.tuned_on:,} held-out questions: using {listed or 'what is given'}"


def to_flags(settings: Settings) -> dict[str, object]:
    """Return settings as values of flags by name."""
    entries = asdict(settings)
    columns, language = entries.pop("columns"), entries.pop("language") or "off"
    flags = {name: value for name, value in entries.items() if name not in ("kind", "tuned_on") and value is not None}
    return flags | {f"{name}_column": column for name, column in columns.items()} | {"answer_language": language}


def flags_to_ask(folder: Path) -> list[str]:
    """Return the flags with which a prediction asks a trained model as its training did; none where it does so anyway.

    Raises:
        UserError: the settings cannot be read.
    """
    settings = read_settings(folder)
    if settings is None or settings.tuned_on:  # see `use_settings`
        return []
    usual = {entry.name: entry.default for entry in fields(DataArguments)}
    usual |= {"generation_max_length": settings.max_answer_length}
    asked = {name: value for name, value in to_flags(settings).items() if name not in NOT_ASKED}
    changed = {name: value for name, value in asked.items() if value != usual.get(name)}
    return [word for name, value in changed.items() for word in (f"--{name}", str(value))]


def is_open(name: str, values) -> bool:
    """Return whether a script has a flag, and neither it nor another flag of the same effect is on the command line."""
    others = {"generation_max_length": "val_max_answer_length", "generation_num_beams": "num_beams"}
    return hasattr(values, name) and not {name, others.get(name)} & values.given


def take_tuned(data_args, folder: Path) -> bool:
    """Set threshold and temperature to those that were tuned for the model in a folder; return whether there are any.

    Raises:
        UserError: the settings cannot be read.
    """
    settings = read_settings(folder)
    if settings is None or not settings.tuned_on:
        return False
    for name in TUNED:
        setattr(data_args, name, getattr(settings, name))
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Saving them


class SavedSettings:
    """Mixin for a trainer: the settings are next to each model and checkpoint.

    Attributes:
        make_settings: returns them as they are now; None where they are not known, and nothing is written.
    """

    make_settings: Callable[[], Settings] | None = None

    def save_model(self, output_dir: str | None = None, *args, **kwargs) -> None:
        super().save_model(output_dir, *args, **kwargs)
        self.write_settings(output_dir or self.args.output_dir)

    def write_settings(self, folder: str) -> None:
        """Write the settings to a folder, on the rank that saves."""
        if self.make_settings is not None and self.args.should_save:
            write_settings(Path(folder), self.make_settings())
