"""The lines that a person sees during a run: one for each stage, and a summary at the end."""

import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from qa.answer_files import first_rows, table_name
from qa.arguments import PREFIXES, TITLES
from qa.buckets import padding_share, train_group
from qa.errors import printable
from qa.lora import trained_parameters
from qa.metrics import sigmoid
from qa.settings import flags_to_ask
from qa.steps import warmup_steps
from qa.thresholds import to_paste


logger = logging.getLogger(__name__)

SUMMARY_SCORES = {
    "exact_match": "EM",
    "exact": "EM",
    "f1": "F1",
    "mlqa_exact_match": "MLQA's EM",
    "mlqa_f1": "MLQA's F1",
}

FIRST_ANSWERS = 5  # that the summary shows
SHAPES = 12  # whose first steps a line has at most
SHOWN = {"question": 60, "predicted": 30, "gold": 30}  # columns of the table, and how many characters of each


# Entries of a training's log in the order of its line, each with the form of its value.
LOGGED = {
    "loss": "loss {:.4g}",
    "learning_rate": "learning rate {:.3g}",
    "grad_norm": "gradient norm {:.3g}",
    "samples_per_second": "{:,.1f} features/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "padding_share": "{:.0%} padding",
    "max_memory_allocated (GB)": "{:.1f} GB at most",
}


