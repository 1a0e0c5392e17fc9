"""Length buckets: to which few lengths features are padded, and in which order they are batched.

A Gaudi compiles a graph for every shape of its input, so features are padded to one length and half of what it computes
is padding. With `--length_buckets 160 256 384` each batch holds features of one bucket, padded to its boundary: three
shapes, and little padding.

Every bucket but the longest holds a multiple of a *group*, the features that one step takes on all ranks: what is left over,
its longest features, moves to the next bucket. So every rank of a step has the same shape, and no batch is shorter than the
others but, in the longest bucket, the last one, which is filled up. A group of each bucket comes first, the longest before
the others. Which bucket a feature is in does not change during a run; its batch does, with every epoch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from qa.errors import UserError


logger = logging.getLogger(__name__)

DEFAULT_SHAPES = 4  # of `--length_buckets auto`
AUTO_MULTIPLE = 8  # boundaries that `auto` chooses are multiples of it, as matrix units like them


def read_buckets(words: Sequence[str]) -> list[int] | int:
    """The value of `--length_buckets`: boundaries, or for `auto` how many to choose.

    Args:
        words: as given, `["160", "256", "384"]`, `["auto"]` or `["auto", "6"]`.

    Raises:
        UserError: anything else, or boundaries that do not rise.
    """
    auto = words[0] == "auto" and len(words) <= 2
    numbers = [int(word) if word.isdecimal() else 0 for word in words[auto:]]
    if not all(numbers):
        raise UserError(
            f"--length_buckets {' '.join(words)}: give boundaries in tokens, as in `160 256 384`, or `auto`, or "
            "`auto 6` for six of them"
        )
    if auto:
        return numbers[0] if numbers else DEFAULT_SHAPES
    if numbers != sorted(set(numbers)):
        raise UserError(f"--length_buckets {' '.join(words)}: boundaries must rise")
    return numbers


def choose_boundaries(lengths: np.ndarray, number: int, longest: int) -> list[int]:
    """At most `number` boundaries, the last one `longest`, for which the padded tokens of all features are fewest.

    Exact, by dynamic programming over the multiples of `AUTO_MULTIPLE`: the best cost of k buckets that end at a boundary
    is the least, over the boundaries before it, of the best cost of k - 1 buckets there and that of the bucket between.
    """
    ends = np.array([*range(AUTO_MULTIPLE, longest, AUTO_MULTIPLE), longest])
    up_to = np.searchsorted(np.sort(lengths), ends, side="right")
    between = (up_to[None, :] - up_to[:, None]) * ends.astype(float)  # cost of the bucket behind a row, up to a column
    between[np.tril_indices(len(ends))] = np.inf
    cost, before = up_to * ends.astype(float), []
    for _ in range(min(number, len(ends)) - 1):
        ways = cost[:, None] + between
        ways[np.diag_indices(len(ends))] = cost  # one bucket fewer may do as well
        before.append(ways.argmin(axis=0))
        cost = ways.min(axis=0)
    chosen = [len(ends) - 1]
    for row in reversed(before):
        chosen.append(int(row[chosen[-1]]))
    boundaries = np.unique(ends[chosen])
    filled = np.diff(np.searchsorted(np.sort(lengths), boundaries, side="right"), prepend=0) > 0
    return boundaries[filled | (boundaries == longest)].tolist()


def set_widths(features: dict, words: Sequence[str] | None, longest: int, args) -> None:
    """Gives the features of each split the widths that `--length_buckets` asks for, and tells what that saves.

    Args:
        features: by split; `auto` goes by the lengths of the first.
        words: the value of the flag, None without it.
        longest: tokens of a feature at most: `--max_seq_length`, or less where the model takes no more.
        args: training arguments, whose batch sizes and ranks make the groups.
    """
    if words is None or not features:
        return
    lengths = {split: part.lengths() for split, part in features.items()}
    boundaries = read_buckets(words)
    if isinstance(boundaries, int):
        used = max(part.max() for part in lengths.values())
        last = min(-(-int(used) // AUTO_MULTIPLE) * AUTO_MULTIPLE, longest)
        boundaries = choose_boundaries(next(iter(lengths.values())), boundaries, last)
    else:
        boundaries = [*(boundary for boundary in boundaries if boundary < longest), longest]
    for split, part in features.items():
        part.widths = pad_widths(
            lengths[split], boundaries, train_group(args) if split == "train" else eval_group(args)
        )
        logger.info(
            f"Length buckets {', '.join(map(str, boundaries))}: {padding_share(lengths[split], part.widths):.0%} of the "
            f"{split} tokens are padding, {padding_share(lengths[split], longest):.0%} without buckets"
        )


def padding_share(lengths: np.ndarray, widths: np.ndarray | int) -> float:
    """The share of padding among all tokens of features padded to the given widths."""
    return 1 - lengths.sum() / np.broadcast_to(widths, len(lengths)).sum()


def train_group(args) -> int:
    """Features that a step takes on all ranks."""
    return args.train_batch_size * args.world_size


def eval_group(args) -> int:
    """Features that a step of evaluation takes on all ranks."""
    return args.eval_batch_size * args.world_size


def pad_widths(lengths: np.ndarray, boundaries: Sequence[int], group: int) -> np.ndarray:
    """(features,) the boundary that each feature of the given length is padded to.

    The longest features that a bucket holds beyond a multiple of `group` are padded to the next boundary. Where that leaves
    less than a group in the longest bucket, the longest group of the one before joins it: what fills the last group up
    then is each there once, and of few long features none comes many times.
    """
    widths = np.asarray(boundaries, dtype=np.int32)[np.searchsorted(boundaries, lengths)]
    for boundary, following in zip(boundaries, boundaries[1:]):
        inside = np.flatnonzero(widths == boundary)
        kept = len(inside) - len(inside) % group
        widths[inside[np.argsort(lengths[inside], kind="stable")[kept:]]] = following
    *shorter, longest = np.unique(widths)
    if shorter and (widths == longest).sum() < group:
        inside = np.flatnonzero(widths == shorter[-1])
        widths[inside[np.argsort(lengths[inside], kind="stable")[-group:]]] = longest
    return widths


def training_order(widths: np.ndarray, group: int, seed: tuple[int, ...], drop_last: bool = False) -> np.ndarray:
    """Every feature in random order, each `group` in a row of one width; the same for the same seed.

    A group of each width comes first, the longest before the others: what memory cannot hold shows in the first step, and
    behind as many steps as there are widths no graph is new. The longest bucket's last group is filled up with others of
    that bucket, a second time, or left out with `drop_last`.
    """
    draw = np.random.default_rng(seed)
    parts = []
    for width in np.unique(widths)[::-1]:
        inside = draw.permutation(np.flatnonzero(widths == width))
        left = len(inside) % group
        if left and drop_last:
            inside = inside[:-left]
        elif left:
            inside = np.concatenate([inside, np.resize(inside, group - left)])
        parts.append(inside.reshape(-1, group))
    rest = draw.permutation(np.concatenate([part[1:] for part in parts]))
    return np.concatenate([*(part[:1] for part in parts), rest]).ravel()


def evaluation_order(widths: np.ndarray, group: int) -> np.ndarray:
    """Every feature, a group of each width first as in training, the others by width.

    What fills the longest bucket's last group up stands behind everything, so that the trainer takes it away again.
    """
    order = np.argsort(widths, kind="stable")
    longest = order[widths[order] == widths.max()]
    groups = np.concatenate([order, np.resize(longest, -len(order) % group)]).reshape(-1, group)
    first = np.unique(widths[groups[:, 0]], return_index=True)[1][::-1]
    return np.concatenate([groups[first], np.delete(groups, first, axis=0)]).ravel()


class Order(torch.utils.data.Sampler):
    """Hands out `length` features in the order that `order()` gives at the beginning of an epoch."""

    def __init__(self, order: Callable[[], np.ndarray], length: int):
        self.order, self.length = order, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())
