"""The plan of a run, which `--check` prints: its steps, shapes, checkpoints and memory, as far as they show without a step.

    plan = make_plan(model, features, collate, tokenizer, training_args, ...)
    print("\\n".join(format_plan(plan)))

`model` has no weights, see `qa.weightless`.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qa.arguments import STAGES, TITLES
from qa.buckets import eval_group, padded_widths, train_group
from qa.lora import trained_parameters
from qa.memory import Memory, estimate_memory
from qa.numbers import duration
from qa.order import fills_evaluation
from qa.room import bytes_of_checkpoints, free_bytes, model_bytes, saved_bytes, size
from qa.steps import (
    batch_shapes,
    count_checkpoints,
    count_evaluations,
    count_steps,
    logging_interval,
    name_of,
    warmup_steps,
)
from qa.timing import Timing, time_run


SMALL_FILES = 40_000  # bytes of a checkpoint's configuration, arguments, state, random numbers and fingerprints


@dataclass
class Training:
    """The numbers of a training; bytes are of the disk."""

    ranks: int
    batch: int  # features of one device
    accumulated: int
    epoch_steps: int
    steps: int
    done: int  # steps before the checkpoint that it resumes from
    warmup: int
    evaluations: int
    log: str  # when it logs, and to which trackers
    checkpoints: int  # that stay
    model_bytes: int
    weight_bytes: int
    state_bytes: int | None  # of the optimizer in a checkpoint
    other_bytes: int  # of tokenizer and small files
    kept_bytes: int  # of checkpoints that are there
    free_bytes: int

    def global_batch(self) -> int:
        return self.ranks * self.batch * self.accumulated

    def checkpoint_bytes(self) -> int:
        return self.weight_bytes + (self.state_bytes or 0) + self.other_bytes

    def disk_bytes(self) -> int:
        """Return the bytes of all checkpoints and the model at the end."""
        return self.checkpoints * self.checkpoint_bytes() + self.model_bytes + self.other_bytes


@dataclass
class Part:
    """The batches of a split, each step's for one device: how many there are of each shape, (batch, tokens).

    Without a fixed shape `shapes` is None, and `lengths` the number of lengths that batches can have.
    """

    steps: int
    shapes: dict[tuple[int, int], int] | None
    lengths: int


@dataclass
class Plan:
    """The numbers of a run."""

    training: Training | None
    parts: dict[str, Part]  # by split
    parameters: int
    trainable: int
    memory: Memory


def make_plan(
    model: torch.nn.Module,
    features: dict,
    collate,
    tokenizer,
    training_args,
    checkpoint: str | None = None,
    answer_length: int = 1,
) -> Plan:
    """Return the plan of a run.

    Args:
        model: without weights; its precision and checkpointing of gradients are changed to the run's.
        features: by split, laid out.
        collate: makes a batch of a list of features; its `length` is the one length of all batches, or None.
        checkpoint: to resume from.
        answer_length: tokens of an answer, where the model writes one.
    """
    training = None
    if training_args.do_train:
        training = plan_training(model, len(features["train"]), tokenizer, training_args, checkpoint)
    trainable, parameters = trained_parameters(model)
    return Plan(
        training,
        {split: plan_part(part, split, collate.length, training_args) for split, part in features.items()},
        parameters=parameters,
        trainable=trainable,
        memory=estimate_memory(model, features, collate, training_args, answer_length),
    )


def plan_training(model: torch.nn.Module, number: int, tokenizer, training_args, checkpoint: str | None) -> Training:
    """Return the numbers of a training on N features."""
    epoch, steps = count_steps(number, training_args)
    written = count_checkpoints(epoch, steps, training_args)
    weights, states = saved_bytes(model, training_args)
    folder = Path(training_args.output_dir).absolute()
    return Training(
        ranks=training_args.world_size,
        batch=training_args.train_batch_size,
        accumulated=training_args.gradient_accumulation_steps,
        epoch_steps=epoch,
        steps=steps,
        done=0 if checkpoint is None else steps_done(Path(checkpoint)),
        warmup=warmup_steps(training_args, steps),
        evaluations=count_evaluations(epoch, steps, training_args),
        log=format_log(logging_interval(steps, training_args), training_args),
        checkpoints=min(written, training_args.save_total_limit or written),
        model_bytes=model_bytes(model, training_args),
        weight_bytes=weights,
        state_bytes=states,
        other_bytes=tokenizer_bytes(tokenizer) + SMALL_FILES,
        kept_bytes=bytes_of_checkpoints(folder),
        free_bytes=free_bytes(folder),
    )


def format_log(interval: int | None, training_args) -> str:
    """Return when a training logs as text: `every 12 steps, also to tensorboard`."""
    strategy = name_of(training_args.logging_strategy)
    every = {1: "every step", None: "never" if strategy == "no" else f"every {strategy}"}
    trackers = f", also to {', '.join(training_args.report_to)}" if training_args.report_to else ""
    return every.get(interval, f"every {interval:,} steps" if interval else "") + trackers


def steps_done(checkpoint: Path) -> int:
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]


def tokenizer_bytes(tokenizer) -> int:
    """Return the bytes of a tokenizer's files."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def plan_part(part, split: str, length: int | None, training_args) -> Part:
    """Return the batches of a split, of one epoch in training.

    Args:
        length: that all features are padded to, None where they are not.
    """
    trains, drops = split == "train", training_args.dataloader_drop_last
    group = train_group(training_args) if trains else eval_group(training_args)
    steps = len(part) // group if trains and drops else math.ceil(len(part) / group)
    if part.packing is not None:
        return Part(steps, {(part.packing.rows, part.packing.width): steps}, lengths=0)
    widths = padded_widths(part, length)
    if widths is None:
        return Part(steps, None, lengths=len(np.unique(part.lengths())))
    filled = part.widths is not None or (not trains and fills_evaluation(training_args))
    ranks = training_args.world_size
    last = "dropped" if trains and drops else "filled" if filled else "short"
    shapes = batch_shapes(widths, batch=group // ranks, ranks=ranks, last=last)
    return Part(sum(shapes.values()), shapes, lengths=0)


# ---------------------------------------------------------------------------------------------------------------------
# Lines


def report_plan(plan: Plan, features: dict, training_args, make_trainer: Callable, steps: int | None) -> None:
    """Print a plan, and the number of features of each split, as the end of `--check`; on rank 0 alone.

    Args:
        make_trainer, steps: for the time of a few steps, see `qa.timing.time_run`; None for a plan without it.
    """
    timing = None if steps is None else time_run(make_trainer, features, training_args, steps)
    rows = plan_rows(plan) + ([] if timing is None else timing_rows(plan, features, training_args, timing))
    counts = ", ".join(f"{len(part)} {split} features" for split, part in features.items())
    if training_args.process_index == 0:
        print("\n".join([*align(rows), f"checked, a run could start: {counts}"]))


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the lines of a plan as titles and texts."""
    rows = [*training_rows(plan.training)] if plan.training else []
    rows += [(f"{STAGES.get(split, split)} batches", format_part(part)) for split, part in plan.parts.items()]
    return [*rows, ("parameters", format_parameters(plan)), ("memory", format_memory(plan.memory))]


def align(rows: list[tuple[str, str]]) -> list[str]:
    """Return titles and texts as lines, the texts below each other."""
    width = max(len(title) for title, _ in rows)
    return [f"{title:<{width}}  {text}" for title, text in rows]


def training_rows(training: Training) -> list[tuple[str, str]]:
    """Return the lines of a training as titles and texts."""
    ranks = f"{training.ranks} ranks x " if training.ranks > 1 else ""
    accumulated = f" x {training.accumulated} accumulated" if training.accumulated > 1 else ""
    parts = f" ({ranks}{training.batch}{accumulated})" if ranks or accumulated else ""
    done = f", {training.done:,} of them done" if training.done else ""
    one = size(training.checkpoint_bytes())
    states = "unknown" if training.state_bytes is None else size(training.state_bytes)
    checkpoint = f" of {one} (weights {size(training.weight_bytes)}, optimizer {states})" * (training.checkpoints > 0)
    return [
        ("training", f"{training.steps:,} steps, {training.epoch_steps:,} an epoch{done}"),
        ("global batch", f"{training.global_batch():,} features{parts}"),
        ("warm-up", f"{training.warmup:,} steps"),
        ("evaluations", f"{training.evaluations:,} during training"),
        ("log", training.log),
        ("checkpoints", f"{training.checkpoints:,}{checkpoint}"),
        (
            "disk",
            f"{size(training.disk_bytes())} for checkpoints and model, {size(training.kept_bytes)} of it in use; "
            f"{size(training.free_bytes)} free",
        ),
    ]


def format_part(part: Part) -> str:
    """Return the steps and shapes of a split as text, `12, of 2 shapes: 8 x 384 (92%), 3 x 384 (8%)`."""
    if part.shapes is None:
        return f"{part.steps:,}, each as long as its longest feature: up to {part.lengths:,} lengths"
    listed = [f"{batch} x {width} ({steps / part.steps:.0%})" for (batch, width), steps in part.shapes.items()]
    shapes = "1 shape" if len(listed) == 1 else f"{len(listed)} shapes"
    return f"{part.steps:,}, of {shapes}: {', '.join(listed)}"


def format_parameters(plan: Plan) -> str:
    trained = "" if plan.trainable == plan.parameters else f", {plan.trainable:,} of them trained"
    return f"{plan.parameters:,}{trained}"


def format_memory(memory: Memory) -> str:
    """Return the memory of a device as text; `at least` where a part of it is not known."""
    parts = {name: getattr(memory, name) for name in ("weights", "gradients", "optimizer", "activations")}
    texts = [f"{name} {'unknown' if count is None else size(count)}" for name, count in parts.items() if count != 0]
    about = "at least" if None in parts.values() else "about"
    return f"{about} {size(memory.total())} on each device: {', '.join(texts)}"


def timing_rows(plan: Plan, features: dict, training_args, timing: Timing) -> list[tuple[str, str]]:
    """Return the lines of the measured steps, and of the whole run that follows from them."""
    seconds = stage_seconds(plan, training_args, timing)
    seconds |= {"first steps": sum(pace.first_steps for pace in timing.paces.values())}
    listed = ", ".join(f"{name} {duration(part)}" for name, part in seconds.items())
    rates = [
        f"{TITLES[STAGES.get(split, split)]} {len(features[split]) / pace.whole:,.1f} samples/s"
        for split, pace in timing.paces.items()
    ]
    rows = [("time", f"about {duration(sum(seconds.values()))}: {listed}"), ("speed", ", ".join(rates))]
    return rows + ([] if timing.peak is None else [("peak", f"{size(timing.peak)} of device memory in these steps")])


def stage_seconds(plan: Plan, training_args, timing: Timing) -> dict[str, float]:
    """Return the seconds of the stages that a run has, by name, without loading, finding answers and writing."""
    seconds, paces = {}, timing.paces
    if plan.training and "train" in paces:
        left = (plan.training.steps - plan.training.done) / plan.training.epoch_steps
        seconds[TITLES["train"]] = max(0, left) * paces["train"].whole
    if plan.training and plan.training.evaluations and "validation" in paces:
        seconds["evaluations during training"] = plan.training.evaluations * paces["validation"].whole
    for split in ("tuning", "validation", "test"):
        if split in paces and (split == "tuning" or getattr(training_args, f"do_{STAGES[split]}")):
            seconds[TITLES[STAGES.get(split, split)]] = paces[split].whole
    return seconds
