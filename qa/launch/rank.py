"""Run one rank: start its script, pass signals on, report how it ended and leave no process of it.

This file is what an engine starts, once for each rank. It runs on its own, without the rest of the project:

    mpirun or torchrun
    ├─ rank.py                   rank 0
    │  └─ python script ...      in a session of its own, which signals to the engine's process groups do not reach
    │     └─ its own children, such as data loader workers
    └─ rank.py                   rank 1 ...
    guard                        one for each node, below none of these

A script directly below an engine would have no time for a checkpoint. OpenMPI 5 kills it 0.25 s after SIGTERM, which
no parameter changes, torchrun after 30 s. Both also end all ranks when the first one ends with a status other than
0: it has written its part of the checkpoint, and another rank still writes.

An engine can kill rank.py at any moment, also before rank.py has seen a signal: a second SIGTERM interrupts the wait of
OpenMPI 5 for its ranks. The kernel then kills the script, and the guard what the script has started.

    event                                       the script gets                  then
    ------------------------------------------  -------------------------------  -------------------------------------
    SIGUSR1, SIGUSR2 (launcher: stop)           SIGTERM, SIGINT                  it has --grace_seconds; exits with 0
    SIGTERM, SIGINT, SIGHUP (engine: end);      SIGTERM, with all its processes  it has 5 s, with OpenMPI 0.25 s;
    the engine was killed (kernel: SIGTERM)                                      exits with the script's status
    the time is over                            SIGKILL, with all its processes  as above
    the script has ended                        -                                kills what it started; exits with its
                                                                                 status, which the launcher gets too
    this process was killed                     SIGKILL from the kernel          the launcher kills what it started;
                                                                                 without a launcher the guard does
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


STOP = {signal.SIGUSR1: signal.SIGTERM, signal.SIGUSR2: signal.SIGINT}  # signals that mpirun forwards to all ranks
END = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
NAME = "rank.py"  # of this process, as ps -o comm and top show it
WATCHED = {*STOP, *END, signal.SIGCHLD}
SECONDS_TO_END = 5  # for a script whose job has failed
HAS_SPOKEN = {2, 75}  # statuses of a script that has printed a line itself: a user's mistake, --max_train_minutes
NAMES = {  # variables that PyTorch and DeepSpeed read: where OpenMPI or torchrun has the value
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    "LOCAL_SIZE": "LOCAL_WORLD_SIZE",
    "CROSS_RANK": "GROUP_RANK",
    "CROSS_SIZE": "GROUP_WORLD_SIZE",
}


def main() -> int:
    """Run the script that SPAWN_SCRIPT names, and return the exit status for the engine."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    die_with_parent(signal.SIGTERM)
    rename_process(NAME)
    os.environ.update({name: os.environ[source] for name, source in NAMES.items() if source in os.environ})
    os.environ["LOCAL_SIZE"] = os.environ["LOCAL_WORLD_SIZE"]
    job = os.environ["SPAWNED_BY"] = os.environ.pop("SPAWN_JOB")
    if os.environ["LOCAL_RANK"] == "0":
        start_guard(job)
    adopt_orphans()
    words, grace = json.loads(os.environ.pop("SPAWN_SCRIPT")), int(os.environ.pop("SPAWN_GRACE_SECONDS"))
    link = join_launcher()
    script = subprocess.Popen(
        [sys.executable, "-u", *words], start_new_session=True, preexec_fn=Prepare(signal.SIGKILL)
    )
    stopped, ended = watch(script, grace)
    kill_children()
    if script.returncode and not stopped and not ended:
        report(script.returncode, link)
    return 0 if stopped else exit_status(script.returncode)


def watch(script: subprocess.Popen, grace: int) -> tuple[bool, bool]:
    """Wait for the script, and return whether the launcher asked it to stop and whether the engine ended it."""
    stopped, ended, deadline = False, False, float("inf")
    while script.poll() is None:
        arrived = signal.sigtimedwait(WATCHED, max(0, min(deadline - time.monotonic(), 3600)))
        number = arrived.si_signo if arrived else 0
        if number in STOP and not stopped:
            stopped, deadline = True, time.monotonic() + grace
            script.send_signal(STOP[number])
        elif number in END and not ended:
            ended, deadline = True, time.monotonic() + SECONDS_TO_END
            os.killpg(script.pid, signal.SIGTERM)
        elif time.monotonic() > deadline:
            kill_children()
    return stopped, ended