class StageLines(TrainerCallback):
    """Log a line when training begins, with the numbers that decide how long it takes, and one for each entry of its log.

    Args:
        remaining: returns the remaining time of a training in a state as text, empty where it is not known.
    """

    training = False

    def __init__(self, remaining: Callable[..., str] = lambda state: ""):
        self.remaining = remaining

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self.training = True
        batch = train_group(args) * args.gradient_accumulation_steps
        parameters, _ = trained_parameters(model)
        done = f", {state.global_step:,} of them done" if state.global_step else ""
        logger.info(
            f"Training {parameters:,} parameters on {args.device.type}: {state.max_steps:,} steps of {batch} features{done}"
        )
        warmup = warmup_steps(args, state.max_steps)
        if warmup > state.max_steps:
            logger.warning(
                f"--warmup_steps {warmup:,} is more than the {state.max_steps:,} steps of the training: the learning rate "
                "never reaches --learning_rate; make it smaller"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "loss" in logs:
            parts = [form.format(logs[name]) for name, form in LOGGED.items() if logs.get(name) is not None]
            line = ", ".join(filter(None, [*parts, self.remaining(state)]))
            logger.info(f"Step {state.global_step:,} of {state.max_steps:,}: {line}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.training and state.is_world_process_zero:  # the last evaluation has a line of its own
            logger.info(f"Evaluation at step {state.global_step:,}: {scores_of(metrics, 'eval')}")

    def on_train_end(self, *args, **kwargs):
        self.training = False


def report_features(features: dict, training_args, pad_to_max_length: bool, length: int) -> None:
    """Log how many features each split has; warn where padding to one length costs time off a Gaudi.

    Args:
        features: by split; those with buckets or a packing have reported their padding already.
        length: tokens that features are padded to.
    """
    for split, part in features.items():
        logger.info(f"{len(part):,} {split} features of at most {length} tokens")
    laid_out = any(part.widths is not None or part.packing is not None for part in features.values())
    if training_args.use_habana or not pad_to_max_length or not features or laid_out:
        return
    share = max(padding_share(part.lengths(), length) for part in features.values())
    if share > 0.25:
        logger.warning(
            f"{share:.0%} of the tokens are padding, which suits a Gaudi only; add --pad_to_max_length false here"
        )


def report_stage(stage: str, metrics: dict) -> None:
    """Log the scores and the time of a finished stage (train, eval or predict) in one line."""
    prefix, title = PREFIXES[stage], TITLES[stage].capitalize()
    logger.info(f"{title}: {scores_of(metrics, prefix)} in {metrics[f'{prefix}_runtime']:,.1f} s")


def report_shapes(stage: str, report: dict) -> None:
    """Log the first steps of the new shapes of a stage in one line, see `qa.first_steps.FirstSteps.report`."""
    slowest = sorted(report["first_steps"].items(), key=lambda item: -item[1])[:SHAPES]
    listed = ", ".join(f"{shape} {seconds:,.1f} s" for shape, seconds in slowest)
    listed += ", ..." * (report["shapes"] > SHAPES)
    steps = "step of 1 new shape" if report["shapes"] == 1 else f"steps of {report['shapes']} new shapes"
    later = "" if report["later_step"] is None else f"; a later step takes {report['later_step']:.3g} s"
    logger.info(
        f"{TITLES[stage].capitalize()}: the first {steps} took {report['all_first_steps']:,.1f} s, compilation included: "
        f"{listed}{later}"
    )


def scores_of(metrics: dict, prefix: str) -> str:
    """Return EM, F1 and the loss among the metrics as text."""
    scores = {name: metrics.get(f"{prefix}_{name}") for name in ("exact_match", "exact", "f1", "loss")}
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None) or "done"


def summary(training_args, state, metrics: dict, script: str) -> list[str]:
    """Return the closing lines of a run: scores, the best checkpoint, where the files are, and the next command.

    Args:
        state: the trainer's.
        metrics: of all stages.
        script: the name of the script, for the next command.
    """
    lines = []
    for prefix, title in (("eval", ""), ("test", " of the predictions")):
        for key, name in SUMMARY_SCORES.items():
            if f"{prefix}_{key}" in metrics:
                lines.append((f"{name}{title}", f"{metrics[f'{prefix}_{key}']:.2f}"))
        lines += threshold_lines(metrics, prefix)
    if training_args.do_train and state.best_model_checkpoint is not None:
        best = f"{state.best_model_checkpoint} ({training_args.metric_for_best_model} {state.best_metric:.4g})"
        lines.append(("best checkpoint", best))
    if training_args.do_train:
        lines.append(("model", training_args.output_dir))
    lines.append(("results", str(Path(training_args.output_dir) / "all_results.json")))
    stages = [stage for stage in ("eval", "predict") if getattr(training_args, f"do_{stage}")]
    for title, name in (("answers", "predictions.json"), ("table", "answers.csv"), ("report", "report.html")):
        paths = [Path(training_args.output_dir) / f"{stage}_{name}" for stage in stages]
        lines += [(title, str(path)) for path in paths if path.is_file()]
    if training_args.do_train:
        command = ["python", script, "--model_name_or_path", training_args.output_dir, "--test_file", "QUESTIONS.json"]
        command += ["--do_predict", "--output_dir", "ANSWERS"]
        command += ["--predict_with_generate"] * hasattr(training_args, "predict_with_generate")
        command += flags_to_ask(Path(training_args.output_dir))
        command += ["--use_habana"] if training_args.use_habana else ["--pad_to_max_length", "false"]
        lines.append(("next", shlex.join(command)))
    width = max(len(title) for title, _ in lines)
    tables = [first_answers(Path(training_args.output_dir), stage) for stage in stages]
    return [f"{title:<{width}}  {value}" for title, value in lines] + [line for table in tables for line in table]


def threshold_lines(metrics: dict, prefix: str) -> list[tuple[str, str]]:
    """Return the best threshold by F1 as a line to paste, with its probability; none without negatives."""
    names = ("suggested_null_score_diff_threshold", "best_f1", "best_f1_thresh")
    threshold, best, lowest = (metrics.get(f"{prefix}_{name}") for name in names)
    if threshold is None or not math.isfinite(threshold):
        return []
    kind = f"no-answer probability {float(sigmoid(threshold)):.4g}" if lowest else "no answer at all"
    text = f"{to_paste(threshold, up=threshold > 0)} (F1 {best:.2f} on these questions, {kind})"
    return [("best threshold", text)]


def first_answers(folder: Path, stage: str) -> list[str]:
    """Return a heading and the first rows of the table of answers of a stage as lines, none where there is no table."""
    path = folder / table_name(stage)
    rows = first_rows(path, FIRST_ANSWERS) if path.is_file() else []
    names = [name for name in SHOWN if rows and name in rows[0]]
    cells = [names] + [[cut(row[name], SHOWN[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells if names]


def cut(text: str, most: int) -> str:
    """Return a text on one line of at most `most` characters; "no answer" for an empty one.

    >>> cut("Which river\\nis long?", 14), cut("", 9)
    ('Which river...', 'no answer')
    """
    text = printable(" ".join(text.split())) or "no answer"
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def print_summary(training_args, state, metrics: dict) -> None:
    """Print the closing lines of a run on rank 0; characters that the terminal does not have, by their numbers."""
    if training_args.process_index == 0:
        lines = "\n".join(summary(training_args, state, metrics, Path(sys.argv[0]).name))
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a caller's stdout may be None, or a buffer
        print(lines.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)
