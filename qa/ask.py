"""Ask a trained model: in a terminal, in a pipe, or the questions of a file.

    python -m qa.ask out --context contract.txt "Who signed it?" "When does it end?"
    python -m qa.ask out --context contract.txt                  # reads questions until the end of input
    python -m qa.ask out --context - "Who signed it?" < contract.txt
    python -m qa.ask out --questions questions.csv --output answers.csv

The model is the folder of a training, or a name on the hub. It answers as in its evaluation, with the settings that
the training saved with it; each flag below has the same meaning as in the scripts, and overrides them.
"""

import argparse
import gc
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from qa.answer_lines import answer_lines, marks_for
from qa.arguments import DataArguments, ModelArguments, Seq2SeqDataArguments
from qa.data import checked_rows, read_questions
from qa.errors import UserError, in_one_line, run_or_exit, short
from qa.files import write_whole
from qa.limits import Limit, number_problems
from qa.numbers import count_of
from qa.reading import MAGIC, decode, read_file
from qa.script import collect_again
from qa.secret_flags import hide_secrets, without_secrets, without_tokens
from qa.settings import read_settings
from qa.thresholds import doubt


logger = logging.getLogger(__name__)

EXAMPLE = 'python -m qa.ask out --context contract.txt "Who signed it?"'
NO_TEXT = (*MAGIC, b"%PDF", b"\xd0\xcf\x11\xe0")  # first bytes of documents: Word's are a ZIP archive or an OLE file
# Flags of the scripts, by the dataclass that describes them.
SETTINGS = "max_seq_length doc_stride max_answer_length n_best_size null_score_diff_threshold temperature version_2_with_negative"
DATA = "question_column context_column id_column on_bad_rows"
LOADING = "config_name tokenizer_name cache_dir model_revision token trust_remote_code"
FLAGS = (
    (DataArguments, SETTINGS),
    (Seq2SeqDataArguments, "language_code"),
    (DataArguments, DATA),
    (ModelArguments, LOADING),
)


def main(argv: list[str] | None = None, script: bool = False) -> None:
    """Answer the questions of a command line, without the program's name.

    Args:
        script: the process runs nothing else.

    Raises:
        UserError: every problem of the flags; of a file; of the model.
    """
    arguments = read_arguments(sys.argv[1:] if argv is None else argv)
    rows = read_rows(arguments) if arguments.questions else None
    context = None if rows else read_context(arguments.context)
    if script:
        start_process()
    model = load(arguments)
    collect_again()
    if rows:
        answer_file(model, rows, Path(arguments.output))
    else:
        ask_all(model, arguments.words[1:] or typed_questions(), context)


def ask_all(model, questions, context: str) -> None:
    """Print the answers to questions about one context: to those of a list together, else to each one as it comes."""
    marks = marks_for(sys.stdout)
    for part in [questions] if isinstance(questions, list) else ([question] for question in questions):
        for question, answer in zip(part, model.answer(part, context)):
            print(*answer_lines(question, answer, context, marks), sep="\n", flush=True)


