"""One preparation a node: the first rank of each node reads and tokenizes, the others map its arrays into their memory.

The ranks open the file of the first one (`qa.shared`) through `/proc`. Those that do not see each other's processes, as in
containers of their own, each prepare.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator

import torch

from qa.errors import Stopped, UserError, problems_of
from qa.meeting import machine
from qa.shared import SharedFile


logger = logging.getLogger(__name__)


def once_a_node(training_args, function: Callable):
    """Return the result of a function that the first rank of each node calls; all ranks call this.

    On several ranks it is a copy, whose arrays are in memory that the ranks of a node share until they change it.

    Raises:
        UserError: that of the function, on all ranks.
        Stopped: on the other ranks, where the function of one fails otherwise; with that rank's line.
    """
    if training_args.world_size == 1:
        return function()
    if not hasattr(os, "memfd_create"):  # Linux has it; elsewhere each rank prepares
        with failing_together(training_args):
            return function()
    rank, machines = training_args.process_index, exchange(training_args, machine())
    first, file = machines.index(machines[rank]), None
    with failing_together(training_args):
        if rank == first:
            file = SharedFile.of(function())
    places = exchange(training_args, file and file.place())
    with failing_together(training_args):  # the first rank keeps its file until all have read it
        try:
            return SharedFile.at(*places[first]).read()
        except (FileNotFoundError, PermissionError) as error:
            logger.warning(f"Rank {rank} prepares the data too, since it cannot read that of rank {first}: {error}")
            return function()


def exchange(training_args, value) -> list:
    """Return the values of all ranks."""
    values = [None] * training_args.world_size
    torch.distributed.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def failing_together(training_args) -> Iterator[None]:
    """Raise an error of one rank on all ranks, once all are here; of several the first rank's."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    report = None if failure is None else (isinstance(failure, UserError), problems_of(failure), socket.gethostname())
    for rank, found in enumerate(exchange(training_args, report)):
        if found is None:
            continue
        by_user, problems, host = found
        problems = [f"rank {rank} on {host}: {problem}" if rank else problem for problem in problems]
        if by_user:
            raise UserError(*problems) from failure
        raise failure or Stopped(1, f"error: {problems[0]}")
