"""One preparation a node: the first rank of each node reads and tokenizes, the others map its arrays into their memory.

The arrays are in a file that has no name, which the ranks open through `/proc`. It ends with the last process that holds
it, so a kill leaves nothing. Ranks that do not see each other's processes, as in containers of their own, each prepare.
"""

import contextlib
import logging
import mmap
import os
import pickle
import socket
from collections.abc import Callable, Iterator

import torch

from qa.errors import Stopped, UserError, problems_of
from qa.meeting import machine


logger = logging.getLogger(__name__)

ALIGNED = 64  # bytes; each array begins at a multiple


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
    try:
        with failing_together(training_args):
            if rank == first:
                file = SharedFile.of(function())
        files = exchange(training_args, file)
        with failing_together(training_args):
            try:
                return files[first].read()
            except (FileNotFoundError, PermissionError) as error:
                logger.warning(
                    f"Rank {rank} prepares the data too, since it cannot read that of rank {first}: {error}"
                )
                return function()
    finally:
        if file is not None:
            os.close(file.descriptor)


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


class SharedFile:
    """An object and its arrays, in a file in memory that belongs to a process.

    Attributes:
        sizes: bytes of the object without its arrays, and of each array.
    """

    def __init__(self, process: int, descriptor: int, sizes: list[int]):
        self.process, self.descriptor, self.sizes = process, descriptor, sizes

    @classmethod
    def of(cls, value) -> "SharedFile":
        """Write an object; the arrays are those of numpy within it."""
        arrays = []
        head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        parts = [memoryview(head), *(array.raw() for array in arrays)]
        descriptor = os.memfd_create("prepared")
        with open(descriptor, "wb", closefd=False) as file:
            for part in parts:
                file.write(part)
                file.write(bytes(-part.nbytes % ALIGNED))
        return cls(os.getpid(), descriptor, [part.nbytes for part in parts])

    def read(self):
        """Return the object; its arrays are the content of the file until they are changed.

        Raises:
            FileNotFoundError, PermissionError: the process of the file cannot be seen.
        """
        with open(f"/proc/{self.process}/fd/{self.descriptor}", "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        parts, begin = [], 0
        for size in self.sizes:
            parts.append(content[begin : begin + size])
            begin += size + -size % ALIGNED
        return pickle.loads(parts[0], buffers=parts[1:])
