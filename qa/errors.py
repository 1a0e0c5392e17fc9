"""How an error ends: in a line for each problem on stderr, and an exit status; 2 for a user's mistake."""

import errno
import gc
import os
import re
import reprlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from qa.out_of_memory import memory_problem


class UserError(Exception):
    """A run that cannot be done as asked; `problems` holds the reasons, one line each, and what to do.

    Values from the command line and from files may contain anything: characters that do not print are escaped.
    """

    def __init__(self, *problems: str):
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))


LONGEST = 2000  # characters of a problem


def printable(text: str) -> str:
    """Return a text on one line, without its middle where it is too long to be read.

    >>> printable("a\\nb")
    'a\\\\nb'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


LOST_RANK = re.compile(r"gloo.*Connection (closed|reset) by peer", re.DOTALL)  # as PyTorch 2.13 words it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(Exception):
    """A training that ended before its last step.

    Attributes:
        status: the exit status.
        line: what is printed; one that begins with `error: ` is printed by every rank.
    """

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status, self.line = status, line


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


def short(value) -> str:
    """Return a value on one line of at most 80 characters, for messages."""
    return SHORT.repr(value)[:80]


def in_one_line(error: Exception, most: int = 400) -> str:
    """Return the beginning of an error's text, without line breaks."""
    return " ".join(str(error).split())[:most]


def on_rank_0(training_args, function: Callable, *args):
    """Return the result of a function that rank 0 alone calls, None on the others; its UserError is raised on all ranks."""
    result, problems = None, [()]
    if training_args.process_index == 0:
        try:
            result = function(*args)
        except UserError as error:
            problems = [error.problems]
    if training_args.world_size > 1:
        import torch

        torch.distributed.broadcast_object_list(problems)
    if problems[0]:
        raise UserError(*problems[0])
    return result


def reason_of(error: Exception) -> str:
    """Return an error as text for a message; with its type, unless it is of one that is written for users."""
    written = isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) and str(error).strip()
    return in_one_line(error) if written else f"{type(error).__name__}: {in_one_line(error)}"


TRACEBACKS = {"shown": False}


def show_tracebacks() -> None:
    """Let `run_or_exit` print the traceback of an error: `--debug_traceback`."""
    TRACEBACKS["shown"] = True


def tracebacks_are_shown() -> bool:
    return TRACEBACKS["shown"] or "--debug_traceback" in sys.argv


def run_or_exit(main: Callable[[], object]) -> None:
    """Run a script's `main`, and exit with 2 after a user's mistake, with 1 after another error.

    A `Stopped` has a line and an exit status of its own.
    Each problem of a `UserError` is a line on stderr. A disk without room is a line too: the same command goes on once
    there is room. So is a lack of memory, see `qa.out_of_memory`. Of another error the line has the type, the text and the
    places where it passed through. Tracebacks are printed after `show_tracebacks`, or with `--debug_traceback` among the
    program's words.
    """
    try:
        main()
        finish_ranks()
    except Stopped as stop:
        if stop.line.startswith("error: ") or os.environ.get("RANK", "0") == "0":
            print(stop.line, file=sys.stderr)
        finish_ranks()
        sys.exit(stop.status)
    except Exception as error:
        if tracebacks_are_shown():
            traceback.print_exc()
        for problem in problems_of(error):
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    finally:
        gc.freeze()  # Python looks at every object once more when it ends, which takes half a second


def finish_ranks() -> None:
    """Let the threads of a rank among several come to their end."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        from qa.upstream import let_threads_finish

        let_threads_finish()


def problems_of(error: Exception) -> tuple[str, ...]:
    """Return the lines about an error."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" ({error.filename})" if error.filename else ""
        advice = "free some room and start the same command again, without --overwrite_output_dir: it goes on from the last checkpoint"
        return (f"the disk is full{where}: {error.strerror}; {advice}",)
    if isinstance(error, RuntimeError) and LOST_RANK.search(str(error)):
        return ("the connection to another rank is lost, since that rank has ended; read its lines",)
    return (memory_problem(error) or unexpected(error),)


def unexpected(error: Exception) -> str:
    """Return a line about an error that is no user's mistake, with the last place in each file that it passed through."""
    places = {frame.filename: frame.lineno for frame in traceback.extract_tb(error.__traceback__)}
    shown = ", ".join(f"{'/'.join(Path(file).parts[-2:])}:{line}" for file, line in list(places.items())[-6:])
    return f"{type(error).__name__}: {in_one_line(error)} (at {shown}); run it with --debug_traceback for a report"
