"""How many steps, evaluations and checkpoints a training has, and which shapes its batches have.

Counted from flags and numbers of features, as the trainer of transformers 4.55.4 and accelerate 1.10.1 count.
"""

import math

import numpy as np

from qa.buckets import train_group
from qa.device import deepspeed_settings


WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")  # schedules that ignore it


def name_of(value) -> str:
    """Return the text of a flag's value that may be a member of an enumeration."""
    return str(getattr(value, "value", value))


def count_steps(number: int, training_args) -> tuple[int, int]:
    """Return the steps of an epoch and of the whole training on N features; a step is an update of the weights."""
    rounded = math.floor if training_args.dataloader_drop_last else math.ceil
    batches = rounded(number / train_group(training_args))
    epoch = max(1, math.ceil(batches / training_args.gradient_accumulation_steps))
    given = training_args.max_steps
    return epoch, given if given > 0 else math.ceil(training_args.num_train_epochs * epoch)


def warmup_steps(training_args, total: int) -> int:
    """Return the steps over which the learning rate rises; a schedule in DeepSpeed's file has its own number."""
    schedule = deepspeed_settings(training_args.deepspeed).get("scheduler", {}) if training_args.deepspeed else {}
    given = schedule.get("params", {}).get("warmup_num_steps", "auto")
    if given != "auto":
        return int(given)
    return 0 if training_args.lr_scheduler_type in WITHOUT_WARMUP else training_args.get_warmup_steps(total)


def count_evaluations(epoch: int, total: int, training_args) -> int:
    """Return how many evaluations the steps of a training have, without the one of --do_eval after it."""
    return int(training_args.eval_on_start) + len(evaluation_steps(epoch, total, training_args))


def count_checkpoints(epoch: int, total: int, training_args) -> int:
    """Return how many checkpoints the steps of a training write; at least one that compares evaluations."""
    compares = name_of(training_args.save_strategy) == "best"
    return int(compares) + len(checkpoint_steps(epoch, total, training_args))


def evaluation_steps(epoch: int, total: int, training_args) -> list[int]:
    """Return the steps after which a training evaluates."""
    strategy, delay = name_of(training_args.eval_strategy), training_args.eval_delay
    if strategy == "steps":
        every = interval(training_args.eval_steps, total)
        return [step for step in range(every, total + 1, every) if step >= delay]
    return [step for step in epoch_ends(epoch, total) if step / epoch >= delay] if strategy == "epoch" else []


def checkpoint_steps(epoch: int, total: int, training_args) -> list[int]:
    """Return the steps after which a training writes a checkpoint, none where evaluations decide that."""
    strategy = name_of(training_args.save_strategy)
    if strategy == "steps":
        every = interval(training_args.save_steps, total)
        return sorted({*range(every, total + 1, every), total})
    return epoch_ends(epoch, total) if strategy == "epoch" else []


def logging_interval(total: int, training_args) -> int | None:
    """Return the steps between two entries of the log of a training; None where it logs by epochs, or not at all."""
    by_steps = name_of(training_args.logging_strategy) == "steps"
    return interval(training_args.logging_steps, total) if by_steps else None


def epoch_ends(epoch: int, total: int) -> list[int]:
    """Return the last step of each epoch.

    >>> epoch_ends(epoch=4, total=10)
    [4, 8, 10]
    """
    return [min(end, total) for end in range(epoch, total + epoch, epoch)]


def interval(given: float, total: int) -> int:
    """Return the steps between two events; a flag below 1 is a share of all steps."""
    return math.ceil(total * given) if given < 1 else int(given)


def batch_shapes(widths: np.ndarray, batch: int, ranks: int, last: str) -> dict[tuple[int, int], int]:
    """Return the shapes of the batches of one device, (batch, tokens), and how many steps have each.

    Several ranks have whole batches always.

    Args:
        widths: (features,) the tokens that each is padded to.
        batch: features of a device's batch.
        last: a batch that is not whole is "filled", "short" or "dropped".

    >>> batch_shapes(np.array([384] * 10), batch=4, ranks=1, last="short")
    {(4, 384): 2, (2, 384): 1}
    >>> batch_shapes(np.array([384] * 10 + [160] * 8), batch=4, ranks=2, last="short")
    {(4, 160): 1, (4, 384): 2}
    """
    shapes = {}
    for width, count in zip(*(values.tolist() for values in np.unique(widths, return_counts=True))):
        whole, rest = divmod(count, batch * ranks)
        short = rest if last == "short" and ranks == 1 else 0
        filled = rest > 0 and not short and last != "dropped"
        found = {(batch, width): whole + filled, (short, width): int(short > 0)}
        shapes |= {shape: steps for shape, steps in found.items() if steps}
    return shapes
