"""Batches of features, padded."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from qa.windows import MODEL_INPUTS


LABELS = ("start_positions", "end_positions")


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

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(feature["input_ids"]) for feature in features]
        bucket = max(feature.get("width", 0) for feature in features)
        width = bucket or self.length or -(-max(lengths) // self.multiple_of) * self.multiple_of
        padding = (self.tokenizer.pad_token_id, 0, self.tokenizer.pad_token_type_id)
        batch = {}
        for name, value in zip(MODEL_INPUTS, padding):
            if name in features[0]:
                table = np.full((len(features), width), value, dtype=np.int64)
                for row, feature, length in zip(table, features, lengths):
                    row[:length] = feature[name]
                batch[name] = torch.from_numpy(table)
        return batch | outcomes(features)


def outcomes(features: list[dict]) -> dict[str, torch.Tensor]:
    """Return the entries of a batch that have one number for each feature."""
    batch = {
        name: torch.tensor([feature[name] for feature in features], dtype=torch.int64)
        for name in (*LABELS, "cls_index")
        if name in features[0]
    }
    if "cls_index" in features[0]:
        batch["lengths"] = torch.tensor([len(feature["input_ids"]) for feature in features])
    return batch
