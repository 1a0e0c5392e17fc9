"""Where the ranks of a run meet: a store of PyTorch's at MASTER_ADDR and MASTER_PORT, before anything else waits for it.

PyTorch would wait there for half an hour without a word. Here a rank that waits says for whom, and ends with a message. The ranks
also compare what each of them was given, since variables can reach all of them alike: a card, a folder.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, Store, TCPStore, is_initialized

from qa.errors import UserError
from qa.ranks import is_this_node
from qa.upstream import use_store


FIRST_LINE_SECONDS = 10  # of waiting; the lines after it come at twice the time of the one before
POLL_SECONDS = 0.1
READERS_SECONDS = 10  # for the ranks to read a problem, before rank 0 ends, and with it the store


def meet(output_dir: str, seconds: float, on_cards: bool) -> None:
    """Wait until all ranks of the run are here; PyTorch's process group then uses the same store.

    Args:
        seconds: after which a rank stops waiting.
        on_cards: each rank takes a card of its node.

    Raises:
        UserError: ranks do not come, or what they were given does not fit together.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or is_initialized():
        return
    waiting = Waiting(int(os.environ["RANK"]), size, seconds)
    store = open_store(waiting)
    board = PrefixStore(f"meeting {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    given = {"folder": output_dir, "machine": machine(), "process": os.getpid()}
    given["card"] = card_of(os.environ) if on_cards else None
    take_part(board, waiting, json.dumps(given))
    if waiting.rank == 0:
        wait_for_the_others(board, waiting)
        everything = [json.loads(board.get(f"given to rank {rank}")) for rank in range(size)]
        board.set("problem", problem_with(everything) or "")
    problem = wait_for_rank_0(board, waiting)
    if problem:
        raise UserError(problem)
    use_store(store)


class Waiting:
    """A rank that waits: it prints a line after some seconds, and stops in the end."""

    def __init__(self, rank: int, size: int, seconds: float):
        self.rank, self.size, self.seconds = rank, size, seconds
        self.address, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.began, self.next_line = time.monotonic(), FIRST_LINE_SECONDS

    def pause(self, for_whom: Callable[[], str]) -> None:
        """Wait a moment.

        Raises:
            UserError: the time is over.
        """
        waited = time.monotonic() - self.began
        here = f"rank {self.rank} of {self.size}"
        if waited > self.seconds:
            raise UserError(
                f"{here} has waited {self.seconds:.0f} s (--ddp_timeout) for {for_whom()}; start every rank with the same "
                f"MASTER_ADDR and MASTER_PORT, where rank 0 can be reached"
            )
        if waited > self.next_line:
            print(f"{here} on {socket.gethostname()} waits for {for_whom()}", file=sys.stderr, flush=True)
            self.next_line *= 2
        time.sleep(POLL_SECONDS)

    @property
    def place(self) -> str:
        """Where the ranks meet."""
        advice = "this machine; if there are several, set MASTER_ADDR to the name of rank 0's node"
        own = f" ({advice})" if is_this_node(self.address) else ""
        return f"{self.address}{own}, port {self.port}"


def open_store(waiting: Waiting) -> TCPStore:
    """Return the store: that of this process, which is rank 0, or a connection to it; torchrun has one of its own."""
    options = {"wait_for_workers": False, "timeout": timedelta(seconds=waiting.seconds)}
    if waiting.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        options |= {"is_master": True, "master_listen_fd": listen(waiting)}
    else:
        wait_for_listener(waiting)
    return TCPStore(waiting.address, waiting.port, waiting.size, **options)


def listen(waiting: Waiting) -> int:
    """Return a socket on which the ranks reach this one: on loopback alone if the address is there.

    Whoever connects can hand objects to the store. PyTorch 2.13 listens on every address of the machine. This does too where
    the number of ranks on this node is not known: the master of a PyTorchJob has localhost, and its other ranks an address.
    """
    try:
        if is_this_node(waiting.address) and "LOCAL_WORLD_SIZE" in os.environ:
            family = socket.AF_INET6 if ":" in waiting.address else socket.AF_INET
            listener = socket.create_server((waiting.address, waiting.port), family=family, backlog=1024)
        else:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            listener = socket.create_server(("", waiting.port), family=family, backlog=1024, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"rank 0 cannot listen at {waiting.place} ({error.strerror}): another run may be there, or two processes have "
            "RANK=0; set MASTER_PORT to a free port for all ranks"
        ) from error
    return listener.detach()


def wait_for_listener(waiting: Waiting) -> None:
    """Wait until rank 0 listens, without the warnings of PyTorch's own attempts."""
    while True:
        try:
            socket.create_connection((waiting.address, waiting.port), timeout=5).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        waiting.pause(lambda: f"rank 0 at {waiting.place} ({reason})")


def take_part(board: Store, waiting: Waiting, given: str) -> None:
    """Write down what this rank was given, which names its process: the first process is the rank.

    Raises:
        UserError: another process is this rank.
    """
    if board.compare_set(f"given to rank {waiting.rank}", "", given).decode() != given:
        raise UserError(
            f"another process is rank {waiting.rank} at {waiting.place}: another run is there, or two processes have "
            f"RANK={waiting.rank}; set MASTER_PORT to a free port for all ranks"
        )


def wait_for_the_others(store: Store, waiting: Waiting) -> None:
    missing = list(range(waiting.size))
    while missing := [rank for rank in missing if not store.check([f"given to rank {rank}"])]:
        waiting.pause(
            lambda: f"rank {', '.join(map(str, missing[:8]))}{', ...' * (len(missing) > 8)} at {waiting.place}"
        )


def wait_for_rank_0(store: Store, waiting: Waiting) -> str:
    """Return the problem that rank 0 has found, or nothing."""
    try:
        while not store.check(["problem"]):
            waiting.pause(lambda: f"rank 0 at {waiting.place}, which waits for other ranks")
        problem = store.get("problem").decode()
        readers = store.add("readers", 1)
    except RuntimeError as error:
        text = f"rank {waiting.rank} of {waiting.size}: rank 0 at {waiting.place} has ended, or waits for other ranks"
        raise UserError(f"{text}; see its messages") from error
    give_up = time.monotonic() + READERS_SECONDS
    while problem and waiting.rank == 0 and readers < waiting.size and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)
        readers = store.add("readers", 0)
    return problem


