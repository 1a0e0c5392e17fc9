"""The sums of a run that each of its checkpoints holds, so that the records of a resumed run count the whole run."""

import dataclasses
import math
import time

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


@dataclasses.dataclass(eq=False)
class RunTotals(TrainerCallback, ExportableState):
    """Sums over the steps of a run up to `step`, from `first_step` on: that of a checkpoint without sums, else 0.

    `num_train_epochs` and `max_steps` are those of the command.
    """

    step: int = 0
    first_step: int = 0
    logged_step: int = 0
    loss: float = 0.0  # of the steps up to the last one that was logged
    unlogged_loss: float = 0.0  # of the steps since then
    seconds: float = 0.0
    num_train_epochs: float = 0.0
    max_steps: int = 0

    def state(self) -> dict:
        return {"args": {}, "attributes": dataclasses.asdict(self)}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self.step != state.global_step:  # the checkpoint has no sums
            vars(self).update(vars(RunTotals()))
            self.step = self.first_step = self.logged_step = state.global_step
        self.loss, self.unlogged_loss = (
            math.nan if loss is None else loss for loss in (self.loss, self.unlogged_loss)
        )
        self.num_train_epochs, self.max_steps = args.num_train_epochs, args.max_steps
        self.resumed_step, self.start = state.global_step, time.time() - self.seconds


class WholeRun:
    """Mixin for a trainer: losses, runtime and rates of a resumed run are those of the run that was not stopped."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.totals, self.tr_loss = RunTotals(), None
        self.add_callback(self.totals)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args, **kwargs) -> None:
        """Do what the base does, with the sums of the checkpoint added to those that the base keeps.

        Args:
            tr_loss: sum of the loss over the steps since the last log, which the base sets to 0 when it logs.
        """
        if self.tr_loss is None:  # after the first step
            tr_loss += self.totals.unlogged_loss
            self._total_loss_scalar = self.totals.loss
            self._globalstep_last_logged = self.totals.logged_step
        self.tr_loss = tr_loss
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        self.totals.step, self.totals.seconds = self.state.global_step, time.time() - self.totals.start
        if self.tr_loss is not None:  # before a step they are those of the checkpoint that the run resumed from
            self.totals.loss, self.totals.logged_step = self._total_loss_scalar, self._globalstep_last_logged
            self.totals.unlogged_loss = self._nested_gather(self.tr_loss).mean().item()
        super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Log as the base does; the last entry is the training's own metrics, which become those of the whole run."""
        if "train_runtime" in logs:
            self.close_totals()
            metrics = self.whole_run()
            logs.update(metrics) if metrics else logs.clear()
        super().log(logs, *args, **kwargs)

    def close_totals(self) -> None:
        """Set the sums to those of the finished training."""
        totals = self.totals
        loss = totals.loss + totals.unlogged_loss if self.tr_loss is None else self._total_loss_scalar
        if self.args.world_size > 1:
            loss = self._nested_gather(torch.tensor(loss, device=self.args.device)).mean().item()
        totals.step = totals.logged_step = self.state.global_step
        totals.loss, totals.unlogged_loss, totals.seconds = loss, 0.0, time.time() - totals.start

    def whole_run(self) -> dict[str, float]:
        """Return the mean loss of a step, seconds, samples and steps per second of a finished training; empty for no step."""
        totals = self.totals
        steps = totals.step - totals.first_step
        if steps == 0:
            return {}
        samples = len(self.train_dataset) * self.state.epoch * steps / totals.step
        metrics = {
            "train_loss": totals.loss / steps,
            "train_runtime": round(totals.seconds, 4),
            "train_samples_per_second": round(samples / totals.seconds, 3),
            "train_steps_per_second": round(steps / totals.seconds, 3),
        }
        metrics |= {"train_counted_from_step": totals.first_step} if totals.first_step else {}
        return metrics | ({"train_resumed_step": totals.resumed_step} if totals.resumed_step else {})