def typed_questions() -> Iterator[str]:
    """Yield the lines of standard input that are not blank; on a terminal after a prompt."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # Windows has none
            importlib.import_module("readline")  # keys that edit a line, and earlier lines
        lines = iter(partial(typed_line, "> "), None)
    else:
        lines = sys.stdin
    yield from filter(None, map(str.strip, lines))


def typed_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


def answer_file(model, rows: list[dict], output: Path) -> None:
    """Write the answers to rows of questions as CSV."""
    from qa.answer_files import csv_chunks

    answers = model.answer_rows(rows, bar=sys.stderr.isatty())
    columns = {"id": [row["id"] for row in rows], "answer": [answer.text for answer in answers]}
    columns |= {name: [getattr(answer, name) for answer in answers] for name in ("probability", "start", "end")}
    write_whole(output, csv_chunks(columns))
    empty = sum(not answer.text for answer in answers)
    print(
        f"written: {output}, {count_of(len(answers), 'question')}" + (f", {empty} without an answer" if empty else "")
    )


# ---------------------------------------------------------------------------------------------------------------------
# Command line


class CommandLine(argparse.ArgumentParser):
    """A parser that raises a UserError."""

    def error(self, message: str):
        message = re.sub(r"^argument (--\w+)[^:]*:", r"\1:", without_tokens(message))
        message = message.replace(": expected one argument", " lacks its value")
        raise UserError(f"{message} (see --help)")


def make_parser() -> CommandLine:
    parser = CommandLine(
        prog="python -m qa.ask",
        usage="python -m qa.ask MODEL --context FILE [QUESTION ...] | --questions FILE --output FILE.csv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser._negative_number_matcher = re.compile(r"-(\d|\.\d|inf)", re.IGNORECASE)  # argparse's knows no -1e-5
    parser.add_argument("words", nargs="*", default=[], metavar="MODEL QUESTION", help="the model, and questions")
    parser.add_argument("--context", metavar="FILE", help="text that holds the answers; - is the standard input")
    parser.add_argument("--questions", metavar="FILE", help="file of questions and contexts, as docs/data.md has them")
    parser.add_argument("--output", metavar="FILE.csv", help="where the answers to --questions go")
    parser.add_argument("--device", help="cpu, cuda:1, mps, or hpu for a Gaudi; by default a GPU, else the CPU")
    parser.add_argument("--batch_size", type=int, metavar="N", help="windows that the model takes at once (default 8)")
    parser.add_argument("--num_beams", type=int, metavar="N", help="beams to write with, as in the training")
    for described_by, names in FLAGS:
        described = {entry.name: entry for entry in fields(described_by)}
        for name in names.split():
            parser.add_argument(f"--{name}", help=described[name].metadata["help"], **kind_of_flag(described[name]))
    parser.add_argument("--debug_traceback", action="store_true", help=argparse.SUPPRESS)  # `run_or_exit` reads it
    return parser


def kind_of_flag(entry) -> dict:
    """Return the settings of argparse for a field of a dataclass."""
    if entry.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = {"choices": entry.metadata["choices"]} if "choices" in entry.metadata else {"metavar": "VALUE"}
    return choices | {"type": entry.type if entry.type in (int, float) else str}


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the arguments; of flags with a default of their own only those that were given.

    Raises:
        UserError: with every problem that shows without reading a file.
    """
    hide_secrets()
    arguments, unknown = make_parser().parse_known_intermixed_args(argv)
    for name in ("context", "questions", "output"):
        setattr(arguments, name, getattr(arguments, name, None))
    shown = without_secrets(unknown + arguments.words[:1])  # a model that shows as a secret is a flag without dashes
    flags = [word for word in shown if word.startswith("-") or word.endswith("=***")]  # the others are values of flags
    if problems := [
        *map(unknown_flag, flags),
        *number_problems(arguments),
        *find_problems(arguments),
    ]:
        raise UserError(*problems)
    return arguments


def unknown_flag(word: str) -> str:
    nearest = get_close_matches(word, make_parser()._option_string_actions, n=1, cutoff=0.7)
    return f"unknown argument {word} ({f'did you mean {nearest[0]}?' if nearest else 'see --help'})"


