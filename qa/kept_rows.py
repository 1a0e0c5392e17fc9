"""The results of an evaluation that a rank keeps: the sum of its losses, and the rows from which answers are found.

A device computes a step while the host sorts and stores the rows of the step before. Each rank keeps its own rows, in memory
that is allocated once. They are exchanged once, at the end, and nothing on a device grows from step to step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


CHUNK = 2**28  # bytes of all ranks that are exchanged at once, which each of them receives on its device


def plain_rows(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in tensors]


@dataclass
class StepOutputs:
    """The outputs of a step of one rank that are kept.

    Args:
        loss: the mean loss of the samples that count, None where labels are not known.
        counted: the number of samples that count.
        tensors: (batch, ...) each; none if no answers are to be found.
        to_rows: turns `tensors`, once they are on the host, into the rows to keep, (batch, ...) each.
    """

    loss: torch.Tensor | None
    counted: torch.Tensor | None
    tensors: tuple[torch.Tensor, ...] = ()
    to_rows: Callable = plain_rows


class KeptRows:
    """The rows of one rank, and the sum of its losses. Outputs are read from the device one step late.

    Args:
        steps, batch: of the evaluation at most, and the samples that a step takes on this rank at most.
    """

    def __init__(self, steps: int, batch: int):
        self.steps, self.batch, self.taken, self.arrays = steps, batch, 0, []
        self.loss = np.zeros(2)  # the sum over the samples that count, and their number
        self.waiting = None

    def add(self, outputs: StepOutputs) -> None:
        """Keep the outputs of a step, and read those of the step before."""
        losses = () if outputs.loss is None else (outputs.loss, outputs.counted)
        following = start_copies((*losses, *outputs.tensors)), len(losses), outputs.to_rows
        self.take()
        self.waiting = following

    def take(self) -> None:
        """Read the outputs that wait on the device, if there are any.

        Raises:
            ValueError: there were more steps, or samples in one, than asked for.
        """
        if self.waiting is None:
            return
        (read, losses, to_rows), self.waiting = self.waiting, None
        tensors = read()
        if losses and (counted := float(tensors[1])):  # without any that counts the loss is NaN
            self.loss += float(tensors[0]) * counted, counted
        if tensors[losses:]:
            self.store(to_rows(*tensors[losses:]))
        self.taken += 1

    def store(self, pieces: list[np.ndarray]) -> None:
        if self.taken == self.steps or len(pieces[0]) > self.batch:
            raise ValueError(f"got over {self.steps} steps of {self.batch} rows")
        if not self.arrays:
            self.arrays = [np.empty((self.steps, self.batch, *part.shape[1:]), part.dtype) for part in pieces]
        for array, piece in zip(self.arrays, pieces):
            array[self.taken, : len(piece)] = piece

    def tables(self, accelerator) -> list[np.ndarray] | None:
        """Return the rows of all ranks in the order of the samples, (samples, ...) each; None on other ranks than rank 0.

        The last ones are those that fill up the last step. Every rank calls this.
        """
        tables = [of_all_ranks(array, accelerator, accelerator.is_main_process) for array in self.arrays]
        if not accelerator.is_main_process:
            return None
        return [table.swapaxes(0, 1).reshape(-1, *table.shape[3:]) for table in tables]

    def mean_loss(self, accelerator) -> float | None:
        """Return the mean loss of the samples that count on all ranks, None if none does. Every rank calls this."""
        total, counted = of_all_ranks(self.loss, accelerator, True).sum(axis=0)
        return float(total / counted) if counted else None


def start_copies(tensors: tuple[torch.Tensor, ...]) -> Callable[[], list[torch.Tensor]]:
    """Begin to copy tensors to the host; return a function that waits for the copies and returns them.

    A GPU works through its queue in order, and a copy that is queued after the next step would wait for that step.
    Elsewhere the outputs are copied on the device first, since the next replay of a graph overwrites them.
    """
    tensors = [tensor.detach() for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        copies, copied = [tensor.to("cpu", non_blocking=True) for tensor in tensors], torch.cuda.Event()
        copied.record()

        def read() -> list[torch.Tensor]:
            copied.synchronize()
            return copies

        return read
    copies = [tensor.clone() for tensor in tensors]
    return lambda: [copy.cpu() for copy in copies]


def of_all_ranks(table: np.ndarray, accelerator, wanted: bool) -> np.ndarray | None:
    """Return the arrays of all ranks, of one shape and type, (ranks, ...); None where it is not `wanted`.

    They are exchanged as bytes, which no device rounds.
    """
    if accelerator.num_processes == 1:
        return table[None]
    sent = np.ascontiguousarray(table).reshape(-1).view(np.uint8)
    found = np.empty((accelerator.num_processes, len(sent)), np.uint8) if wanted else None
    size = max(1, CHUNK // accelerator.num_processes)
    for begin in range(0, len(sent), size):
        part = slice(begin, begin + size)
        parts = accelerator.gather(torch.from_numpy(sent[part]).to(accelerator.device))
        if wanted:
            found[:, part] = parts.cpu().numpy().reshape(len(found), -1)
    return found.view(table.dtype).reshape(-1, *table.shape) if wanted else None
