"""Data loader workers on a Gaudi: a server process starts them, and features reach them in memory that all share.

A process that holds a card, or the host's network cards, must not be forked: its workers hang
(https://github.com/huggingface/optimum-habana/pull/1721). optimum-habana 1.21.2 starts new ones from the ninth rank on alone,
each of which imports the libraries again, and gets a copy of all features: 100 MB of SQuAD.
"""

import mmap
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd, ForkingPickler
from pathlib import Path

import numpy as np


PRELOADED = ["qa.stages", "qa.seq2seq", "utils_qa"]  # the server imports them once, for all workers
ROOT = Path(__file__).resolve().parent.parent


class ServedWorkers:
    """Mixin for a trainer: on a Gaudi its data loaders' workers are children of a server that holds no card."""

    def _get_dataloader(self, dataset, *args, **kwargs):
        if not self.args.use_habana or not self.args.dataloader_num_workers:
            return super()._get_dataloader(dataset, *args, **kwargs)
        start_server()
        share(dataset)
        loader = super()._get_dataloader(dataset, *args, **kwargs)
        of_torch = getattr(loader, "base_dataloader", loader)  # accelerate's loaders wrap PyTorch's
        of_torch.multiprocessing_context = "forkserver"
        of_torch.worker_init_fn = partial(begin_worker, of_torch.worker_init_fn)
        return loader


def start_server() -> None:
    """Start the process from which workers are forked, unless it runs; Python 3.11 does not pass `sys.path` on to it."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def begin_worker(after: Callable | None, number: int) -> None:
    """Ignore Ctrl-C, which reaches workers too: a training that stops needs them for its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if after is not None:
        after(number)


class SharedArray(np.ndarray):
    """An array in memory of its own, which processes share. A slice of it is handed over as its content."""

    descriptor: int | None = None  # of the memory, a file without a name


def share(holder) -> None:
    """Move the arrays of features into memory that workers share; also those of their texts."""
    if not hasattr(holder, "__dict__"):
        return
    for name, value in vars(holder).items():
        if type(value) is np.ndarray and not value.dtype.hasobject:
            setattr(holder, name, shared_copy(value))
        elif type(value).__module__.startswith("qa."):
            share(value)


def shared_copy(array: np.ndarray) -> SharedArray:
    """Return a copy in shared memory.

    >>> shared_copy(np.arange(3)) + 1
    SharedArray([1, 2, 3])
    """
    descriptor = os.memfd_create("features")
    os.truncate(descriptor, max(1, array.nbytes))
    copy = map_array(descriptor, array.dtype, array.shape)
    copy[...] = array
    copy.descriptor = descriptor
    return copy


def map_array(descriptor: int, dtype: np.dtype, shape: tuple[int, ...]) -> SharedArray:
    memory = mmap.mmap(descriptor, 0)
    return np.frombuffer(memory, dtype, count=int(np.prod(shape))).reshape(shape).view(SharedArray)


def hand_over(array: SharedArray) -> tuple:
    """Return how a new process gets an array: by its memory, not by its content."""
    if array.descriptor is None:
        return np.asarray(array).__reduce__()
    return receive, (DupFd(array.descriptor), array.dtype, array.shape)


def receive(descriptor, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    number = descriptor.detach()
    try:
        return map_array(number, dtype, shape).view(np.ndarray)
    finally:
        os.close(number)  # the mapping stays


ForkingPickler.register(SharedArray, hand_over)
