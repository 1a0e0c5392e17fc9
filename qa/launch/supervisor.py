"""Start processes, print their lines, pass signals on, and leave none of them, whichever process is killed.

    gaudi_spawn.py              the guard: passes signals on, and at the end kills all that is below it
    └─ gaudi_spawn.py           the supervisor, in a session of its own: has a pipe to each output of its children
       ├─ python script ...     rank 0
       └─ python script ...     rank 1 ...

With mpirun, each node has a guard and a supervisor of its own (node.py):

    gaudi_spawn.py
    └─ gaudi_spawn.py
       └─ mpirun                the only child of this supervisor; it reaches other nodes through ssh and prted
          └─ node.py            the guard of a node: its lines come marked, it ends with the status of its ranks
             └─ node.py         the supervisor of its ranks
                └─ python script ...

    state     entered when                             each rank gets                          left when
    --------  ---------------------------------------  --------------------------------------  ----------------------
    running   at the start                             nothing                                 all ranks have ended
    stopping  SIGTERM, SIGHUP, SIGUSR1, or nobody      SIGTERM, or SIGINT after SIGINT and     all have ended, or
              reads the output; SIGINT, SIGUSR2        SIGUSR2, and has --grace_seconds        after the grace: killing
    failing   a rank ended with a status other than 0  SIGTERM, and has 5 s; on other nodes,   all have ended, or
                                                       where mpirun ends it, 0.25 s            after 5 s: killing
    killing   the time is over, or one more SIGTERM,   SIGKILL, with all that is below it      nothing is left
              SIGINT or SIGHUP

mpirun forwards SIGUSR1 and SIGUSR2 to each node.py. It might have none yet, so they are sent until it has ended.

Guard and supervisor cover for each other: both adopt the orphans of everything below them. The kernel sends the
supervisor SIGTERM when its guard is killed (ranks then have 5 s), and kills the ranks when their supervisor is killed.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple


STOPS = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGUSR2}
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup
    STOPS.remove(signal.SIGHUP)
FORWARDED = {signal.SIGTERM: signal.SIGUSR1, signal.SIGINT: signal.SIGUSR2}  # what mpirun sends to all nodes
SECONDS_TO_END = 5  # for the ranks of a failed job, and for processes that are killed
HAS_SPOKEN = {2, 75}  # statuses of a script that has printed a line itself: a user's mistake, --max_train_minutes
MPI_MARK = re.compile(rb"\[[^]]*,\d+\]<std(?:out|err)>:? ?")
FAILURE = re.compile(rb"error: rank \d+ on \S+ ended with exit status (\d+)( \(\w+\))?\n")
MISTAKE = re.compile(rb"(\[rank \d+\] )?(error: .*\n)")  # as qa/errors.py prints it


class Child(NamedTuple):
    """A program to start: a rank, or mpirun with the rank None."""

    command: list[str]
    environment: dict[str, str]
    rank: int | None = None
    cores: frozenset[int] = frozenset()  # CPUs to be bound to, if any


def run_guarded(children: list[Child], grace_seconds: int, in_node: bool = False) -> int:
    """Run children below a guard and a supervisor, and return the exit status of the job; nothing of it is left then."""
    watched = STOPS | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    supervisor = os.fork()
    if supervisor == 0:
        os.setsid()  # Ctrl-C in a terminal reaches the guard alone.
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        die_with(guard, signal.SIGTERM)
        sys.exit(Supervisor(children, grace_seconds, in_node).run())
    while not (ended := os.waitpid(supervisor, os.WNOHANG))[0]:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            os.kill(supervisor, number)
    kill_children()
    return exit_status(os.waitstatus_to_exitcode(ended[1]))


class Supervisor:
    """The children of a job, what they print, and how the job ends; mpirun is an only child.

    Attributes:
        failure: the exit status of the first rank that failed, or 0.
        stopped_by: the signal that the ranks got because the job was stopped, or 0.
        deadline: when all children are killed.
    """

    def __init__(self, children: list[Child], grace_seconds: int, in_node: bool):
        """Start the children; `in_node` means that mpirun has started this process."""
        self.children, self.grace_seconds, self.in_node = children, grace_seconds, in_node
        self.guard, self.runs_mpirun = os.getppid(), children[0].rank is None
        self.failure, self.stopped_by, self.deadline = 0, 0, float("inf")
        self.mistakes: dict[bytes, bytes] = {}  # a user's mistake: the mark of the rank that printed it first
        self.lock = threading.Lock()
        self.processes = [start(child) for child in children]  # before any thread, as it forks
        self.readers = [self.read(process, child) for process, child in zip(self.processes, children)]

    def run(self) -> int:
        """Wait until all children have ended and their lines are printed, and return the exit status of the job.

        It is 128 and the signal's number for a stopped job, else that of the first rank that failed, or 0. In a node it
        is 0 for a stopped job: after another one mpirun would end the nodes that still write a checkpoint.
        """
        while time.monotonic() < self.deadline + 1:  # for lines that nobody reads, and what the kernel cannot end
            running = None in [process.poll() for process in self.processes]
            self.look_for_failures()
            if not running and not any(reader.is_alive() for pair in self.readers for reader in pair):
                break
            arrived = signal.sigtimedwait(STOPS | {signal.SIGCHLD}, 0.1)
            if arrived and arrived.si_signo in STOPS:
                self.stop(arrived.si_signo)
            if self.runs_mpirun and self.stopped_by:
                self.send(FORWARDED[self.stopped_by])
            if not running or time.monotonic() > self.deadline:
                kill_children()
        kill_children()
        if self.stopped_by:
            return 0 if self.in_node else 128 + self.stopped_by
        return self.failure or exit_status(self.processes[0].returncode)

    def stop(self, number: int) -> None:
        """Ask all ranks to end, or after another signal kill them; SIGUSR1 and SIGUSR2 may come more than once."""
        if self.stopped_by:
            if number not in FORWARDED.values():
                self.deadline = time.monotonic()
            return
        self.stopped_by = signal.SIGINT if number in (signal.SIGINT, signal.SIGUSR2) else signal.SIGTERM
        self.end_in(self.grace_seconds if os.getppid() == self.guard else SECONDS_TO_END)
        if not self.runs_mpirun and not self.failure:
            self.send(self.stopped_by)

    def end_in(self, seconds: float) -> None:
        """Set the deadline, unless it is earlier; mpirun's nodes have deadlines of their own."""
        self.deadline = min(self.deadline, time.monotonic() + seconds + 2 * self.runs_mpirun)

    def send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def look_for_failures(self) -> None:
        """Print which rank is the first that has failed, after its own lines, and ask the others to end."""
        for process, child, readers in zip(self.processes, self.children, self.readers):
            if process.returncode and not (self.runs_mpirun or self.stopped_by or self.failure):
                for reader in readers:
                    reader.join(1)  # Processes that the rank has started may still hold its outputs.
                self.print_line(2, failure_line(child.rank, process.returncode))
                self.send(signal.SIGTERM)
        if self.failure:
            self.end_in(SECONDS_TO_END)

    def read(self, process: subprocess.Popen, child: Child) -> list[threading.Thread]:
        """Return the threads that print what a process writes."""
        outputs = ((process.stdout, 1, child.rank), (process.stderr, 2, child.rank))
        readers = [threading.Thread(target=self.print_lines, args=output, daemon=True) for output in outputs]
        for reader in readers:
            reader.start()
        return readers

    def print_lines(self, stream, target: int, rank: int | None) -> None:
        """Print whole lines; not those of mpirun itself about the end of a job, which are many."""
        for line in stream:
            if rank is not None:
                text = line.rstrip(b"\r\n").rpartition(b"\r")[2] + b"\n"  # of a progress bar the last state
                self.print_line(target, (b"[rank %d] " % rank if rank else b"") + text)
            elif (mark := MPI_MARK.match(line)) or not (self.failure or self.stopped_by):
                self.print_line(target, line[mark.end() :] if mark else line)

    def print_line(self, target: int, line: bytes) -> None:
        """Print a line, unless it is a mistake that another rank has printed, or reports one that is printed."""
        with self.lock:
            if failure := FAILURE.fullmatch(line):
                self.failure = self.failure or int(failure[1])
                if int(failure[1]) in HAS_SPOKEN and not self.in_node:
                    return
            mistake = MISTAKE.fullmatch(line)
            if mistake and self.mistakes.setdefault(mistake[2], mistake[1]) != mistake[1]:
                return
            try:
                os.write(target, line)
            except OSError:  # `| head` has read enough: a script on its own would end too.
                os.dup2(os.open(os.devnull, os.O_WRONLY), target)
                os.kill(os.getpid(), signal.SIGTERM)


