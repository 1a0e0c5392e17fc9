"""Length buckets: the few lengths that features are padded to, and the order in which they are batched.

A Gaudi compiles a graph for every shape of its input. With one length for all features, half of the computation is
padding. With `--length_buckets 160 256 384` each batch holds features of one bucket, padded to its boundary: three
shapes, and little padding.

A *group* is the features that one step takes on all ranks. Every bucket except the longest holds whole groups: its
surplus, the longest features, moves to the next bucket. So all ranks of a step have the same shape, and only the last
batch of the longest bucket is short; it is filled up. The first groups are one of each bucket, the longest first. A
feature stays in its bucket during a run; its batch changes with every epoch.
"""

import logging
from collections.abc import Sequence

import numpy as np

from qa.errors import UserError


logger = logging.getLogger(__name__)

GAUDI_SHAPES = 4  # of `--length_buckets auto` on a Gaudi, which compiles for each
OTHER_SHAPES = 12  # of the same elsewhere, where one more costs next to nothing
AUTO_MULTIPLE = 8  # of the boundaries that `auto` chooses; matrix units prefer it


def with_number(words: Sequence[str], on_gaudi: bool) -> list[str]:
    """Return the value of `--length_buckets` with the number of boundaries that `auto` chooses on a device.

    >>> with_number(["auto"], on_gaudi=True), with_number(["auto"], on_gaudi=False), with_number(["64", "96"], on_gaudi=False)
    (['auto', '4'], ['auto', '12'], ['64', '96'])
    """
    return ["auto", str(GAUDI_SHAPES if on_gaudi else OTHER_SHAPES)] if [*words] == ["auto"] else [*words]


def read_buckets(words: Sequence[str]) -> list[int] | int:
    """Return the value of `--length_buckets`: boundaries, or for `auto` the number of them to choose.

    Args:
        words: `["160", "256", "384"]`, `["auto", "6"]`, or `["auto"]` before `with_number`.

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
        return numbers[0] if numbers else OTHER_SHAPES
    if numbers != sorted(set(numbers)):
        raise UserError(f"--length_buckets {' '.join(words)}: boundaries must increase; sort them, and give each once")
    return numbers


def choose_boundaries(lengths: np.ndarray, number: int, longest: int) -> list[int]:
    """Return at most `number` boundaries, the last one `longest`, that pad all features to the fewest tokens.

    Exact, by dynamic programming over the multiples of `AUTO_MULTIPLE` that a feature needs. The best cost of k buckets
    that end at a boundary is a minimum over the boundaries before it: the best cost of k - 1 buckets there, plus that of
    the bucket between.

        >>> choose_boundaries(np.array([10, 12, 14, 90]), 2, 96)
        [16, 96]
    """
    ends = np.union1d(np.minimum(-(-lengths // AUTO_MULTIPLE) * AUTO_MULTIPLE, longest), [longest])
    if number >= len(ends):
        return ends.tolist()
    up_to = np.searchsorted(np.sort(lengths), ends, side="right")
    cost, before = up_to * ends.astype(float), []
    for _ in range(number - 1):
        row, cost = best_before(cost, ends, up_to)
        before.append(row)
    chosen = [len(ends) - 1]
    for row in reversed(before):
        chosen.append(int(row[chosen[-1]]))
    return np.unique(ends[chosen]).tolist()


def best_before(cost: np.ndarray, ends: np.ndarray, up_to: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each boundary the best one for the bucket before its own, and the cost with both, (boundaries,) each.

    That is itself where one bucket fewer does as well. The longer the boundary, the longer the one before: the best one
    for the middle of a stretch halves both the stretch and where to search. So N boundaries take N log N steps.

    Args:
        cost: (boundaries,) the best cost of the features up to each.
        up_to: (boundaries,) the number of these features.
    """
    best, least = np.zeros(len(ends), dtype=int), np.zeros(len(ends))
    stretches = [(0, len(ends), 0, len(ends))]  # boundaries, and between which to search the one before
    while stretches:
        begin, end, low, high = stretches.pop()
        if begin == end:
            continue
        middle = (begin + end) // 2
        searched = slice(low, min(high, middle + 1))
        ways = cost[searched] + (up_to[middle] - up_to[searched]) * float(ends[middle])
        best[middle], least[middle] = low + ways.argmin(), ways.min()
        stretches += [(begin, middle, low, best[middle] + 1), (middle + 1, end, best[middle], high)]
    return best, least


