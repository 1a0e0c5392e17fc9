"""The report on an evaluation: how good the model is, and where it fails; and the comparison of several runs.

    python -m qa.report OUT                                # make the report in an output folder again
    python -m qa.report SEED_0 SEED_1 OTHER                # the same, then print a table of the runs
    python -m qa.report SEED_0 SEED_1 --output runs.html   # write that table as a page

`eval_report.html` is one file that needs no network and no script, and `eval_report.json` has the same figures.
"""

import argparse
import logging
from functools import cache
from pathlib import Path

import numpy as np

from qa.answer_files import read_table
from qa.answer_table import AnswerTable
from qa.arguments import DataArguments, ModelArguments
from qa.calibration import FEWEST, calibration, top_n
from qa.comparison import compare, comparison_lines
from qa.curves import (
    LOGGED,
    below,
    chosen_and_best,
    odds_histogram,
    precision_recall,
    thinned_together,
    threshold_curve,
    training_curves,
)
from qa.errors import UserError, run_or_exit, tracebacks_are_shown, unexpected
from qa.files import read_object, to_json, write_whole
from qa.groups import group_parts, score_parts
from qa.identity import RUN_FILE
from qa.intervals import with_intervals
from qa.numbers import duration, fixed, probability, significant
from qa.plots import draw_plots
from qa.settings import Settings, read_settings
from qa.speed import evaluation_resources
from qa.thresholds import to_paste
from qa.worst import worst_examples


logger = logging.getLogger(__name__)

FORMAT = 1  # of `eval_report.json`
# The figures of a run's speed in the report, by name in the results: stage, label and unit.
SPEED = {
    "train_runtime": ("training", "time", "s"),
    "train_samples_per_second": ("training", "features per second", "1/s"),
    "train_steady_samples_per_second": ("training", "features per second, steps alone", "1/s"),
    "train_tokens_per_second": ("training", "tokens per second, without padding", "1/s"),
    "train_padding_share": ("training", "padding", "%"),
    "eval_runtime": ("evaluation", "time", "s"),
    "eval_postprocess_runtime": ("evaluation", "answers and scores", "s"),
    "eval_samples_per_second": ("evaluation", "features per second", "1/s"),
    "eval_padding_share": ("evaluation", "padding", "%"),
    "device_memory": ("", "memory of the device, at most", "GB"),
    "host_memory": ("", "memory of the process, at most", "GB"),
}


def report_evaluation(trainer, model_args: ModelArguments, data_args: DataArguments, metrics: dict) -> None:
    """Write the report on the evaluation that has just been done; a defect of the report is no reason to lose the scores."""
    folder = Path(trainer.args.output_dir)
    is_trained = trainer.args.do_train or Path(model_args.model_name_or_path).resolve() == folder.resolve()
    results, history = training_of(folder) if is_trained else ({}, [])
    try:
        report = build_report(
            trainer.answered.table,
            run_facts(vars(model_args) | vars(data_args)),
            threshold=data_args.null_score_diff_threshold,
            results=results | metrics | evaluation_resources(trainer),
            history=history,
        )
        write_report(folder, report)
    except OSError:
        raise
    except Exception as error:
        logger.warning(f"There is no report: {unexpected(error)}", exc_info=tracebacks_are_shown())


def build_report(
    table: AnswerTable, run: dict[str, str], threshold: float, results: dict, history: list[dict]
) -> dict:
    """Return the figures of a report, as JSON has them.

    Args:
        table: of an evaluation.
        run: what the page shows of the run at its top, by name.
        threshold: on the null odds, by which the answers were chosen.
        results: the metrics of all stages, and others of `SPEED`.
        history: the log of the training.
    """
    everything, many = score_parts(table), len(table) >= FEWEST
    found = with_intervals(everything + (group_parts(table) if many else []))
    return {
        "format": FORMAT,
        "questions": len(table),
        "run": run,
        "threshold": threshold,
        "fewest": FEWEST,
        "scores": found[: len(everything)],
        "groups": found[len(everything) :],
        "no_answer": no_answer_figures(table, threshold) if many and "null_odds" in table.columns else None,
        "calibration": calibration(table),
        "top_n": top_n(table) if many else [],
        "training": training_curves(history),
        "speed": speed(results),
        "worst": worst_examples(table),
    }


def no_answer_figures(table: AnswerTable, threshold: float) -> dict | None:
    """Return the figures of questions that may have no answer; None where null odds are not finite."""
    if not np.isfinite(table.numbers("null_odds")).all():
        return None
    curves = threshold_curve(table)
    points = chosen_and_best(curves, threshold)
    best = points[-1]["threshold"]
    return {
        "thresholds": points,
        "best_flag": to_paste(best, up=best > 0),
        "curves": thinned_together(curves),
        "odds": odds_histogram(table),
        "precision_recall": {name: thinned_together(precision_recall(table, name)) for name in ("exact_match", "f1")},
    }


