"""An estimate of the memory that a device needs, from one step of a model without weights.

The step runs on tensors without values, so it shows what a training keeps for its gradients, and what it needs in between.
It is the libraries' code for a CPU, and agrees with a training there. Kernels of a card may keep less, above all of
attention; its allocator takes more than it hands out.
"""

import inspect
import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qa.buckets import padded_widths
from qa.device import zero_stage
from qa.errors import in_one_line
from qa.lora import has_adapters
from qa.room import bytes_of_weight, states_of_weight
from qa.steps import name_of
from qa.upstream.gaudi import checkpoint_layers
from qa.weightless import Weightless, forward, plain_attention


logger = logging.getLogger(__name__)

MOST_POSITIONS = 2**27  # batch x length x length of a step that is tried here: its masks have values


@dataclass
class Memory:
    """Bytes on one device; `optimizer`, `activations` and `step` are None where they are not known.

    `step` is the most that a step needs: its activations, with those gradients that are there at that time. `scratch` is
    what an update of the weights needs in between.
    """

    weights: int
    gradients: int
    optimizer: int | None
    activations: int | None
    step: int | None
    scratch: int

    def total(self) -> int:
        """Return the bytes at the peak, which is in a step or in an update."""
        return self.weights + (self.optimizer or 0) + max(self.step or 0, self.gradients + self.scratch)


def estimate_memory(
    model: torch.nn.Module, features: dict, collate: Callable, training_args, answer_length: int = 1
) -> Memory:
    """Return the memory of a training or, without one, that of an evaluation without its search for answers.

    Args:
        model: without weights, see `qa.weightless`; it is changed as the flags say.
        features: by split.
        collate: makes a batch of a list of features; its `length` is the one length of all batches, or None.
        answer_length: tokens of an answer, where the model writes one.
    """
    trains = training_args.do_train
    part = features["train"] if trains else max(features.values(), key=lambda part: part.lengths().max(initial=0))
    batch = training_args.per_device_train_batch_size if trains else training_args.per_device_eval_batch_size
    weights, gradients, optimizer = parameter_bytes(model, training_args)
    prepare(model, training_args)
    dtype = autocast_type(training_args)

    def peaks(number: int) -> np.ndarray:
        step = collate(largest_batch(part, number, collate.length))
        return training_peaks(model, step, dtype) if trains else forward_peaks(model, step, dtype, answer_length)

    length = len(collate(largest_batch(part, 1, collate.length))["input_ids"][0])
    activations, step = peaks_of_batch(peaks, batch, length)
    if not trains:
        return Memory(weights, gradients=0, optimizer=0, activations=activations, step=step, scratch=0)
    if step is not None and has_lasting_gradients(training_args):
        step = activations + gradients
    elif step is not None and has_copies(training_args):
        step += gradients // 2
    largest = max((weight.numel() for weight in model.parameters() if weight.requires_grad), default=0)
    return Memory(
        weights,
        gradients,
        optimizer,
        activations,
        step,
        scratch=2 * 4 * largest,  # AdamW updates one tensor at a time, and makes two more of its size
    )


def parameter_bytes(model: torch.nn.Module, training_args) -> tuple[int, int, int | None]:
    """Return the bytes of weights, gradients and the optimizer's states on one device; None for unknown states.

    DeepSpeed keeps a copy of the weights in fp32 with the states. Its stages divide the states (1), the gradients (2) and
    the weights (3) among the ranks; FSDP divides as its options say.
    """
    every = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    width, states, ranks = bytes_of_weight(training_args), states_of_weight(training_args), training_args.world_size
    options, shares = " ".join(map(name_of, training_args.fsdp or [])), (1, 1, 1)
    if training_args.deepspeed:
        stage = zero_stage(training_args.deepspeed)
        shares, states = [ranks if stage >= least else 1 for least in (3, 2, 1)], states and states + 4
    elif "shard" in options:
        shares = (ranks if "full_shard" in options else 1, ranks, ranks)
    copies = 2 if has_copies(training_args) else 1
    optimizer = None if states is None else states * trained // shares[2]
    return width * every // shares[0], copies * width * trained // shares[1], optimizer


def has_lasting_gradients(training_args) -> bool:
    """Return whether all gradients are there during a whole step: those of earlier batches, or buffers for their shares."""
    accumulates = training_args.gradient_accumulation_steps > 1
    return bool(accumulates or training_args.deepspeed or training_args.fsdp)


def has_copies(training_args) -> bool:
    """Return whether the ranks have a second copy of the gradients, which they exchange, as DDP does."""
    return training_args.world_size > 1 and not training_args.deepspeed and not training_args.fsdp


def prepare(model: torch.nn.Module, training_args) -> None:
    """Set a model's precision and checkpointing of gradients as a run does."""
    model.config.use_cache = False
    if bytes_of_weight(training_args) == 2:
        halve(model)
    if training_args.checkpoints_layers:
        enable = checkpoint_layers if training_args.use_habana else type(model).gradient_checkpointing_enable
        enable(model, training_args.gradient_checkpointing_kwargs)
        if has_adapters(model):
            model.enable_input_require_grads()


