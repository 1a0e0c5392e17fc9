"""Batches of features, padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from qa.features import FeatureBatch, ListedBatch


@dataclass
class PaddingCollator:
    """Pad features on the right, to their bucket's width, else to `length` tokens or to the batch's longest.

    The padding side of the tokenizer does not count. Nothing is generated here, and a causal model's padding on the
    left would attend to nothing: its logits, which count in the loss, would differ between a Gaudi and other devices.

    Returns int64 tensors: (batch, length) inputs of the model; (batch,) labels, `cls_index`, and with that `lengths`,
    the tokens of each feature. Everything else that a feature holds is omitted.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int | None = None
    multiple_of: int = 1

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch = as_batch(features)
        width = int(batch.width or self.length or -(-batch.lengths.max() // self.multiple_of) * self.multiple_of)
        padding = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        tables = {name: np.full(len(features) * width, padding.get(name, 0)) for name in batch.inputs}
        batch.write(tables, np.arange(len(features)) * width)
        inputs = {name: torch.from_numpy(table.reshape(-1, width)) for name, table in tables.items()}
        return inputs | numbers_of(batch)


def as_batch(features: Sequence[dict]) -> FeatureBatch | ListedBatch:
    return features if isinstance(features, FeatureBatch) else ListedBatch(features)


def numbers_of(batch: FeatureBatch | ListedBatch) -> dict[str, torch.Tensor]:
    """Return the entries of a batch that have one number for each feature."""
    numbers = {name: torch.from_numpy(column.astype(np.int64)) for name, column in batch.numbers.items()}
    return numbers | ({"lengths": torch.from_numpy(batch.lengths.astype(np.int64))} if "cls_index" in numbers else {})