def set_widths(features: dict, words: Sequence[str] | None, longest: int, training_args) -> None:
    """Set the widths of the features of each split that `--length_buckets` asks for, and log how much that saves.

    Args:
        features: by split; `auto` goes by the lengths of the first.
        words: the value of the flag, None without it.
        longest: tokens of a feature at most: `--max_seq_length`, or less where the model takes no more.
        training_args: training arguments, whose batch sizes and ranks make the groups.
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
            lengths[split], boundaries, train_group(training_args) if split == "train" else eval_group(training_args)
        )
        logger.info(
            f"Length buckets {', '.join(map(str, boundaries))}: {padding_share(lengths[split], part.widths):.0%} of the "
            f"{split} tokens are padding, {padding_share(lengths[split], longest):.0%} without buckets"
        )


def padding_share(lengths: np.ndarray, widths: np.ndarray | int) -> float:
    """Return the share of padding among all tokens of features padded to the given widths."""
    return 1 - lengths.sum() / np.broadcast_to(widths, len(lengths)).sum()


def train_group(training_args) -> int:
    """Return the number of features that a training step takes on all ranks."""
    return training_args.train_batch_size * training_args.world_size


def eval_group(training_args) -> int:
    """Return the number of features that an evaluation step takes on all ranks."""
    return training_args.eval_batch_size * training_args.world_size


def pad_widths(lengths: np.ndarray, boundaries: Sequence[int], group: int) -> np.ndarray:
    """Return (features,) the boundary that each feature of the given length is padded to.

    The surplus of a bucket beyond whole groups, its longest features, is padded to the next boundary. Where that leaves
    less than a group in the longest bucket, the longest group of the bucket before joins it. The last group is then
    filled up with different features, instead of a few long ones many times.

        >>> pad_widths(np.array([10, 12, 14, 90]), [16, 96], group=2).tolist()
        [16, 16, 96, 96]
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


def padded_widths(part, length: int | None) -> np.ndarray | None:
    """Return (features,) the tokens that each feature of a split is padded to, None where its batch decides.

    Args:
        length: that features without buckets are padded to, None where they are not.
    """
    if part.widths is not None:
        return part.widths
    return None if length is None else np.full(len(part), length)


def training_order(widths: np.ndarray, group: int, seed: tuple[int, ...], drop_last: bool = False) -> np.ndarray:
    """Return all features in random order, every `group` of them of one width; the same order for the same seed.

    A group of each width comes first, the longest before the others. So a lack of memory shows in the first step, and
    after one step for each width no graph is new. The last group of the longest bucket is filled up with other features
    of that bucket, or omitted with `drop_last`.

        >>> order = training_order(np.array([16, 16, 96, 16, 16, 96]), 2, seed=(0, 0))
        >>> np.array([16, 16, 96, 16, 16, 96])[order].tolist()
        [96, 96, 16, 16, 16, 16]
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
    """Return all features: a group of each width first, as in training, then the others by width.

    The features that fill up the last group of the longest bucket come last, so that the trainer drops them again.
    """
    order = np.argsort(widths, kind="stable")
    longest = order[widths[order] == widths.max()]
    groups = np.concatenate([order, np.resize(longest, -len(order) % group)]).reshape(-1, group)
    first = np.unique(widths[groups[:, 0]], return_index=True)[1][::-1]
    return np.concatenate([groups[first], np.delete(groups, first, axis=0)]).ravel()