def halve(model: torch.nn.Module) -> None:
    """Give a model without weights parameters and buffers in bf16."""
    made = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                half = made.setdefault(id(weight), Weightless(weight.meta.bfloat16(), weight.path))
                module._parameters[name] = half.requires_grad_(weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.bfloat16()


def autocast_type(training_args) -> torch.dtype | None:
    """Return the type that the operations of a run compute in under autocast, None without autocast."""
    if training_args.deepspeed or bytes_of_weight(training_args) == 2:
        return None
    return torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else None


def largest_batch(part, number: int, length: int | None) -> list[dict]:
    """Return N features for a batch of the most tokens, with padding where they can have any: masks take memory too.

    Args:
        length: that all features are padded to, None where they are not.
    """
    lengths = part.lengths()
    if part.packing is not None:  # the shortest features fit rows in which there is room for any
        return [part[int(lengths.argmin())] | {"packing": part.packing.of(number)}] * number
    widths = padded_widths(part, length)
    widths = lengths if widths is None else widths
    chosen = np.resize(np.lexsort((lengths, -widths))[:number], number)
    if number > 1:
        chosen[-1] = lengths.argmin()
    return [part[index] for index in chosen]


def peaks_of_batch(peaks: Callable[[int], np.ndarray], batch: int, length: int) -> list[int | None]:
    """Return the bytes of a step of N features; those of a large batch follow from two smaller ones, since they rise evenly.

    Args:
        peaks: returns the bytes, (2,), of a step of the number of features that it gets.

    Returns:
        Twice None where the step needs values, as the routers of experts do.
    """
    most = max(2, MOST_POSITIONS // length**2)
    try:
        if batch <= most:
            return peaks(batch).tolist()
        whole, half = peaks(most), peaks(most // 2)
        return (whole + (whole - half) * (batch - most) // (most - most // 2)).tolist()
    except Exception as error:  # the model's code, and that of its kernels
        logger.warning(f"The memory of a step is not known: {type(error).__name__}: {in_one_line(error)}")
        return [None, None]


def training_peaks(model: torch.nn.Module, batch: dict, dtype: torch.dtype | None) -> np.ndarray:
    """Return the bytes that a step of a training needs at its peaks, without weights: (2,) without and with gradients."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    model.train()
    with counting(model, batch) as live, plain_attention():
        hooks = [weight.register_post_accumulate_grad_hook(live.note_gradient) for weight in weights]
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = loss_of(model, batch)
        loss.backward()
    for hook in hooks:
        hook.remove()
    for weight in weights:
        weight.grad = None
    return np.array([live.activations, live.peak])


def loss_of(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Return the loss of a batch; that of a written text is the trainer's own, which the model does not compute."""
    taken = inspect.signature(model.forward).parameters
    inputs = {name: tensor for name, tensor in batch.items() if name in taken and name != "labels"}
    outputs = model(**inputs)
    if "labels" not in batch:
        return outputs["loss"]
    return cross_entropy(outputs["logits"].flatten(0, 1), batch["labels"].flatten())


def forward_peaks(model: torch.nn.Module, batch: dict, dtype: torch.dtype | None, answer_length: int) -> np.ndarray:
    """Return the bytes that the forward pass of an evaluation needs at its peak, without weights: (2,) equal numbers."""
    with counting(model, batch) as live, torch.autocast("cpu", dtype, enabled=dtype is not None):
        forward(model, batch, answer_length=answer_length)
    return np.array([live.activations, live.peak])


@contextmanager
def counting(model: torch.nn.Module, batch: dict) -> Iterator["LiveBytes"]:
    """Count the bytes of tensors that are made, quietly, and without effect on random numbers."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will warn
        with LiveBytes([*model.parameters(), *model.buffers(), *batch.values()]) as live:
            yield live


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that operations return, as long as anything holds them.

    `peak` is the most at once, `activations` the most without gradients of weights.
    """

    def __init__(self, uncounted: Iterable[torch.Tensor]):
        super().__init__()
        self.now = self.gradients = self.peak = self.activations = 0
        self.kept = [storage_of(tensor) for tensor in uncounted]
        self.alive = {id(storage) for storage in self.kept}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(storage_of(tensor))
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.alive:
            self.alive.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            self.activations = max(self.activations, self.now - self.gradients)
            weakref.finalize(storage, self.remove, id(storage), storage.nbytes())

    def remove(self, name: int, size: int) -> None:
        self.alive.remove(name)
        self.now -= size

    def note_gradient(self, weight: torch.Tensor) -> None:
        self.gradients += weight.grad.nbytes


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """Return the storage of a tensor; PyTorch has one object for it as long as it lives."""
    return (tensor.meta if isinstance(tensor, Weightless) else tensor).untyped_storage()