# ---------------------------------------------------------------------------------------------------------------------
# Comparing the ranks


def machine() -> str:
    """Return a name that the processes of this machine, or of this container, have in common, and no others."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def card_of(environment) -> str:
    """Return the card that Habana's plugin takes for this process: HLS_MODULE_ID, else by the rank on the node.

    >>> card_of({"LOCAL_RANK": "1", "HABANA_VISIBLE_MODULES": "4,5"}), card_of({"LOCAL_RANK": "1", "HLS_MODULE_ID": "3"})
    ('5', '3')
    """
    if "HLS_MODULE_ID" in environment:
        return environment["HLS_MODULE_ID"]
    place, modules = environment["LOCAL_RANK"], environment.get("HABANA_VISIBLE_MODULES", "").split(",")
    return modules[min(int(place), len(modules) - 1)] or place


def problem_with(given: list[dict]) -> str | None:
    """Return why the ranks cannot be those of one run; `given` has what each of them was given, by rank.

    >>> problem_with([{"folder": "out", "machine": "a", "card": "3"}] * 2)
    'ranks 0 and 1 have the same card, 3, of one machine; unset HLS_MODULE_ID, and set LOCAL_RANK to 0, 1, ... on each machine'
    """
    cards = {}
    for rank, each in enumerate(given):
        if each["folder"] != given[0]["folder"]:
            return (
                f"rank 0 has --output_dir {given[0]['folder']}, rank {rank} has {each['folder']}: the ranks of a run need the "
                "same folder; to run them separately, set WORLD_SIZE=1"
            )
        if each["card"] is not None:
            other = cards.setdefault((each["machine"], each["card"]), rank)
            if other != rank:
                return (
                    f"ranks {other} and {rank} have the same card, {each['card']}, of one machine; unset HLS_MODULE_ID, and "
                    "set LOCAL_RANK to 0, 1, ... on each machine"
                )
    return None