def start_guard(job: str) -> None:
    """Start a process that kills everything of the job on this node once none of its rank.py runs here any more.

    It is no child of this process, is in a session of its own, and holds no output open, which others wait to see end.
    """
    lives, _ = os.pipe()  # At its end once this process has ended: no other process has the other side.
    child = os.fork()
    if child:
        os.close(lives)
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            guard(job, lives)
    finally:
        os._exit(0)


def guard(job: str, lives: int) -> None:
    os.setsid()
    rename_process("guard")
    os.dup2(lives, 0)
    os.closerange(1, 1024)
    os.read(0, 1)
    end_job(job)


def end_job(job: str) -> None:
    """Wait until no rank.py of a job runs on this node, then kill what it has left."""
    while NAME in processes_with(f"SPAWN_JOB={job}").values():
        time.sleep(0.2)
    while left := processes_with(f"SPAWNED_BY={job}"):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def processes_with(variable: str) -> dict[int, str]:
    """Return the ids and names of the processes that were started with an environment variable, as in `NAME=value`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{variable}\0".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "comm").read_text().rstrip("\n")
        except OSError:
            continue  # It has ended, or is another user's.
    return found


def join_launcher() -> socket.socket | None:
    """Take pipes to the launcher for standard output and error; return the socket for the exit status.

    Without a launcher on this machine the outputs stay those of the engine, and None is returned.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect("\0" + os.environ.pop("SPAWN_LINK"))
        link.send(os.environ["RANK"].encode())
        _, pipes, _, _ = socket.recv_fds(link, 1, 2)
    except (KeyError, OSError):
        return None
    for stream, pipe in enumerate(pipes, start=1):
        os.dup2(pipe, stream)
        os.close(pipe)
    return link


def report(status: int, link: socket.socket | None) -> None:
    """Print how the script failed, unless it has printed that itself, and send its exit status."""
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    try:
        if status not in HAS_SPOKEN:
            print(f"error: rank {os.environ['RANK']} on {socket.gethostname()} {how}", file=sys.stderr, flush=True)
        if link is not None:
            link.send(str(exit_status(status)).encode())
    except OSError:
        pass  # The launcher was killed.


def exit_status(returncode: int) -> int:
    """Return what a shell would: 128 and the signal's number for a process that a signal killed.

    >>> exit_status(7), exit_status(-9)
    (7, 137)
    """
    return returncode if returncode >= 0 else 128 - returncode


# Processes, also for supervisor.py; Linux only


def die_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent has ended."""
    ctypes.CDLL(None).prctl(1, number, 0, 0, 0)  # PR_SET_PDEATHSIG


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent has ended."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def rename_process(name: str) -> None:
    """Give this process another name of at most 15 bytes, as ps -o comm and top show it."""
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME


class Prepare:
    """Run in a new process before its program starts: it dies with its parent, and gets signals as usual."""

    def __init__(self, number: int):
        self.number, self.parent = number, os.getpid()

    def __call__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Jobs in the background of a shell script ignore it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        die_with_parent(self.number)
        if os.getppid() != self.parent:  # It ended before the kernel was asked.
            os._exit(128 + self.number)


def kill_children(seconds: float = 5) -> None:
    """Kill every process below this one, which has to adopt orphans; give up on those that the kernel does not end."""
    give_up = time.monotonic() + seconds
    while (children := living_children()) and time.monotonic() < give_up:
        for child in children:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def living_children() -> list[int]:
    """Return the direct children of this process that have not ended (their ids stay theirs until they are waited for)."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # It has ended.
        if int(parent) == os.getpid() and state != "Z":
            children.append(int(path.parent.name))
    return children


if __name__ == "__main__":
    sys.exit(main())