def failure_line(rank: int, returncode: int) -> bytes:
    """Return the line about a rank that failed, which also reports its exit status from a node to the launcher."""
    name = f" ({signal.Signals(-returncode).name})" if returncode < 0 else ""
    return f"error: rank {rank} on {socket.gethostname()} ended with exit status {exit_status(returncode)}{name}\n".encode()


def exit_status(returncode: int) -> int:
    """Return what a shell would: 128 and the signal's number for a process that a signal killed.

    >>> exit_status(7), exit_status(-9)
    (7, 137)
    """
    return returncode if returncode >= 0 else 128 - returncode


# Processes; Linux only

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def die_with(parent: int, number: int) -> None:
    """Let the kernel send this process a signal when its parent has ended."""
    LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # It ended before the kernel was asked.
        os._exit(128 + number)


def start(child: Child) -> subprocess.Popen:
    """Start a program that dies with this process, in a session of its own."""
    supervisor = os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Jobs in the background of a shell script ignore it.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with(supervisor, signal.SIGKILL)
        if child.cores:
            os.sched_setaffinity(0, child.cores)

    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(child.command, env=child.environment, start_new_session=True, preexec_fn=prepare, **pipes)


def kill_children() -> None:
    """Kill every process below this one, which has to adopt orphans; give up on those that the kernel does not end."""
    give_up = time.monotonic() + SECONDS_TO_END
    while (children := living_children()) and time.monotonic() < give_up:
        for child in children:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def living_children() -> list[int]:
    """Return the direct children of this process that have not ended (their ids stay theirs until they are waited for)."""
    children = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return [child for child in children if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None]
