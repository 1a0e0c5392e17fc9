"""The times in the log and the results: first steps, steady state and pauses, each on its own.

The first `--throughput_warmup_steps` steps compile and fill caches. The time per step shows after them, and without the
pauses for evaluation and saving. Reading a number from the device waits for all the work queued on it, so the clock is
read after such a number.
"""

import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from qa.buckets import padding_share
from qa.first_steps import FirstSteps


STEPS_BETWEEN_READS = 1000


@dataclass
class Mark:
    """How far the training of one rank has come at a point in time."""

    time: float
    updates: int  # of the weights
    samples: int
    tokens: int  # of the input, padding included
    real: int  # without padding
    paused: float  # seconds spent in evaluation and saving


class TrainingSpeed:
    """Mixin for a trainer: adds the speed to the entries of the training's log, and to the metrics that `train` returns.

    Attributes:
        paused: seconds of each evaluation and of each checkpoint in this training.
        trained_shapes, evaluated_shapes: the first steps of shapes in training, and in all evaluations and predictions.
    """

    paused = {"evaluation": [], "saving": []}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.trained_shapes = FirstSteps(self.args.device)
        self.evaluated_shapes = FirstSteps(self.args.device)

    def _inner_training_loop(self, *args, **kwargs):
        """Train; --auto_find_batch_size calls this for each batch size that it tries."""
        self.now, self.marks, self.real, self.steps = Mark(0, 0, 0, 0, 0, 0), [], [], 0
        self.paused, self.logged = {"evaluation": [], "saving": []}, None
        self.trained_shapes = FirstSteps(self.args.device, self.seconds_paused)
        return super()._inner_training_loop(*args, **kwargs)

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Log as the base does, with the speed: of the last steps, or in the training's own metrics of all of it."""
        if "train_runtime" in logs:
            self.trained_shapes.end()
            self.mark()
            logs.update(self.training_speed())
        elif "loss" in logs:
            logs.update(self.recent_speed() | gpu_memory(self.args.device))
        super().log(logs, *args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        warmup = self.args.throughput_warmup_steps * self.args.gradient_accumulation_steps
        if self.steps in (0, warmup):
            self.mark()
        self.trained_shapes.begin_step(inputs)
        self.steps += 1
        self.now.samples += len(inputs.get("places", inputs["input_ids"]))
        self.now.tokens += inputs["input_ids"].numel()
        # Added up on the host: on a Gaudi, operations before a step belong to its graph, which must not change.
        self.real.append(real_tokens(inputs))
        if self.steps % STEPS_BETWEEN_READS == 0:
            self.read_device()
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        self.evaluated_shapes.begin_step(inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def run_model(self, *args, **kwargs):
        output = super().run_model(*args, **kwargs)
        self.evaluated_shapes.end()
        return output

    def evaluate(self, *args, **kwargs) -> dict:
        with self.pause("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self.pause("saving"):
            return super()._save_checkpoint(*args, **kwargs)

    def _load_best_model(self):
        with self.pause("saving"):
            return super()._load_best_model()

    @contextmanager
    def pause(self, name: str):
        """Leave the time within out of the training's speed, while there is a training."""
        if not self.is_in_train:
            yield
            return
        self.read_device()
        start = time.time()
        yield
        self.paused[name].append(time.time() - start)

    def read_device(self) -> None:
        self.now.real += sum(map(int, self.real))
        self.real = []

    def mark(self) -> None:
        self.marks.append(self.progress())

    def progress(self) -> Mark:
        """Return how far the training has come, once the device has done its work."""
        self.read_device()
        paused, now = self.seconds_paused(), self.now
        return Mark(time.time(), self.state.global_step, now.samples, now.tokens, now.real, paused)

    def seconds_paused(self) -> float:
        return sum(map(sum, self.paused.values()))

    def recent_speed(self) -> dict[str, float]:
        """Return speed and padding of all ranks since the last entry of the log; the first one includes the first steps.

        The loss of the entry has just been read from the device, and exchanged between the ranks.
        """
        last, self.logged = self.logged or self.marks[0], self.progress()
        samples, real, tokens = self.counts_of_ranks(last, self.logged)
        seconds = max(self.logged.time - last.time - self.logged.paused + last.paused, 1e-9)
        return {
            "samples_per_second": round(samples / seconds, 3),
            "tokens_per_second": round(real / seconds, 1),
            "padding_share": round(1 - real / tokens, 4),
        }

    def counts_of_ranks(self, first: Mark, last: Mark) -> list[float]:
        """Return samples, tokens without padding and tokens of all ranks between two marks."""
        counts = [last.samples - first.samples, last.real - first.real, last.tokens - first.tokens]
        row = torch.tensor(counts, dtype=torch.float32, device=self.args.device)
        return counts if self.args.world_size == 1 else self.accelerator.reduce(row, "sum").tolist()

    def training_speed(self) -> dict[str, float]:
        """Return the metrics of a finished training over all ranks; the rates leave out the warm-up."""
        if len(self.marks) < 2:  # resumed at its end
            return {}
        first, last = self.marks[0], self.marks[-1]
        warm = self.marks[-2]
        samples, real, _ = self.counts_of_ranks(warm, last)
        _, all_real, all_tokens = self.counts_of_ranks(first, last)
        seconds = max(last.time - warm.time, 1e-9)
        steady = max(seconds - last.paused + warm.paused, 1e-9)
        metrics = {
            "train_steady_samples_per_second": round(samples / steady, 3),
            "train_tokens_per_second": round(real / steady, 1),
            "train_padding_share": round(1 - all_real / all_tokens, 4),
        }
        metrics |= {f"train_{name}_runtime": round(sum(seconds), 4) for name, seconds in self.paused.items()}
        if warm is not first:
            metrics["train_first_steps_runtime"] = round(warm.time - first.time - warm.paused, 4)
        if warm is not first or self.args.adjust_throughput:
            seconds = steady if self.args.adjust_throughput else seconds  # as GaudiTrainer counts
            metrics["train_samples_per_second"] = round(samples / seconds, 3)
            metrics["train_steps_per_second"] = round((last.updates - warm.updates) / seconds, 3)
        return metrics


def real_tokens(inputs: dict) -> int | torch.Tensor:
    """Return the number of tokens of a batch that are no padding, maybe on the device."""
    if "segments" in inputs:
        return (inputs["segments"] > 0).sum()
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else mask.sum()


def gpu_memory(device: torch.device) -> dict[str, float]:
    """Return the GB of a GPU's memory in use, under the names that optimum-habana logs for a Gaudi; none of other devices."""
    if device.type != "cuda":
        return {}
    counts = {
        "memory_allocated": torch.cuda.memory_allocated(device),
        "max_memory_allocated": torch.cuda.max_memory_allocated(device),
        "total_memory_available": torch.cuda.get_device_properties(device).total_memory,
    }
    return {f"{name} (GB)": round(count / 1e9, 2) for name, count in counts.items()}


def evaluation_speed(prefix: str, start: float, begun: list[float], warmup: int, samples: int, batch: int) -> dict:
    """Return runtime in seconds, samples and steps per second; the rates leave out the first `warmup` steps.

    Args:
        start, begun: the times when the evaluation and each of its steps began.
        samples, batch: the number of samples, and how many a step takes on all ranks.
    """
    end = time.time()
    if not 0 < warmup < len(begun):
        warmup = 0
    warm = begun[warmup] if warmup else start
    seconds = max(end - warm, 1e-9)
    rates = {"samples": samples - warmup * batch, "steps": len(begun) - warmup}
    metrics = {f"{prefix}_{name}_per_second": round(count / seconds, 3) for name, count in rates.items()}
    first_steps = {f"{prefix}_first_steps_runtime": round(warm - start, 4)} if warmup else {}
    return {f"{prefix}_runtime": round(end - start, 4)} | metrics | first_steps


def evaluation_resources(trainer) -> dict[str, float]:
    """Return the share of padding in an evaluation, and the most memory in GB that the process and its device have used."""
    features, collator, batch = trainer.eval_dataset, trainer.data_collator, trainer.args.eval_batch_size
    lengths, widths = features.lengths(), features.widths
    if features.packing is not None:
        widths = features.packing.tokens_of_feature()
    elif widths is None:
        longest = np.maximum.reduceat(lengths, np.arange(0, len(lengths), batch)).repeat(batch)[: len(lengths)]
        widths = collator.length or longest
    unit = 1 if sys.platform == "darwin" else 1024  # of the kernel's count, in bytes
    memory = {"host_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if (used := peak_memory(trainer.args.device)) is not None:
        memory["device_memory"] = used / 1e9
    return {"eval_padding_share": float(padding_share(lengths, widths))} | memory


def peak_memory(device: torch.device) -> int | None:
    """Return the most memory in bytes that a device has used, None where it does not count that."""
    module = getattr(torch, device.type)
    return module.max_memory_allocated() if hasattr(module, "max_memory_allocated") else None
