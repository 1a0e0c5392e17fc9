"""Run the engine of a job: print what the ranks write, pass signals on, and leave no process.

    gaudi_spawn.py                    this supervisor: has a pipe to each output of each rank of its node
    └─ mpirun or torchrun             the engine: places the ranks, and ends all of them when one fails
       └─ rank.py, one for each rank  see there
          └─ python script ...

    state     entered when                                 what happens to the ranks            left when
    --------  -------------------------------------------  -----------------------------------  -----------------------
    running   at the start                                 nothing                              the engine has ended
    stopping  SIGTERM, SIGINT, SIGHUP, SIGUSR1;            each gets SIGTERM or SIGINT and has  all have ended; after
              nobody reads the output any more             --grace_seconds; the engine waits    the grace: killing
    failing   a rank, or the engine, ended with a status   the engine ends them, see rank.py    all have ended; after
              other than 0                                                                      7 s: killing
    killing   a second signal, or the time is over         SIGKILL                              nothing is left

The supervisor adopts the orphans of all processes below it, so at its end it can kill whatever anything has left on
this node. When it is killed itself, the kernel sends SIGTERM to the engine.
"""

import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

from qa.launch.rank import STOP, Prepare, adopt_orphans, exit_status, kill_children


SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
ASK = {asked: sent for sent, asked in STOP.items()}  # the signal that a rank should get: what to send to its rank.py
SECONDS_TO_END = 7  # for all processes of a failed job; rank.py allows its script 5 of them
MISTAKE = re.compile(rb"error: .*\n")  # as qa/errors.py prints it
MPI_MARK = re.compile(rb"\[[^]]*,(\d+)\]<std(?:out|err)>:? ?")


def supervise(command: list[str], environment: dict[str, str], forwards: bool, grace_seconds: int) -> int:
    """Run an engine's command and return the exit status of the job.

    It is 128 and the signal's number for a stopped job, else the status of the first rank that failed, or 0.

    Args:
        forwards: the engine passes SIGUSR1 and SIGUSR2 on to its ranks, as mpirun does.
    """
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()  # by nohup
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS - ignored)
    adopt_orphans()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # Linux chooses a name, which is in no file system.
        listener.listen(1024)
        environment = environment | {"SPAWN_LINK": listener.getsockname()[1:].decode()}
        engine = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # or Ctrl-C would reach the engine too, which does not wait for its ranks
            preexec_fn=Prepare(signal.SIGTERM),
        )
        ranks = Ranks(listener)
        ranks.read(engine.stdout, 1)
        ranks.read(engine.stderr, 2)
        stopped_by = watch(engine, ranks, SIGNALS - ignored, forwards, grace_seconds)
        kill_children()
    return 128 + stopped_by if stopped_by else ranks.failure or exit_status(engine.returncode)


def watch(engine: subprocess.Popen, ranks: "Ranks", signals: set, forwards: bool, grace_seconds: int) -> int:
    """Wait until the engine has ended and all output is printed; return the signal that stopped the job, or 0."""
    stopped_by, deadline = 0, float("inf")
    while engine.poll() is None or (ranks.sources and time.monotonic() < deadline + 1):
        arrived = signal.sigtimedwait(signals, 0.1)
        if arrived and stopped_by:
            deadline = 0
        elif arrived:
            stopped_by = signal.SIGINT if arrived.si_signo == signal.SIGINT else signal.SIGTERM
            deadline = min(deadline, time.monotonic() + grace_seconds + SECONDS_TO_END)
            ranks.stop(engine, stopped_by, forwards)
        elif not stopped_by and (ranks.failure or engine.returncode is not None):
            deadline = min(deadline, time.monotonic() + SECONDS_TO_END)
        if time.monotonic() > deadline:
            engine.kill()
            kill_children()
    return stopped_by


class Ranks:
    """The ranks of this node and what they and the engine print; a thread reads each output.

    Attributes:
        failure: the exit status of the first rank that failed, or 0.
        sources: how many outputs and connections are not at their end.
    """

    def __init__(self, listener: socket.socket):
        self.failure, self.sources = 0, 0
        self.processes: dict[socket.socket, int] = {}  # the process ids of rank.py
        self.stopped_by = 0
        self.mistakes: dict[bytes, int] = {}  # a user's mistake: the rank that reported it first
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        """Connect ranks: each gets a pipe for each of its outputs, and will send its exit status if it fails."""
        while True:
            link, _ = listener.accept()
            process, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user == os.getuid():
                with self.lock:
                    self.processes[link] = process
                    if self.stopped_by:
                        os.kill(process, ASK[self.stopped_by])
                threading.Thread(target=self.connect, args=(link,), daemon=True).start()

    def connect(self, link: socket.socket) -> None:
        with self.lock:
            self.sources += 1
        rank = int(link.recv(20))
        pipes = os.pipe(), os.pipe()
        for target, (reader, _) in enumerate(pipes, start=1):
            self.read(open(reader, "rb"), target, rank)
        socket.send_fds(link, [b"."], [writer for _, writer in pipes])
        for _, writer in pipes:
            os.close(writer)
        status = int(link.recv(20) or 0)
        with self.lock:
            self.failure = self.failure or status
            self.sources -= 1
            del self.processes[link]

    def stop(self, engine: subprocess.Popen, number: int, forwards: bool) -> None:
        """Send all ranks a signal; if there are none yet, end the engine."""
        with self.lock:
            self.stopped_by = number
            if forwards:
                engine.send_signal(ASK[number])
            elif not self.processes:
                engine.terminate()
            else:
                for process in self.processes.values():
                    os.kill(process, ASK[number])

    def read(self, output, target: int, rank: int | None = None) -> None:
        """Print the lines of a rank's output, or with None of the engine's, in a thread."""
        with self.lock:
            self.sources += 1
        threading.Thread(target=self.print_lines, args=(output, target, rank), daemon=True).start()

    def print_lines(self, output, target: int, rank: int | None) -> None:
        for line in output:
            source, text = split_mark(line) if rank is None else (rank, line)
            text = text.rstrip(b"\r\n").rpartition(b"\r")[2] + b"\n"  # of a progress bar what it showed last
            with self.lock:
                if self.is_news(text, source):
                    print_line(target, b"[rank %d] " % source + text if source else text)
        with self.lock:
            self.sources -= 1

    def is_news(self, line: bytes, rank: int | None) -> bool:
        """Return False for what an engine reports at length after its rank, and for a mistake that another rank printed."""
        if rank is None:
            return not self.failure
        return not MISTAKE.fullmatch(line) or self.mistakes.setdefault(line, rank) == rank


def split_mark(line: bytes) -> tuple[int | None, bytes]:
    r"""Return the rank on another node that OpenMPI has marked a line with, and the line without that mark.

    >>> split_mark(b"[prterun-1@1,3]<stderr>: text\n"), split_mark(b"of mpirun\n")
    ((3, b'text\n'), (None, b'of mpirun\n'))
    """
    mark = MPI_MARK.match(line)
    return (int(mark[1]), line[mark.end() :]) if mark else (None, line)


def print_line(target: int, line: bytes) -> None:
    try:
        write_all(target, line)
    except OSError:  # `| head` has read enough: a script on its own would end too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), target)
        os.kill(os.getpid(), signal.SIGTERM)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
