"""Whether a run can write to the folders that its flags name, and whether there is room for its checkpoints."""

import math
import os
import shutil
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qa.buckets import train_group
from qa.errors import UserError, short
from qa.upstream import IS_RANK_0


FOLDERS = {"output_dir": True, "logging_dir": True, "cache_dir": False}  # flag: whether every run writes to it
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; Linux takes 4096, and files in the folder have names too
# Tensors of the size of a parameter that an optimizer keeps for it; others keep something between.
STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "adamw_torch": 2, "adamw_torch_fused": 2}


def folder_problems(values) -> list[str]:
    """Return why the folders of the flags cannot be written to, as far as it shows without writing.

    Args:
        values: the values of all flags, as a namespace.
    """
    given = {flag: getattr(values, flag, None) for flag in FOLDERS}
    return [
        f"--{flag}{' ' if folder else ''}{short_path(folder)} {problem}"
        for flag, folder in given.items()
        if folder is not None and (problem := why_no_folder(folder, FOLDERS[flag] and IS_RANK_0)) is not None
    ]


def short_path(folder: str) -> str:
    return folder if len(folder) <= 200 and folder.isprintable() else short(folder)


def why_no_folder(folder: str, writes: bool) -> str | None:
    """Return why there is no such folder and can be none, None where there is or can be one.

    Args:
        writes: also return why nothing can be written to it.
    """
    if not folder.strip():
        return "is empty; name a folder"
    if "\0" in folder:
        return "holds a null character; name a folder"
    place = Path(os.path.expanduser(folder)).absolute()
    if max(len(os.fsencode(part)) for part in place.parts) > LONGEST_NAME or len(os.fsencode(place)) > LONGEST_PATH:
        return f"is too long: a name has {LONGEST_NAME} bytes at most, a path {LONGEST_PATH}; shorten it"
    there = nearest_existing(place)
    if not there.is_dir():
        return (
            "is a file; name a folder" if there == place else f"is below {there}, which is a file; name another folder"
        )
    if os.path.islink(place) and not place.exists():
        return "is a link to a folder that does not exist; name a folder"
    if writes and not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return f"cannot be written to: {there} is read-only for this user; name another folder"
    return None


def nearest_existing(place: Path) -> Path:
    """Return a path, or the nearest of the folders that it is in, that exists."""
    return next(path for path in (place, *place.parents) if os.path.exists(path))


# ---------------------------------------------------------------------------------------------------------------------
# Room


def check_room(model: torch.nn.Module, features: dict, training_args) -> None:
    """Check that the disk has room for the model and the checkpoints that a run keeps at the same time.

    Its other files are not counted. The checkpoints that are there already take no more room.

    Raises:
        UserError: with the bytes that are needed and free.
    """
    if not training_args.do_train or not IS_RANK_0:
        return
    number = checkpoints_kept(len(features["train"]), training_args)
    folder = Path(training_args.output_dir).absolute()
    checkpoint = checkpoint_bytes(model, training_args)
    needed = weight_bytes(model) + number * checkpoint - bytes_of_checkpoints(folder)
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free:
        raise UserError(
            f"--output_dir {folder}: the model and {number:,} checkpoints of {size(checkpoint)} need {size(needed)}, but "
            f"{size(free)} are free; keep fewer checkpoints (--save_total_limit), or name a folder on another disk"
        )


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's file, in single precision."""
    return sum(4 * weight.numel() for weight in model.parameters())


def checkpoint_bytes(model: torch.nn.Module, training_args) -> int:
    """Return the bytes of a checkpoint at least: weights and what the optimizer keeps for each of them."""
    optimizer = str(getattr(training_args.optim, "value", training_args.optim))
    states = 0 if training_args.save_only_model else STATES.get(optimizer, 0)
    return (1 + states) * weight_bytes(model)


def checkpoints_kept(number: int, training_args) -> int:
    """Return how many checkpoints a training on N features has at the same time: a new one is written before one goes.

    A training that may end earlier has those of its shortest run.
    """
    group = train_group(training_args) * training_args.gradient_accumulation_steps
    epoch = max(1, number // group)  # in steps
    steps = training_args.max_steps if training_args.max_steps > 0 else training_args.num_train_epochs * epoch
    strategy, every = training_args.save_strategy, training_args.save_steps
    written = {
        "no": 0,
        "epoch": math.ceil(steps / epoch),
        "steps": math.ceil(1 / every if every < 1 else steps / every),
    }.get(str(getattr(strategy, "value", strategy)), 1)
    if training_args.max_train_minutes is not None:
        written = min(written, 1)
    if training_args.early_stopping_patience is not None:
        written = min(written, training_args.early_stopping_patience + 1)
    return min(written, (training_args.save_total_limit or written) + 1)


def bytes_of_checkpoints(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/*") if path.is_file())


def size(number: int) -> str:
    """Return a number of bytes for a person.

    >>> size(250_000_000), size(3 * 10**12)
    ('0.2 GB', '3,000.0 GB')
    """
    return f"{number / 1e9:,.1f} GB"
