"""A training that ends before its last step: on a signal, when its time is up, or when its numbers are no longer finite.

All ranks have to end with the same step, or those that go on would wait for the others for ever. So they look together
whether one of them has a reason: on a CPU after every step, elsewhere about every two seconds. Looking reads numbers
from the device, which waits for the work queued on it; on a Gaudi its shapes are the same each time.

    reason            checkpoint of this step          exit status
    ----------------  -------------------------------  ------------
    signal            written                          143 or 130, see signals.py
    time is up        written                          75
    loss not finite   none, the last one is kept       1

An evaluation in a training ends after its current step for the first two reasons. The checkpoint notes that it is due, and
the run that resumes from there does it first.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qa.errors import Stopped
from qa.finite import weights_not_finite
from qa.process import CLOCK
from qa.signals import REQUEST, STATUS, name_of


logger = logging.getLogger(__name__)

TIME_IS_UP, NOT_FINITE = 100, 200  # reasons next to the numbers of signals; the largest of all ranks counts
STATUS_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: start the command again
SECONDS_BETWEEN_LOOKS = 2
MOST_STEPS_BETWEEN_LOOKS = 100


class EvaluationStopped(Stopped):
    """An evaluation in a training that ended before its last step, or did not begin."""


class EndedOnStart(Exception):
    """The evaluation that was due when a run resumed has ended its training: early stopping."""


def command_to_go_on(training_args) -> str:
    """Return which command goes on where this one has stopped, in words: without flags that would start elsewhere."""
    named = str(training_args.resume_from_checkpoint).lower() not in ("none", "true")
    flags = ["--overwrite_output_dir"] * training_args.overwrite_output_dir + ["--resume_from_checkpoint"] * named
    return "the same command" + (f" without {' and '.join(flags)}" if flags else "")


class StoppableTraining:
    """Mixin for a trainer: a training can end before its last step, on all ranks together.

    Raises from `train`:
        qa.errors.Stopped: the training has ended so, with its last checkpoint whole.
    """

    reason, losses, saved_step, first_bad, evaluating = 0, (), None, "", False

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        self.losses, self.reason, self.resumed_from = [], 0, resume_from_checkpoint
        self.bad_steps, self.bad_step, self.first_bad = 0, None, ""  # those in a row, the last and the first one
        self.next_look, self.looked_at, self.looked_step = 0, time.monotonic(), None
        self.last_step = self.saved_step = None
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except EndedOnStart:  # The libraries would take another step. From its end they take none.
            return self.train(str(self.checkpoint_folder(self.state.global_step)), **kwargs)

    def training_step(self, *args, **kwargs):
        """Return the loss; keep it on the device until it is read together with others."""
        loss = super().training_step(*args, **kwargs)
        if self.looked_step is None:
            self.looked_step = self.saved_step = self.state.global_step
        rate = self.optimizer.param_groups[0]["lr"]
        self.losses.append((self.state.global_step + 1, rate, loss.detach()))
        return loss

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs) -> None:
        """Log, evaluate and save as the base does after a step and, once more, after an epoch; stop where there is a reason.

        At the last step of an epoch the stop waits for the second call, in which an epoch is evaluated and saved.
        """
        step = self.state.global_step
        after_epoch, self.last_step = step == self.last_step, step
        if not after_epoch and step >= self.next_look:
            self.look()
        if self.reason == NOT_FINITE:
            raise self.not_finite()
        epoch_ends = (self.state.epoch or 0) % 1 == 0 or self.control.should_training_stop
        with suppress(EvaluationStopped):
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.reason and (after_epoch or not epoch_ends):
            if step != self.saved_step or self.control.should_evaluate:
                self._save_checkpoint(model, trial)
            self.end_together()

    def end_together(self) -> None:
        self.accelerator.wait_for_everyone()  # The launcher ends the others as soon as one rank has failed.
        raise self.stopped()

    def look(self) -> None:
        """Find out whether a rank has a reason to stop, and choose the step of the next look; both alike on all ranks."""
        step, now = self.state.global_step, time.monotonic()
        seconds = (now - self.looked_at) / max(1, step - (self.looked_step or 0))
        self.reason, seconds = self.largest([max(self.read_losses(), self.requested()), seconds])
        self.next_look = step + self.steps_between_looks(seconds)
        self.looked_at, self.looked_step = now, step

    def steps_between_looks(self, seconds: float) -> int:
        """Return after how many steps, of the given length in seconds, the ranks look again."""
        steps = int(SECONDS_BETWEEN_LOOKS / max(seconds, 1e-6))
        return 1 if self.args.device.type == "cpu" else max(1, min(steps, MOST_STEPS_BETWEEN_LOOKS))

    def largest(self, numbers: list[float]) -> list[float]:
        """Return the largest value of each number among the ranks."""
        if self.args.world_size == 1:
            return numbers
        row = torch.tensor([numbers], dtype=torch.float32, device=self.args.device)
        return self.accelerator.gather(row).cpu().max(dim=0).values.tolist()

    def requested(self) -> int:
        """Return this rank's reason to stop that is no fault: a signal's number, TIME_IS_UP or 0."""
        minutes = self.args.max_train_minutes
        time_is_up = minutes is not None and time.monotonic() - CLOCK.began > 60 * minutes
        return max(REQUEST.number, TIME_IS_UP if time_is_up else 0)

    # Numbers that are not finite

    def read_losses(self) -> int:
        """Count the steps in a row whose loss is not finite, and report the first one; return NOT_FINITE or 0."""
        reason = 0
        for step, rate, loss in self.losses:
            loss = loss.item()
            if loss - loss == 0:  # neither NaN nor infinite
                self.bad_steps, self.bad_step = 0, None
            elif self.bad_step != step:
                self.bad_steps, self.bad_step = self.bad_steps + 1, step
                if self.bad_steps == 1:
                    self.first_bad = f"the loss of step {step} is {loss} at a learning rate of {rate:.3g}"
                    logger.warning(f"{self.first_bad}; the training stops after {self.args.nan_patience} such steps")
            if self.bad_steps >= self.args.nan_patience:
                reason = NOT_FINITE
        self.losses = []
        return reason

    def save_model(self, *args, **kwargs) -> None:
        """Save the model unless it has weights that are not finite, which ends the training."""
        self.require_finite_weights()
        super().save_model(*args, **kwargs)
        self.saved_step = self.state.global_step

    def require_finite_weights(self) -> None:
        if self.largest([float(bool(weights_not_finite(self.model)))])[0]:
            raise self.not_finite()

    # Evaluations in a training

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict | None:
        """Evaluate in a training as the base does, unless there is a reason to stop, or the weights are not finite.

        Args:
            skip_scheduler: before the first step: for --eval_on_start, or since the evaluation of a stopped run is due.

        Raises:
            EvaluationStopped: on all ranks together.
        """
        if skip_scheduler and self.resumed_from is not None:
            return self.complete_step(trial, ignore_keys_for_eval)
        self.require_finite_weights()
        self.evaluated, self.next_evaluation_look, self.evaluation_began = 0, 1, time.monotonic()
        self.evaluating = True
        try:
            self.require_no_reason()
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=skip_scheduler)
        finally:
            self.evaluating = False

    def prediction_step(self, *args, **kwargs):
        """Do what the base does; in a training only if there is no reason to stop."""
        if self.evaluating:
            if self.evaluated == self.next_evaluation_look:
                self.look_in_evaluation()
            self.evaluated += 1
        return super().prediction_step(*args, **kwargs)

    def look_in_evaluation(self) -> None:
        """Find out whether a rank has a reason to stop, and choose the step of the next look; both alike on all ranks."""
        seconds = (time.monotonic() - self.evaluation_began) / self.evaluated
        self.reason, seconds = self.largest([self.requested(), seconds])
        self.next_evaluation_look = self.evaluated + self.steps_between_looks(seconds)
        self.require_no_reason()

    def require_no_reason(self) -> None:
        if self.reason:
            status, why = self.status_and_reason()
            raise EvaluationStopped(status, f"stopped by {why} before the first step; the same command starts again")

    def complete_step(self, trial, ignore_keys_for_eval) -> None:
        """Evaluate after the last step of a stopped run, and write its checkpoint again, now with the scores."""
        self._load_rng_state(self.resumed_from)  # The checkpoint gets it.
        self.control.should_evaluate = True
        self.state.num_train_epochs = self.epochs  # For a training at its end the libraries get 0 epochs.
        with suppress(EvaluationStopped):
            self._determine_best_metric(self._evaluate(trial, ignore_keys_for_eval), trial)
        self._save_checkpoint(self.model, trial)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.reason:
            self.end_together()
        if self.control.should_training_stop:
            raise EndedOnStart

    # How it ends

    def stopped(self) -> Stopped:
        folder = self.checkpoint_folder(self.state.global_step)
        status, why = self.status_and_reason()
        return Stopped(
            status,
            f"stopped by {why} after step {self.state.global_step} of {self.state.max_steps}; {folder} is written, and "
            f"{command_to_go_on(self.args)} goes on from there",
        )

    def status_and_reason(self) -> tuple[int, str]:
        """Return the exit status of a stop, and its reason in words."""
        if self.reason == TIME_IS_UP:
            return STATUS_OF_TIME, "--max_train_minutes"
        return STATUS[int(self.reason)], name_of(int(self.reason))

    def not_finite(self) -> Stopped:
        kept = "this run wrote no checkpoint"
        if self.saved_step:
            kept = f"{self.checkpoint_folder(self.saved_step)} is kept"
        why = self.first_bad or f"the loss or the weights of a rank are not finite after step {self.state.global_step}"
        return Stopped(1, f"error: {why}; the training stops, {kept}; use a smaller --learning_rate")

    def checkpoint_folder(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
