"""How long a training still takes, and the bar on a terminal.

The remaining time counts the steps, evaluations and checkpoints to come. A step's time is measured over the second half of
the steps so far, without evaluations and checkpoints, so that steps that compile drop out soon.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import has_length

from qa.numbers import count_of, duration
from qa.screen import StageLines
from qa.steps import checkpoint_steps, evaluation_steps
from qa.trackers import tracking


TITLES = {"evaluation": "evaluation", "saving": "checkpoint"}  # of the pauses of a training
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class RemainingTime(TrainerCallback):
    """How long the training of a trainer still takes: its steps, and the evaluations and checkpoints between them."""

    def __init__(self, trainer):
        self.trainer, self.marks, self.pauses = trainer, [], {}

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        epoch = max(1, math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))
        planned = {"evaluation": evaluation_steps, "saving": checkpoint_steps}
        self.pauses = {name: steps(epoch, state.max_steps, args) for name, steps in planned.items()}
        self.first_step, self.marks = state.global_step, []

    def on_step_begin(self, args, state, control, **kwargs):
        """Begin to measure after the first step, which compiles; `qa.stopping` has waited for it on every device."""
        if not self.marks and state.global_step > self.first_step:
            self.mark(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:  # which has been read from the device
            self.mark(state)

    def mark(self, state) -> None:
        paused = sum(map(sum, self.trainer.paused.values()))
        self.marks.append((state.global_step, time.time() - paused))

    def text(self, state) -> str:
        """Return the remaining time as text; empty where none is known, as after the first step."""
        pace = steady_pace(self.marks)
        if pace is None:
            return ""
        left = {name: sum(step >= state.global_step for step in steps) for name, steps in self.pauses.items()}
        measured = {name: seconds[-1] for name, seconds in self.trainer.paused.items() if seconds}
        seconds = (state.max_steps - state.global_step) * pace
        seconds += sum(left[name] * each for name, each in measured.items())
        unknown = [count_of(left[name], TITLES[name]) for name in left if left[name] and name not in measured]
        return f"{duration(seconds)}{' plus ' * bool(unknown)}{' and '.join(unknown)} left"


def steady_pace(marks: list[tuple[int, float]]) -> float | None:
    """Return the seconds of a step over the second half of the marks, (step, seconds) each; None for less than two.

    >>> steady_pace([(1, 60.0)]), steady_pace([(1, 60.0), (11, 65.0)]), steady_pace([(1, 60.0), (11, 65.0), (21, 67.0)])
    (None, 0.5, 0.2)
    """
    if len(marks) < 2:
        return None
    (first, start), (last, end) = marks[(len(marks) - 1) // 2], marks[-1]
    return (end - start) / max(1, last - first)


class OneBar(TrainerCallback):
    """A bar for the training; during an evaluation or a prediction, one for that in its place."""

    def __init__(self, remaining: RemainingTime):
        self.remaining, self.bar, self.steps = remaining, None, None

    def show(self, title: str, total: int, done: int = 0) -> None:
        self.close()
        self.bar = tqdm(desc=title, total=total, initial=done, leave=False, dynamic_ncols=True, bar_format=BAR)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar, self.steps = None, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.show("Training", state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        left = self.remaining.text(state)
        self.bar.set_postfix_str(left, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Count a batch; the time of the remaining ones follows from those after the first, which compiles."""
        if not has_length(eval_dataloader):
            return
        if self.steps is None:
            self.show("Answering", len(eval_dataloader))
            self.steps, self.first = 0, time.time()
        self.steps += 1
        if self.steps == 1:
            self.first = time.time()
        else:
            seconds = (time.time() - self.first) / (self.steps - 1) * (len(eval_dataloader) - self.steps)
            self.bar.set_postfix_str(f"{duration(seconds)} left", refresh=False)
        self.bar.update()
        if self.steps == len(eval_dataloader):
            self.close()

    def on_evaluate(self, args, state, control, **kwargs):
        self.close()
        if self.remaining.trainer.is_in_train:
            self.show("Training", state.max_steps, state.global_step)

    def on_train_end(self, *args, **kwargs):
        self.close()


def watched(run: Callable) -> Callable:
    """Let a function of a trainer and the data's arguments, which runs the stages, be watched: on the screen and in trackers."""

    @wraps(run)
    def run_watched(trainer, data_args, *args, **kwargs):
        remaining = RemainingTime(trainer)
        trainer.remove_callback(PrinterCallback)  # whole dictionaries; the results files hold them
        trainer.add_callback(remaining)
        trainer.add_callback(StageLines(remaining.text))
        with tracking(trainer, data_args), one_bar(trainer, remaining):
            return run(trainer, data_args, *args, **kwargs)

    return run_watched


@contextmanager
def one_bar(trainer, remaining: RemainingTime) -> Iterator[None]:
    """Show one bar at a time within, on rank 0 and where flags and terminal have one; lines of the log scroll above it."""
    trainer.remove_callback(ProgressCallback)
    if trainer.args.disable_tqdm or not trainer.is_world_process_zero():
        yield
        return
    bar = OneBar(remaining)
    trainer.add_callback(bar)
    try:
        with logging_redirect_tqdm([logging.getLogger(), logging.getLogger("transformers")]):
            yield
    finally:
        bar.close()
        trainer.remove_callback(bar)
