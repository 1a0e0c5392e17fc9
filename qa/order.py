"""The order in which the features of a split are batched, as their buckets or their packing ask for it."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from qa import buckets, packing
from qa.buckets import eval_group, train_group


def training_order(features, training_args, seed: tuple[int, ...]) -> np.ndarray | None:
    """Return the order of an epoch, the same one for the same seed; None where the trainer's own will do."""
    group, drop_last = train_group(training_args), training_args.dataloader_drop_last
    if shape := getattr(features, "packing", None):
        return packing.training_order(features.lengths(), shape, group, seed, drop_last)
    widths = getattr(features, "widths", None)
    return None if widths is None else buckets.training_order(widths, group, seed, drop_last)


def evaluation_order(features, training_args) -> np.ndarray | None:
    """Return the order of an evaluation; None where it is that of the features.

    Features that fill up the last batch come last, so that the trainer drops them again.
    """
    group = eval_group(training_args)
    if shape := getattr(features, "packing", None):
        return packing.evaluation_order(features.lengths(), shape, group)
    widths = getattr(features, "widths", None)
    if widths is None and fills_evaluation(training_args):
        widths = np.zeros(len(features))
    return None if widths is None else buckets.evaluation_order(widths, group)


def fills_evaluation(training_args) -> bool:
    """Return whether the last batch of an evaluation is filled up, although features have neither buckets nor a packing.

    A Gaudi would compile another graph for a short one. With several ranks, each one knows the places of its rows in a full
    batch, however --accelerator_config shares batches out.
    """
    return training_args.dataloader_drop_last or training_args.use_habana or training_args.world_size > 1


def in_order(predictions: np.ndarray, order: np.ndarray | None, number: int) -> np.ndarray:
    """Return the predictions of N features, which were made in `order`, in the order of the features.

    >>> in_order(np.array([10, 13, 11, 12]), np.array([0, 3, 1, 2]), number=4).tolist()
    [10, 11, 12, 13]
    """
    if order is None:
        return predictions
    result = np.empty_like(predictions, shape=(number, *predictions.shape[1:]))
    result[order[:number]] = predictions[:number]
    return result


class EpochOrderSampler(torch.utils.data.Sampler):
    """Yield `length` features in the order that `order()` returns at the beginning of an epoch."""

    def __init__(self, order: Callable[[], np.ndarray], length: int):
        self.order, self.length = order, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())