def find_problems(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield what is missing, and what does not go together."""
    if not (arguments.words and arguments.words[0].strip()):
        yield f"the model is missing; name the folder of a training or a model of the hub, as in `{EXAMPLE}`"
    for number, question in enumerate(arguments.words[1:], start=1):
        if not question.strip():
            yield f"question {number} is empty; write one"
    if (arguments.context is None) == (arguments.questions is None):
        found = "missing" if arguments.context is None else "given together with --questions"
        yield f"--context is {found}; give a text with --context, or a file of questions with --questions"
    elif arguments.questions is not None and len(arguments.words) > 1:
        yield f"{short(arguments.words[1])} is given together with --questions; omit one of them"
    elif arguments.context == "-" and len(arguments.words) == 1:
        yield "--context - reads the standard input, where questions would come from; add the questions, or name a file"
    if (arguments.questions is None) != (arguments.output is None):
        yield f"--{'output' if arguments.output is None else 'questions'} is missing; --questions and --output go together"
    if arguments.output is not None and (problem := output_problem(arguments.output, arguments.questions)):
        yield f"--output {arguments.output} {problem}"
    if not Limit(1).allows(batch_size := getattr(arguments, "batch_size", 1)):
        yield f"--batch_size is {batch_size}; give {Limit(1).describe(batch_size)}"


def output_problem(output: str, questions: str | None) -> str | None:
    """Return why answers cannot be written to a file."""
    path = Path(output)
    if path.is_dir():
        return "is a folder; name a file in it"
    if path.suffix.lower() != ".csv":
        return "would be CSV; name a file that ends in .csv"
    if questions is not None and path.exists() and Path(questions).exists() and path.samefile(questions):
        return "is the file of the questions; name another"
    if not path.parent.is_dir():
        return f"is in no folder: there is no {path.parent}; make it"
    if not os.access(path.parent, os.W_OK):
        return "cannot be written: its folder is read-only for this user; name another"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Files and model


def read_context(name: str) -> str:
    """Return the text in a file, or of the standard input.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        if data.startswith(NO_TEXT):
            raise ValueError("it is a document or an archive")
        text, guessed = decode(data) if data.strip() else ("", None)
        if "\0" in text:
            raise ValueError("it has characters that no text has")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or in_one_line(error)
        raise UserError(f"--context {name}: {reason}; name a file of plain text") from error
    if not text.strip():
        raise UserError(f"--context {name}: it is empty; name a file of plain text")
    if guessed:
        logging.warning(f"{name}: not UTF-8; read as {guessed}. If that is wrong, save it as UTF-8")
    return text


def read_rows(arguments: argparse.Namespace) -> list[dict]:
    """Return the checked rows of the file of questions.

    Raises:
        UserError: it cannot be read, columns are missing, or rows are bad.
    """
    records = read_file(Path(arguments.questions))
    there = {name for record in records for name in record}
    saved = read_settings(Path(arguments.words[0]))
    columns = {
        f"{name}_column": column for name, column in (saved.columns if saved else {}).items() if column in there
    }
    given = {name: value for name, value in vars(arguments).items() if name in DATA.split()}
    flags = DataArguments(**columns | given)
    questions = read_questions(records, arguments.questions, flags, "test")
    return checked_rows(questions, arguments.questions, flags, "test")[0]


def start_process() -> None:
    """Let a process of its own start fast, without garbage collection until `collect_again`, and print its log on stderr."""
    gc.disable()
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdin.reconfigure(errors="surrogateescape")  # which questions may not hold
    from qa.upstream import skip_unused_libraries

    skip_unused_libraries()


def load(arguments: argparse.Namespace):
    """Return the model that answers.

    Raises:
        UserError: it, or the device, cannot be used.
    """
    from qa.answerer import Answerer

    logging.getLogger("huggingface_hub").handlers.clear()  # its own handler would print everything twice
    names = f"device batch_size num_beams language_code {SETTINGS} {LOADING}".split()
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if "num_beams" in given:
        given["generation_num_beams"] = given.pop("num_beams")
    if line := doubt(given.get("null_score_diff_threshold", 0.0), [arguments.words[0]]):
        logger.warning(line)
    return Answerer(arguments.words[0], **given)


def run(script: bool = True) -> None:
    """Run `main`; the end of whatever reads the answers, and Ctrl-C, are no errors."""
    try:
        main(script=script)
    except BrokenPipeError:  # Python would report it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_or_exit(run)
