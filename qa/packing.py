"""Packing: whole features side by side in rows of one width, so that batches have one shape and next to no padding.

With `--pack` a batch holds as many features as without, in fewer rows: 32 random features of SQuAD, of 170 tokens in the
mean, fill 15 rows of 384. Each feature sees only itself (`qa.packed_model`).

Random batches of a size differ by a tenth in their tokens, and the fullest would decide how many rows all have. So the
features of some batches are dealt out among them: from the longest to the shortest, each batch gets one of each handful.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from qa.buckets import eval_group, padding_share, train_group
from qa.errors import UserError
from qa.features import ranges
from qa.padding import as_batch, numbers_of


logger = logging.getLogger(__name__)

BATCHES_AT_ONCE = 64  # between which features are dealt out
DEALS = 20  # of the same features, before they count as too many for the rows
TRIED = 3  # orders of all features which the rows must hold


@dataclass(frozen=True)
class Packing:
    """The shape of the batches of a split: `batch` features of a device in `rows` rows of `width` tokens."""

    batch: int
    rows: int
    width: int

    def of(self, batch: int) -> "Packing":
        """Return the packing of a batch of another size, in as many rows for each feature."""
        return Packing(batch, math.ceil(batch * self.rows / self.batch), self.width)

    def tokens_of_feature(self) -> float:
        """Return the tokens that a feature takes in the mean, with its share of the padding."""
        return self.rows * self.width / self.batch


def set_packing(features: dict, width: int, training_args) -> None:
    """Set the packing of the features of each split, one for the training and one for all evaluations, and log it.

    Args:
        features: by split.
        width: tokens of a row, the most that a feature has.

    Raises:
        UserError: one process has several GPUs, which would share out rows and features apart.
    """
    if training_args.n_gpu > 1:
        raise UserError(
            f"--pack: this process would use {training_args.n_gpu} GPUs; start a rank for each one, with gaudi_spawn.py"
        )
    find_training = partial(try_orders, drop_last=training_args.dataloader_drop_last)
    for trains, group, find in (
        (True, train_group(training_args), find_training),
        (False, eval_group(training_args), evaluation_order),
    ):
        parts = {split: part for split, part in features.items() if (split == "train") == trains and len(part)}
        batch = group // training_args.world_size
        rows = rows_needed([part.lengths() for part in parts.values()], batch, group, width, find)
        for split, part in parts.items():
            part.packing = Packing(batch, rows, width)
            logger.info(
                f"Packing: {batch} {split} features in {rows} rows of {width} tokens; "
                f"{padding_share(part.lengths(), part.packing.tokens_of_feature()):.0%} of them are padding, "
                f"{padding_share(part.lengths(), width):.0%} without packing"
            )


def rows_needed(splits: list[np.ndarray], batch: int, group: int, width: int, find: Callable) -> int:
    """Return the fewest rows with which `find` finds an order of the features of each split, whose lengths are given."""
    rows = 1
    for lengths in splits:
        filled = lengths[find(lengths, Packing(batch, batch, width), group)]  # with a row for each feature
        rows = max(rows, math.ceil(filled.sum() * batch / max(1, len(filled)) / width))
    while any(find(lengths, Packing(batch, rows, width), group) is None for lengths in splits):
        rows += 1
    return rows


def place(lengths: np.ndarray, packing: Packing) -> np.ndarray:
    """Return the row of each feature of some batches, (batches, batch), -1 where no row has room.

    Best fit: from the longest feature to the shortest, each goes where it leaves the least room.

    >>> place(np.array([[10, 50, 40, 90]]), Packing(batch=4, rows=2, width=100)).tolist()
    [[0, 1, 1, 0]]
    """
    batches = np.arange(len(lengths))
    free = np.full((len(lengths), packing.rows), packing.width)
    rows = np.full(lengths.shape, -1)
    for feature in np.argsort(-lengths, axis=1, kind="stable").T:
        length = lengths[batches, feature]
        room = free - length[:, None]
        best = np.where(room < 0, packing.width + 1, room).argmin(axis=1)
        fits = room[batches, best] >= 0
        rows[batches[fits], feature[fits]] = best[fits]
        free[batches[fits], best[fits]] -= length[fits]
    return rows


def training_order(
    lengths: np.ndarray, packing: Packing, group: int, seed: tuple[int, ...], drop_last: bool = False
) -> np.ndarray:
    """Return all features in random order, of which each batch fits its rows; the same order for the same seed.

    The last group is filled up with features that occur twice, or omitted with `drop_last`.
    """
    order = try_order(lengths, packing, group, seed, drop_last)
    if order is None:  # batches that fit, in another order
        batches = try_orders(lengths, packing, group, drop_last).reshape(-1, packing.batch)
        order = np.random.default_rng(seed).permutation(batches).ravel()
    return order


def evaluation_order(lengths: np.ndarray, packing: Packing, group: int) -> np.ndarray | None:
    """Return all features in an order of which each batch fits its rows; None where none is found.

    Repeated features, which fill up the last group, come last, so that the trainer drops them again.
    """
    surplus = len(lengths) % group
    by_length = np.argsort(lengths, kind="stable")
    evenly = by_length[np.linspace(0, len(lengths) - 1, surplus).round().astype(int)]
    others = np.setdiff1d(np.arange(len(lengths)), evenly)
    order = try_order(lengths[others], packing, group, (0,))
    draw, repeated = np.random.default_rng(0), np.resize(by_length[:1], -surplus % group)
    for _ in range(DEALS if order is not None else 0):
        last = np.concatenate([draw.permutation(evenly), repeated])
        if fits(lengths[last].reshape(-1, packing.batch), packing).all():
            return np.concatenate([others[order], last])
    return None


def try_orders(lengths: np.ndarray, packing: Packing, group: int, drop_last: bool = False) -> np.ndarray | None:
    """Return one of some orders that `try_order` finds; None unless it finds all of them."""
    first = None
    for seed in reversed(range(TRIED)):
        first = try_order(lengths, packing, group, (seed,), drop_last)
        if first is None:
            return None
    return first


def try_order(
    lengths: np.ndarray, packing: Packing, group: int, seed: tuple[int, ...], drop_last: bool = False
) -> np.ndarray | None:
    """Return a random order of all features of which each batch fits its rows; None where none is found."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(lengths))
    if drop_last:
        order = order[: len(order) // group * group]
    order = np.concatenate([order, np.resize(order, -len(order) % group)])
    batches = order.reshape(-1, packing.batch)
    for start in range(0, len(batches), BATCHES_AT_ONCE):
        part = slice(start, start + BATCHES_AT_ONCE)
        batches[part] = deal(batches[part], lengths, draw)
    for _ in range(DEALS):
        full = np.flatnonzero(~fits(lengths[batches], packing))
        if not len(full):
            return draw.permuted(batches, axis=1).ravel()
        emptiest = np.argsort(lengths[batches].sum(axis=1), kind="stable")[: 3 * len(full)]
        mixed = np.union1d(full, emptiest)
        if len(mixed) == 1:  # there is no other batch
            return None
        batches[mixed] = deal(batches[mixed], lengths, draw)
    return None


def deal(batches: np.ndarray, lengths: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return the features of some batches dealt out among them: each gets one of the longest, one of the next longest, and so on."""
    features = batches.ravel()
    alike = features[np.argsort(-lengths[features], kind="stable")].reshape(batches.shape[::-1])
    return draw.permuted(alike, axis=1).T


def fits(lengths: np.ndarray, packing: Packing) -> np.ndarray:
    """Return whether the features of each batch fit its rows, (batches,)."""
    return (place(lengths, packing) >= 0).all(axis=1)


@dataclass
class PackingCollator:
    """Pack features into the rows that their `packing` says.

    Returns int64 tensors:

    - `places`: (batch, width) where each token of a feature is among all tokens of the rows, -1 for none;
    - `input_ids`, `token_type_ids`, `position_ids`: (rows, width);
    - `segments`: (rows, width) which feature of its row a token is of, from 1; 0 for padding;
    - labels, `cls_index` and `lengths` as `qa.padding.PaddingCollator` does, (batch,).

    Args:
        first_position: of a text's first token, as the model counts.
    """

    tokenizer: PreTrainedTokenizerFast
    first_position: int = 0
    length: ClassVar[None] = None  # batches have the shape of their packing

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch = as_batch(features)
        packing: Packing = batch.packing
        starts, numbers = begin_of_each(batch.lengths, packing)
        every = ranges(starts, batch.lengths)  # places of the tokens of all features in turn
        feature = np.repeat(np.arange(len(features)), batch.lengths)
        within = ranges(np.zeros(len(features), dtype=int), batch.lengths)
        padding = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        tables = {
            name: np.full(packing.rows * packing.width, padding.get(name, 0))
            for name in dict.fromkeys([*batch.inputs, "position_ids", "segments"])
        }
        batch.write(tables, starts)
        tables["position_ids"][:] = self.first_position
        tables["position_ids"][every] += within
        tables["segments"][every] = numbers[feature]
        tables.pop("attention_mask", None)  # the segments say it
        places = np.full((len(features), packing.width), -1)
        places[feature, within] = every
        rows = {name: torch.from_numpy(table.reshape(packing.rows, packing.width)) for name, table in tables.items()}
        return {"places": torch.from_numpy(places)} | rows | numbers_of(batch)


def begin_of_each(lengths: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Return where each feature of a batch begins among all tokens of the rows, and its number within its row, from 1.

    Raises:
        ValueError: the features do not fit.

    >>> begin_of_each(np.array([10, 50, 40, 90]), Packing(batch=4, rows=2, width=100))
    (array([ 90, 100, 150,   0]), array([2, 1, 2, 1]))
    """
    (rows,) = place(lengths[None], packing)
    if rows.min() < 0:
        raise ValueError(f"{len(lengths)} features of {lengths.sum()} tokens do not fit {packing}")
    starts, segments = np.zeros(len(lengths), dtype=int), np.zeros(len(lengths), dtype=int)
    used, count = np.zeros(packing.rows, dtype=int), np.zeros(packing.rows, dtype=int)
    for index in np.argsort(-lengths, kind="stable"):
        row = rows[index]
        starts[index] = row * packing.width + used[row]
        used[row] += lengths[index]
        count[row] += 1
        segments[index] = count[row]
    return starts, segments
