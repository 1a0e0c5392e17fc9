"""Data loader workers on a Gaudi: a server process starts them, and features reach them in memory that all share.

A process that holds a card, or the host's network cards, must not be forked: its workers hang
(https://github.com/huggingface/optimum-habana/pull/1721). optimum-habana 1.21.2 starts new ones from the ninth rank on alone,
each of which imports the libraries again, and gets a copy of all features: 100 MB of SQuAD.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd, ForkingPickler
from pathlib import Path

from qa.features import Features
from qa.shared import SharedFile


PRELOADED = ["qa.stages", "qa.seq2seq", "utils_qa"]  # the server imports them once, for all workers
ROOT = Path(__file__).resolve().parent.parent


class ServedWorkers:
    """Mixin for a trainer: on a Gaudi its data loaders' workers are children of a server that holds no card."""

    def _get_dataloader(self, dataset, *args, **kwargs):
        if not self.args.use_habana or not self.args.dataloader_num_workers:
            return super()._get_dataloader(dataset, *args, **kwargs)
        start_server()
        if isinstance(dataset, Features):
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


def share(features: Features) -> None:
    """Move features into a file in memory, unless that of a rank holds them; let workers be handed the file alone."""
    if features.shared is None:
        vars(features).update(vars(SharedFile.of(features).read()))
    ForkingPickler.register(type(features), hand_over)


def hand_over(features: Features) -> tuple:
    """Return how a new process gets features."""
    return receive, (DupFd(features.shared.descriptor), features.shared.sizes)


def receive(descriptor, sizes: list[int]) -> Features:
    """Return the features that a worker is handed."""
    return SharedFile(descriptor.detach(), sizes).read()
