"""The time of a run, from a few of its steps on the device: `--check --check_steps 5`.

Nothing is written: the trainer gets a temporary folder, and its answers are dropped.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import SequentialSampler, Subset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from qa.buckets import eval_group, train_group
from qa.order import evaluation_order
from qa.speed import peak_memory


# Values of flags with which a training writes, sends and prints nothing, and ends after its steps.
QUIET = {
    "save_strategy": SaveStrategy.NO,
    "eval_strategy": IntervalStrategy.NO,
    "logging_strategy": IntervalStrategy.NO,
    "report_to": [],
    "disable_tqdm": True,
    "resume_from_checkpoint": None,
}
QUIET |= dict.fromkeys(("push_to_hub", "eval_on_start", "load_best_model_at_end", "logging_first_step"), False)
QUIET |= dict.fromkeys(("metric_for_best_model", "early_stopping_patience", "max_train_minutes", "save_total_limit"))


@dataclass
class Pace:
    """Seconds of a split: of all its batches once, and of the first step of each shape, which compiles."""

    whole: float
    first_steps: float


@dataclass
class Timing:
    """The pace of each split, and the most memory of the device in bytes, None where it does not report that."""

    paces: dict[str, Pace]
    peak: int | None


def time_run(make_trainer: Callable, features: dict, training_args, number: int) -> Timing:
    """Run N steps of each shape of each split after a first one, and return what they take.

    Args:
        make_trainer: makes the run's trainer with training arguments.
        features: by split, laid out.
    """
    device = getattr(torch, training_args.device.type)
    if hasattr(device, "reset_peak_memory_stats"):
        device.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(quiet_arguments(training_args, folder))
        trainer.remove_callback(PrinterCallback)
        paces = {
            split: time_training(trainer, part, number) if split == "train" else time_evaluation(trainer, part, number)
            for split, part in features.items()
            if len(part)
        }
    return Timing(paces, peak_memory(training_args.device))


def quiet_arguments(training_args, folder: str):
    """Return training arguments with which nothing is written outside a folder."""
    quiet = copy.copy(training_args)
    for name, value in (QUIET | {"output_dir": folder, "logging_dir": str(Path(folder) / "runs")}).items():
        setattr(quiet, name, value)
    return quiet


def time_training(trainer, features, number: int) -> Pace:
    """Return the pace of an epoch, from steps in the trainer's order."""
    order, accumulated = np.array(list(trainer._get_train_sampler())), trainer.args.gradient_accumulation_steps
    kinds = groups_by_width(order, features.widths, train_group(trainer.args))
    trainer.train_dataset = Subset(features, choose(kinds, (1 + number) * accumulated))
    trainer._get_train_sampler = SequentialSampler
    trainer.args.max_steps = len(kinds) * (1 + number)
    clock = Clock(trainer.args.device)
    trainer.add_callback(clock)
    trainer.train()
    return pace_of(clock, [len(groups) / accumulated for groups in kinds])


def time_evaluation(trainer, features, number: int) -> Pace:
    """Return the pace of an evaluation, without finding and scoring answers."""
    group = eval_group(trainer.args)
    order = evaluation_order(features, trainer.args)
    order = np.arange(len(features)) if order is None else order
    kinds = groups_by_width(order, features.widths, group)
    part = Subset(features, choose(kinds, 1 + number))
    clock = Clock(trainer.args.device)
    step = trainer.prediction_step

    def timed_step(*args, **kwargs):
        result = step(*args, **kwargs)
        clock.read()
        return result

    trainer.prediction_step = timed_step
    clock.read()
    trainer.run_model(trainer.get_test_dataloader(part), part, "predict")
    trainer.prediction_step = step
    return pace_of(clock, [len(groups) for groups in kinds])


def groups_by_width(order: np.ndarray, widths: np.ndarray | None, group: int) -> list[np.ndarray]:
    """Return the features in the order of the batches, (steps, group) for each width, the longest first; the last is filled."""
    groups = np.resize(order, -(-len(order) // group) * group).reshape(-1, group)
    kinds = np.zeros(len(groups)) if widths is None else widths[groups[:, 0]]
    return [groups[kinds == kind] for kind in np.unique(kinds)[::-1]]


def choose(kinds: list[np.ndarray], number: int) -> list[int]:
    """Return the features of N steps of each kind, evenly spread over all of them."""
    spread = [groups[np.linspace(0, len(groups) - 1, number).round().astype(int)] for groups in kinds]
    return np.concatenate(spread).ravel().tolist()


class Clock(TrainerCallback):
    """The times at which the device has done a step, after that of the beginning."""

    def __init__(self, device: torch.device):
        self.device, self.times = getattr(torch, device.type), []

    def read(self) -> None:
        self.device.synchronize()
        self.times.append(time.perf_counter())

    def on_train_begin(self, *args, **kwargs):
        self.read()

    def on_step_end(self, *args, **kwargs):
        self.read()


def pace_of(clock: Clock, steps: list[float]) -> Pace:
    """Return the pace of a split with N `steps` of each kind, from the median of the steps of that kind."""
    seconds = np.diff(clock.times).reshape(len(steps), -1)
    return Pace(float(np.median(seconds[:, 1:], axis=1) @ steps), float(seconds[:, 0].sum()))
