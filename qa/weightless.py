"""Models without their weights, which show within a second whether a model of any size takes a batch.

    model = build_weightless(AutoModelForQuestionAnswering, config)
    forward(model, {"input_ids": ids}, training=True)

The second line raises an error where a run would do so in its first step.
"""

import copy
import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils._pytree import tree_map
from transformers.modeling_utils import init_empty_weights, no_init_weights, set_zero3_state

from qa.errors import UserError, in_one_line
from qa.windows import MODEL_INPUTS, PACKED_INPUTS


logger = logging.getLogger(__name__)

KNOWN_CODE = {"qa", "torch", "transformers", *sys.stdlib_module_names}
VALUES_NEEDED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NeedsValues(Exception):
    """An operation whose result depends on values that a weightless tensor does not have."""


class BeyondTable(Exception):
    """A batch asks for rows past the end of an embedding table; `excess` is how many rows the table lacks."""

    def __init__(self, row: int, table: "Weightless"):
        rows = len(table)
        super().__init__(f"{table.path or 'a table of embeddings'} has {rows} rows, row {row} is asked for")
        self.excess = row - rows + 1


class Weightless(torch.Tensor):
    """A tensor on the CPU with a shape and a type, but without values.

    Operations on it compute shapes alone. Operations on tensors with values alone stay real: masks, positions and
    token types are computed as in a run, so the rows that are looked up in a table are known.
    """

    @staticmethod
    def __new__(cls, meta: torch.Tensor, path: str | None = None):
        layout = {"strides": meta.stride(), "storage_offset": meta.storage_offset(), "dtype": meta.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, meta.shape, **layout, device="cpu")

    def __init__(self, meta: torch.Tensor, path: str | None = None):
        self.meta, self.path = meta, path

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.embedding.default and isinstance(args[0], cls):
            check_rows(*args[:2])
        if VALUES_NEEDED.intersection(operation.tags) and operation is not torch.ops.aten.index.Tensor:
            raise NeedsValues(str(operation))
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = kwargs | {"device": "meta"}
        own = {}  # results that are an operand, of an operation in place, stay that operand

        def unwrapped(item):
            if not isinstance(item, cls):
                return item.to("meta") if isinstance(item, torch.Tensor) else item
            own[id(item.meta)] = item
            return item.meta

        def wrapped(item):
            if id(item) in own:
                return own[id(item)]
            return cls(item) if isinstance(item, torch.Tensor) else item

        return tree_map(wrapped, operation(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs)))


def check_rows(table: Weightless, rows: torch.Tensor) -> None:
    """Raise `BeyondTable` if the highest of the rows is past the table's end; rows without values pass."""
    if not isinstance(rows, Weightless) and rows.numel() and rows.max() >= len(table):
        raise BeyondTable(int(rows.max()), table)


def build_weightless(
    auto_class: type, config, trust_remote_code: bool = False, change: Callable | None = None
) -> torch.nn.Module:
    """Return the model that `auto_class.from_config` makes, with weightless parameters in fp32 and real buffers.

    Also under DeepSpeed ZeRO-3, where it is not partitioned.

    Args:
        change: adds parts to the model.
    """
    with torch.random.fork_rng(devices=[]), no_init_weights(), init_empty_weights(), set_zero3_state():
        model = auto_class.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code).float()
        if change is not None:
            change(model)
    model.tie_weights()  # after init_empty_weights, which would make parameters of their own
    made = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:  # a tied one stays one
                named = made.setdefault(id(parameter), Weightless(parameter.detach(), f"{path}.{name}".lstrip(".")))
                module._parameters[name] = named.requires_grad_(parameter.requires_grad)
    return model


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let Habana's kernel of attention be PyTorch's: a real one takes tensors on a card alone. Without Habana's plugin do nothing.

    The other kernels need no replacement: optimum-habana's models call them for tensors on a card alone.
    """
    habana = sys.modules.get("habana_frameworks.torch.hpex.kernels")
    if habana is None:
        yield
        return
    own = vars(habana.FusedSDPA).get("apply")  # None where it is inherited
    habana.FusedSDPA.apply = staticmethod(attend)
    try:
        yield
    finally:
        del habana.FusedSDPA.apply
        if own is not None:
            habana.FusedSDPA.apply = own


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, *settings, **more):
    """Compute attention as Habana's kernel does, whose settings beyond PyTorch's change no shape.

    Args:
        query, key, value: (batch, heads, length, size); keys and values may have fewer heads.
        attn_mask: added to the scores, (batch, 1, length or 1, length).
    """
    grouped = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        *(query, key, value, attn_mask, dropout_p, bool(is_causal)), scale=scale, enable_gqa=grouped
    )


def forward(model: torch.nn.Module, batch: dict, training: bool = False, answer_length: int = 1) -> None:
    """Run the model on a batch until it needs the values of weights.

    Args:
        batch: tensors by name; those that the model does not take are omitted, as by a trainer.
        answer_length: tokens of an answer, where the model writes one.

    Raises:
        BeyondTable: an id, a token type or a position is past the end of its table.
        Exception: the model refuses the batch, mostly for a shape.
    """
    taken = inspect.signature(model.forward).parameters
    batch = {
        name: tensor for name, tensor in batch.items() if name in (*MODEL_INPUTS, *PACKED_INPUTS) and name in taken
    }
    if model.can_generate():
        batch["decoder_input_ids"] = torch.zeros(len(batch["input_ids"]), answer_length, dtype=torch.long)
    model.train(training)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(), plain_attention():
        warnings.simplefilter("ignore")  # the run itself will warn
        try:
            model(**batch)
        except (NeedsValues, NotImplementedError):  # routing to experts, for example
            pass


def check_batches(model: torch.nn.Module, features: dict, collate: Callable, answer_length: int = 1) -> None:
    """Run the model on a batch of each shape that a run will have; in training mode for the training's features.

    Args:
        features: by split, the training's first.
        collate: makes a batch of a list of features.

    Raises:
        UserError: with one line for each shape that the model does not take.
    """
    tried, problems = set(), []
    for split, part in features.items():
        for batch in map(collate, sample_features(part)):
            length = batch["input_ids"].shape[1]
            if length not in tried:
                tried.add(length)
                problem = batch_problem(model, batch, training=split == "train", answer_length=answer_length)
                problems += [f"a batch of {length} tokens of the {split} part: {problem}"] if problem else []
    if problems:
        raise UserError(*problems)


def sample_features(features) -> list[list[dict]]:
    """Return features that make batches of the shortest and of the longest shape or, with length buckets, of each."""
    if features.packing is not None:
        return [[features[int(features.lengths().argmax())]]] if len(features) else []
    widths = features.lengths() if features.widths is None else features.widths
    first = np.unique(widths, return_index=True)[1]
    return [[features[index]] for index in (first[[0, -1]] if len(first) and features.widths is None else first)]


def batch_problem(model: torch.nn.Module, batch: dict, training: bool, answer_length: int) -> str | None:
    """Return why the model does not take a batch."""
    try:
        forward(model, batch, training, answer_length)
    except Exception as error:
        reason = f"{type(error).__name__}: {in_one_line(error)}"
        if isinstance(error, BeyondTable) or not from_other_code(error):
            return f"the model does not take it ({reason}); change its length, the tokenizer or the configuration"
        logger.warning(f"A batch could not be tried without weights: {reason}")
    return None


def from_other_code(error: Exception) -> bool:
    """Return whether an error passed through code of others, as kernels of a card, that may need real tensors."""
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return not {name.partition(".")[0] for name in modules} <= KNOWN_CODE
