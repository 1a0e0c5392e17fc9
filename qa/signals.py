"""SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) end a script with one line, and no traceback.

    a signal arrives         what happens                                             exit status
    -----------------------  -------------------------------------------------------  -----------------------------------
    in a training            the step, or the batch of an evaluation, ends; all ranks   143, 143, for Ctrl-C 130
                             write a checkpoint (stopping.py)
    at another time          the run ends at once: it has nothing to save, and after  the same
                             a training the line says how to go on
    a second time            the run ends at once                                     the same

Signals within a second are one request: a scheduler can reach the launcher and its ranks on their own. A signal that is
ignored at the start stays so, as do SIGHUP with nohup and Ctrl-C of a job in the background. This module imports nothing
that takes time, since it comes before the imports that do.
"""

import os
import signal
import time
from contextlib import contextmanager

from qa.errors import Stopped


STATUS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
SECONDS_OF_A_REQUEST = 1.0


class Request:
    """The signal that asked this process to stop, if any.

    Attributes:
        number: of the signal, or 0.
        can_wait: a signal is only noted, for a training that looks here.
        circumstances: of a signal outside a training, for its line.
    """

    def __init__(self):
        self.number, self.time, self.can_wait, self.process = 0, 0.0, False, os.getpid()
        self.circumstances = "no training was under way"


REQUEST = Request()


def handle_signals() -> None:
    """Handle the signals of this process from now on."""
    for number in STATUS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def handle(number: int, frame) -> None:
    """Note a signal, or end the process."""
    if os.getpid() != REQUEST.process:
        handle_in_worker(number)
    elif not REQUEST.can_wait:
        end(number, REQUEST.circumstances)
    elif not REQUEST.number:
        REQUEST.number, REQUEST.time = number, time.monotonic()
        say(f"{name_of(number)}: the step ends and a checkpoint is written; a second signal ends the run at once")
    elif time.monotonic() - REQUEST.time > SECONDS_OF_A_REQUEST:
        end(REQUEST.number, "without a checkpoint")


def handle_in_worker(number: int) -> None:
    """End a forked process as without a handler; one that loads data for a step that has to end ignores Ctrl-C."""
    if number != signal.SIGINT or not REQUEST.can_wait:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def signals_can_wait(again: str = "the same command"):
    """Only note signals within, for `qa.stopping`.

    Args:
        again: the command that goes on after the training.

    Raises:
        Stopped: a signal came too late for a training to stop.
    """
    REQUEST.can_wait = True
    try:
        yield
    finally:
        REQUEST.can_wait = False
    if REQUEST.number:
        line = f"stopped by {name_of(REQUEST.number)} after the training; {again} goes on from there"
        raise Stopped(STATUS[REQUEST.number], line)


def end(number: int, circumstances: str) -> None:
    say(f"stopped by {name_of(number)}; {circumstances}")
    os._exit(STATUS[number])


def say(line: str) -> None:
    """Print a line on standard error of rank 0, also in the middle of a print."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{line}\n".encode())


def name_of(number: int) -> str:
    """Return how a user calls a signal.

    >>> name_of(2), name_of(15)
    ('Ctrl-C (SIGINT)', 'SIGTERM')
    """
    name = signal.Signals(number).name
    return f"Ctrl-C ({name})" if number == signal.SIGINT else name
