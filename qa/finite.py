"""Weights that are NaN or infinite, with which nothing can be computed."""

import torch

from qa.errors import UserError


def check_weights(model, name: str) -> None:
    """Raise a UserError for a model that nothing can be computed with: weights are NaN or infinite."""
    if bad := weights_not_finite(model):
        raise UserError(
            f"--model_name_or_path {name}: {len(bad)} of its weights are NaN or infinite, the first one is {bad[0]}; name "
            "another checkpoint"
        )


def weights_not_finite(model: torch.nn.Module) -> list[str]:
    """Return the names of the weights that hold a NaN or an infinity; of those that ZeRO-3 distributes, this rank's part.

    >>> layer = torch.nn.Linear(2, 1)
    >>> layer.bias.data[0] = float("nan")
    >>> weights_not_finite(layer)
    ['bias']
    """
    weights = {name: getattr(weight, "ds_tensor", weight) for name, weight in model.named_parameters()}
    finite = torch.stack([torch.isfinite(weight).all() for weight in weights.values()])  # The device is read once.
    return [name for name, good in zip(weights, finite.tolist()) if not good]
