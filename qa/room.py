"""The bytes of a run's checkpoints and model on the disk, and whether there is room for them."""

import shutil
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qa.device import deepspeed_settings, zero_stage
from qa.errors import UserError
from qa.folders import nearest_existing
from qa.lora import has_adapters, is_of_adapter
from qa.steps import count_checkpoints, count_steps, name_of
from qa.upstream import IS_RANK_0


# Tensors of the size of a parameter that an optimizer keeps for it; others keep something between.
STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "adamw_torch": 2, "adamw_torch_fused": 2}


def check_room(model: torch.nn.Module, features: dict, training_args) -> None:
    """Check that the disk has room for the model and the checkpoints that a run keeps at the same time.

    Its other files are not counted. The checkpoints that are there already take no more room.

    Raises:
        UserError: with the bytes that are needed and free.
    """
    if not training_args.do_train or not IS_RANK_0:
        return
    number = checkpoints_at_once(len(features["train"]), training_args)
    folder = Path(training_args.output_dir).absolute()
    weights, states = saved_bytes(model, training_args)
    checkpoint = weights + (states or 0)
    needed = model_bytes(model, training_args) + number * checkpoint - bytes_of_checkpoints(folder)
    free = free_bytes(folder)
    if needed > free:
        raise UserError(
            f"--output_dir {folder}: the model and {number:,} checkpoints of {size(checkpoint)} need {size(needed)}, but "
            f"{size(free)} are free; keep fewer checkpoints (--save_total_limit), or name a folder on another disk"
        )


def saved_bytes(model: torch.nn.Module, training_args) -> tuple[int, int | None]:
    """Return the bytes of a checkpoint's weights on the disk, and those that it adds to resume from; None if not known.

    These are the optimizer's states. FSDP and DeepSpeed (not ZeRO-3) add the weights again, and DeepSpeed a copy in fp32.
    With adapters, the weights are those that are trained.
    """
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    saved = trained if has_adapters(model) else whole_size(model)
    weights = bytes_of_weight(training_args) * saved
    states = states_of_weight(training_args)
    if training_args.save_only_model or states is None:
        return weights, 0 if training_args.save_only_model else None
    if not training_args.deepspeed:
        return weights, states * trained + (weights if training_args.fsdp else 0)
    return weights, (states + 4) * trained + (weights if zero_stage(training_args.deepspeed) < 3 else 0)


def model_bytes(model: torch.nn.Module, training_args) -> int:
    """Return the bytes of the model that a training leaves: with --merge_lora, a whole one."""
    if not training_args.merge_lora:
        return saved_bytes(model, training_args)[0]
    return bytes_of_weight(training_args) * whole_size(model)


def whole_size(model: torch.nn.Module) -> int:
    """Return the number of values of a model, without those of adapters; tied tensors count once."""
    tensors = {
        id(tensor): tensor for name, tensor in model.state_dict(keep_vars=True).items() if not is_of_adapter(name)
    }
    return sum(tensor.numel() for tensor in tensors.values())


def bytes_of_weight(training_args) -> int:
    """Return 2 where DeepSpeed trains weights in half precision, or an evaluation has them so, else 4.

    Autocast keeps weights in fp32.
    """
    if not training_args.do_train:
        return 2 if training_args.bf16_full_eval or training_args.fp16_full_eval else 4
    if not training_args.deepspeed:
        return 4
    settings = deepspeed_settings(training_args.deepspeed)
    auto = {"bf16": training_args.bf16, "fp16": training_args.fp16}
    enabled = [settings.get(kind, {}).get("enabled") for kind in auto]
    return 2 if any(given is True or (given == "auto" and flag) for given, flag in zip(enabled, auto.values())) else 4


def states_of_weight(training_args) -> int | None:
    """Return the bytes that the optimizer keeps for a weight, None where that is not known."""
    settings = deepspeed_settings(training_args.deepspeed) if training_args.deepspeed else {}
    if "optimizer" in settings:
        return 8 if "adam" in str(settings["optimizer"].get("type")).lower() else None
    states = STATES.get(name_of(training_args.optim))
    return states if states is None else 4 * states


def checkpoints_at_once(number: int, training_args) -> int:
    """Return how many checkpoints a training on N features has at the same time: a new one is written before one goes.

    A training that may end earlier has those of its shortest run.
    """
    written = count_checkpoints(*count_steps(number, training_args), training_args)
    if training_args.max_train_minutes is not None:
        written = min(written, 1)
    if training_args.early_stopping_patience is not None:
        written = min(written, training_args.early_stopping_patience + 1)
    return min(written, (training_args.save_total_limit or written) + 1)


def bytes_of_checkpoints(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/**/*") if path.is_file())


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(nearest_existing(folder)).free


def size(number: int) -> str:
    """Return a number of bytes for a person.

    >>> size(3_100_000), size(250_000_000), size(3 * 10**12)
    ('3.1 MB', '250.0 MB', '3,000.0 GB')
    """
    return f"{number / 1e9:,.1f} GB" if number >= 10**9 else f"{number / 1e6:,.1f} MB"
