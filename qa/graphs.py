"""Graphs that `torch.compile` makes for a Gaudi: static ones, one for each shape of each kind of call.

A training has a forward and a backward for each shape, an evaluation a forward. A model that writes has two more for each
shape: of the first step of a text, and of all others.
"""

import numpy as np
import torch


# Graphs of a model for each shape, with some to spare. A training has two; an evaluation that writes answers has five: for the loss
# or the encoder's states, two for scores, two to write. All modules share PyTorch's limit, because it counts the graphs of
# `Module.__call__`.
CALLS = 8


def allow_graphs(features: dict, one_length: bool) -> None:
    """Let `torch.compile` have a graph for each shape of a run: beyond its limit PyTorch computes a shape without one.

    Args:
        features: by split, with the widths of their buckets, if there are any.
        one_length: features without buckets are padded to one length, and not each batch to that of its longest.
    """
    shapes = sum(most_shapes(part, one_length) for part in features.values())
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, CALLS * shapes)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, CALLS * shapes)


def forget_graphs() -> None:
    """Forget the graphs of earlier runs in this process, which count towards PyTorch's limit for each function."""
    torch.compiler.reset()


def most_shapes(part, one_length: bool) -> int:
    """Return how many shapes batches of a split can have, those of the answers to write included."""
    if part.widths is not None:
        return len(np.unique(part.widths))
    if one_length or part.packing is not None:
        return 1
    targets = getattr(part, "targets", None)
    return len(np.unique(part.lengths())) * (1 if targets is None else len(np.unique(np.diff(targets.splits))))


class CompiledCalls:
    """A module whose calls within a `with` block are those of compiled graphs.

    `torch.compile` of a module makes another module. This is for code that calls the module itself, as `generate` does.

    Args:
        settings: those of `torch.compile`.
    """

    def __init__(self, module: torch.nn.Module, **settings):
        self.module, self.call = module, torch.compile(module._call_impl, **settings)

    def __enter__(self) -> None:
        self.before = vars(self.module).get("_compiled_call_impl")
        self.module._compiled_call_impl = self.call

    def __exit__(self, *error) -> None:
        if self.before is None:  # even None as its value would compile the graphs again that were made without one
            del self.module._compiled_call_impl
        else:
            self.module._compiled_call_impl = self.before