def speed(numbers: dict) -> list[dict]:
    """Return times, rates, padding and memory, each with its name, stage and unit."""
    return [
        {"name": name, "stage": stage, "label": label, "measured": numbers[name], "unit": unit}
        for name, (stage, label, unit) in SPEED.items()
        if isinstance(numbers.get(name), int | float)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Facts of a run


def training_of(folder: Path) -> tuple[dict, list[dict]]:
    """Return the results and the log of the training in an output folder, empty where there is none."""
    state = read_object(folder / "trainer_state.json")
    return read_object(folder / "train_results.json"), state.get("log_history", [])


def run_facts(arguments: dict) -> dict[str, str]:
    """Return what the page shows of a run at its top.

    Args:
        arguments: the values of the flags by name. Of a path only the last part is shown.
    """
    source = arguments.get("validation_file") or arguments.get("dataset_name")
    if arguments.get("validation_split"):
        source = f"{arguments['validation_split']:g} of {last_part(arguments.get('train_file') or source)}"
    return {
        "model": last_part(arguments["model_name_or_path"]),
        "questions": last_part(source or ""),
        "longest input": f"{arguments['max_seq_length']} tokens, overlap {arguments['doc_stride']}",
        "longest answer": f"{arguments['max_answer_length']} tokens",
    }


def last_part(path: str) -> str:
    return Path(path).name if Path(path).exists() else path


def remake(folder: Path) -> dict:
    """Write the report of an output folder again from its files, and return it.

    Memory and padding in evaluation, which only the run knew, come from its earlier report, if there is one.

    Raises:
        UserError: there are no answers of an evaluation, or they are of another version; or without an earlier report the
            settings cannot be read.
    """
    try:
        table = read_table(folder, "eval")
    except OSError as error:
        raise UserError(
            f"{folder}: no answers of an evaluation (eval_answers.csv: {error.strerror}); name an --output_dir of --do_eval"
        ) from error
    except ValueError as error:
        raise UserError(f"{folder}/eval_answers.csv cannot be read: {error}; evaluate again") from error
    old, record = read_object(folder / "eval_report.json"), read_object(folder / RUN_FILE)
    arguments = record.get("arguments", {})
    run = old.get("run") or (run_facts(arguments) if arguments else {})
    threshold = old["threshold"] if "threshold" in old else chosen_threshold(table, read_settings(folder))
    numbers = {part["name"]: part["measured"] for part in old.get("speed", ())}
    results, history = training_of(folder) if not old or old.get("training") else ({}, [])
    results = numbers | results | read_object(folder / "eval_results.json")
    report = build_report(table, run, threshold=threshold, results=results, history=history)
    write_report(folder, report)
    return report


def chosen_threshold(table: AnswerTable, saved: Settings | None) -> float:
    """Return a threshold on the null odds that chooses the answers of a table: the saved one, or the closest to that."""
    threshold = saved.null_score_diff_threshold if saved else 0.0
    if "null_odds" not in table.columns:
        return threshold
    odds, answered = table.numbers("null_odds"), np.array([bool(text) for text in table.columns["predicted"]])
    refused = ~answered & np.array([bool(text) for text in table.columns["best_text"]])
    lowest = np.fmax.reduce(odds[answered], initial=-np.inf)
    return float(np.clip(threshold, lowest, below(np.fmin.reduce(odds[refused], initial=np.inf))))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write_report(folder: Path, report: dict) -> None:
    """Write `eval_report.html` and `eval_report.json`."""
    page = render("report.html", report=report, plots=draw_plots(report), name=folder.resolve().name)
    write_whole(folder / "eval_report.html", [page.encode(errors="xmlcharrefreplace")])
    write_whole(folder / "eval_report.json", [to_json(report), b"\n"])


def render(template: str, **values) -> str:
    """Return a page from a template; every text is escaped."""
    return environment().get_template(template).render(**values)


@cache
def environment():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("qa", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"fixed": fixed, "significant": significant, "probability": probability, "measured": measured}
    found.globals |= {"LOGGED": LOGGED}
    return found


def measured(value: float, unit: str) -> str:
    """Return a figure of `SPEED` for a page.

    >>> measured(200, "s"), measured(0.25, "%"), measured(1.5, "GB"), measured(23.82, "1/s")
    ('3 min 20 s', '25.0 %', '1.5 GB', '23.8')
    """
    if unit == "s":
        return duration(value)
    return significant(value) if unit == "1/s" else f"{fixed(100 * value if unit == '%' else value)} {unit}"


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qa.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="OUT", help="output folder of a run with --do_eval")
    parser.add_argument("--output", metavar="FILE.html", help="write the table of several runs as a page too")
    arguments = parser.parse_args(argv)
    folders = [Path(folder) for folder in arguments.folders]
    if arguments.output and len(folders) == 1:
        raise UserError(f"--output {arguments.output} is for a table of several runs; name another folder, or omit it")
    for folder in folders:
        remake(folder)
        print(f"written: {folder / 'eval_report.html'}")
    if len(folders) > 1:
        comparison = compare(folders)
        print("\n".join(comparison_lines(comparison)))
        if arguments.output:
            write_whole(Path(arguments.output), [render("runs.html", comparison=comparison).encode()])


if __name__ == "__main__":
    run_or_exit(main)
