"""Scores against the no-answer threshold in TensorBoard and W&B, beyond the entries of the log, after each evaluation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from transformers import TrainerCallback

from qa.answer_table import AnswerTable
from qa.arguments import DataArguments
from qa.curves import chosen_and_best, thinned_together, threshold_curve
from qa.plots import draw_threshold, figure_of


CURVE = "eval/threshold"  # its name in the trackers, next to those of the scores


class ThresholdCurves(TrainerCallback):
    """Send EM and F1 against the threshold on the null odds to the trackers of a trainer.

    Args:
        data_args: the arguments of the data; their threshold, by which answers are chosen, may change after a training.
    """

    def __init__(self, trainer, data_args: DataArguments):
        self.trainer, self.data_args = trainer, data_args

    def on_evaluate(self, args, state, control, **kwargs):
        table = getattr(self.trainer.answered, "table", None)  # on rank 0
        callbacks = {type(callback).__name__: callback for callback in self.trainer.callback_handler.callbacks}
        trackers = SENDERS.keys() & callbacks.keys()
        if table is None or not trackers or not has_curve(table):
            return
        figures = threshold_figures(table, self.data_args.null_score_diff_threshold)
        for name in trackers:
            SENDERS[name](callbacks[name], figures, state.global_step)


def threshold_figures(table: AnswerTable, threshold: float) -> dict:
    """Return the points of the curve, and those of the chosen and the best threshold, as `draw_threshold` takes them."""
    curves = threshold_curve(table)
    return {"curves": thinned_together(curves), "thresholds": chosen_and_best(curves, threshold)}


def has_curve(table: AnswerTable) -> bool:
    """Return whether an evaluation has null odds to draw a curve of."""
    return "null_odds" in table.columns and len(table) > 0 and bool(np.isfinite(table.numbers("null_odds")).all())


def send_to_tensorboard(tracker, figures: dict, step: int) -> None:
    """Add the curve as an image, where matplotlib is installed; the report says that it is not."""
    with suppress(ImportError), figure_of(draw_threshold, figures) as figure:
        tracker.tb_writer.add_figure(CURVE, figure, step)
    tracker.tb_writer.flush()


def send_to_wandb(tracker, figures: dict, step: int) -> None:
    """Log the curve as a chart of its points."""
    curves = figures["curves"]
    chart = tracker._wandb.plot.line_series(
        xs=curves["threshold"],
        ys=[curves["f1"], curves["exact_match"]],
        keys=["F1", "EM"],
        title="scores against --null_score_diff_threshold",
        xname="threshold, logits",
    )
    tracker._wandb.log({CURVE: chart, "train/global_step": step})


# By the names of transformers' callbacks, whose module imports every model.
SENDERS = {"TensorBoardCallback": send_to_tensorboard, "WandbCallback": send_to_wandb}


@contextmanager
def tracking(trainer, data_args: DataArguments) -> Iterator[None]:
    """Send curves to trackers within; at the end, finish the run of W&B that began within, or the next one would go on in it."""
    trainer.add_callback(ThresholdCurves(trainer, data_args))
    own = wandb_run() is None
    failed = True
    try:
        yield
        failed = False
    finally:
        if own and wandb_run() is not None:
            sys.modules["wandb"].finish(exit_code=int(failed))


def wandb_run():
    """Return the run of W&B in this process, None where there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)
