"""A run without enough memory ends in one line: where it was, how large its batch was, and what to lower.

The errors stay as they are until the script ends, because --auto_find_batch_size and callers look at them.
"""

import errno
import re
from dataclasses import dataclass


# PyTorch's allocators for GPUs and CPUs, its data loader, and Habana's bridge, whose texts name no class of error.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|not enough device memory|Allocation failed for size|"
    r"MODULE:PT_DEVMEM|Cannot allocate memory|No executable batch size found",
    re.IGNORECASE,
)
WORKER = re.compile(r"DataLoader worker.*(killed by signal|exited unexpectedly)")
SHARED_MEMORY = re.compile(r"Bus error|\(shm\)|shared memory object|</torch_\d+")


@dataclass
class Place:
    """How far the process is, for the line about it."""

    stage: str = ""  # training, evaluation or prediction; empty before the first batch
    step: int = 0  # of the stage
    batch: tuple[int, int] = (0, 0)  # features and their length
    writes: bool = False  # answers, as models that write do
    args: object = None  # the training arguments


PLACE = Place()


def note_batch(stage: str, step: int, batch: tuple[int, int], args, writes: bool = False) -> None:
    """Remember the batch that a stage computes next."""
    vars(PLACE).update(stage=stage, step=step, batch=tuple(batch), args=args, writes=writes)


class BatchNotes:
    """Mixin for a trainer: the process knows which batch it is at, should its memory not suffice."""

    def training_step(self, model, inputs, *args, **kwargs):
        note_batch("training", self.state.global_step + 1, inputs["input_ids"].shape, self.args)
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        writes = getattr(self.args, "predict_with_generate", False)
        note_batch(self.stage_name, len(self.begun) + 1, inputs["input_ids"].shape, self.args, writes)
        return super().prediction_step(model, inputs, *args, **kwargs)


def memory_problem(error: BaseException) -> str | None:
    """Return the line about an error that is a lack of memory, None for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and (WORKER.search(text) or SHARED_MEMORY.search(text)):
        return worker_problem(text)
    of_host = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if not of_host and not (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        return None
    reason = text[:160] or type(error).__name__
    if not PLACE.stage:
        return f"out of memory before the first batch ({reason}); use a smaller model, or more cards with DeepSpeed's ZeRO-3"
    features, length = PLACE.batch
    where = f"step {PLACE.step} of the {PLACE.stage}, with a batch of {features} features of {length} tokens"
    if PLACE.args.device.type != "cpu" and (of_host or "CPUAllocator" in text):
        return f"out of memory on the host in {where} ({reason}); lower --dataloader_num_workers, or free memory"
    return f"out of memory on {PLACE.args.device} in {where} ({reason}); {advice()}"


def advice() -> str:
    """Return what lowers the memory of the stage, without what the run does already."""
    args = PLACE.args
    if PLACE.stage != "training":
        return "lower --per_device_eval_batch_size" + (" or --num_beams" if PLACE.writes else "")
    ways = ["lower --per_device_train_batch_size (and raise --gradient_accumulation_steps by as much)"]
    ways += ["add --gradient_checkpointing"] * (not args.gradient_checkpointing)
    ways += ["add --auto_find_batch_size"] * (not args.auto_find_batch_size)
    return ", or ".join(ways)


def worker_problem(text: str) -> str:
    """Return the line about a data loader's worker that was killed."""
    reason = text[:160]
    if SHARED_MEMORY.search(text):
        advice = "make /dev/shm larger (docker run --shm-size or --ipc=host)"
    else:
        advice = "the system kills processes when memory is short: lower --dataloader_num_workers"
    return f"a worker of the data loader has ended ({reason}); {advice}, or use --dataloader_num_workers 0"
