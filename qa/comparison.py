"""The comparison of several runs: mean and deviation over seeds, and a paired bootstrap between models."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np

from qa.answer_files import read_csv_columns, table_name
from qa.files import read_object
from qa.identity import RUN_FILE
from qa.intervals import FEWEST_FOR_INTERVAL, INTERVAL, resampled_sums


METRICS = {"exact_match": "EM", "f1": "F1"}
# Flags in which the runs of one model may differ; so may the versions of the libraries.
OF_A_RUN = (
    "seed data_seed output_dir run_name logging_dir overwrite_output_dir resume_from_checkpoint resume_anyway local_rank "
    "report_to disable_tqdm save_total_limit"
).split()


def compare(folders: list[Path]) -> dict:
    """Return the models that runs are of, each with its runs, and the differences between each two models.

    Runs whose records differ in no more than the seed are of one model. One without a record is a model of its own.
    """
    models = {}
    for folder in folders:
        run = read_run(folder)
        models.setdefault(run.pop("key"), []).append(run)
    models = [summary(part) for part in models.values()]
    return {"models": models, "differences": [difference(*pair) for pair in combinations(models, 2)]}


def read_run(folder: Path) -> dict:
    """Return name, seed, key of the model, and the scores by id of an output folder."""
    columns, record = read_csv_columns(folder / table_name("eval")), read_object(folder / RUN_FILE)
    arguments = record.get("arguments", {})
    same = {name: value for name, value in arguments.items() if name not in OF_A_RUN}
    scores = {name: dict(zip(columns["id"], columns[name])) for name in METRICS}
    return {
        "name": str(folder),
        "seed": arguments.get("seed"),
        "key": json.dumps([same, record.get("model")], sort_keys=True) if arguments else str(folder),
        "scores": scores,
        "questions": len(columns["id"]),
        **{name: float(np.mean(list(values.values()))) for name, values in scores.items()},
    }


def summary(runs: list[dict]) -> dict:
    """Return mean and standard deviation of the scores of a model's runs, and the means by id; the deviation of one run is None."""
    found = {"name": ", ".join(run["name"] for run in runs), "runs": runs}
    for name in METRICS:
        values = [run[name] for run in runs]
        found[name] = float(np.mean(values))
        found[f"{name}_deviation"] = float(np.std(values, ddof=1)) if len(runs) > 1 else None
    common = set.intersection(*(set(run["scores"]["f1"]) for run in runs))
    of_question = {
        name: {
            question: float(np.mean([run["scores"][name][question] for run in runs])) for question in sorted(common)
        }
        for name in METRICS
    }
    return found | {"scores": of_question}


def difference(first: dict, second: dict) -> dict:
    """Return by how much the second of two models is better, on the questions that both answered.

    Of several runs the mean of each question counts. The interval and the p-value are those of a paired bootstrap over
    questions: both models are scored on the same resamples (Berg-Kirkpatrick et al.: An Empirical Investigation of
    Statistical Significance in NLP. EMNLP 2012). The p-value is two-sided. A few questions are counted alone.
    """
    common = sorted(set(first["scores"]["f1"]).intersection(second["scores"]["f1"]))
    found = {"first": first["name"], "second": second["name"], "questions": len(common)}
    if len(common) < FEWEST_FOR_INTERVAL:
        return found
    table = np.array([[second["scores"][name][q] - first["scores"][name][q] for name in METRICS] for q in common])
    means = resampled_sums(table) / len(common)
    low, high = np.quantile(means, INTERVAL, axis=0)
    for place, name in enumerate(METRICS):
        beyond = min((means[:, place] <= 0).mean(), (means[:, place] >= 0).mean())
        found[name] = {
            "value": float(table[:, place].mean()),
            "low": float(low[place]),
            "high": float(high[place]),
            "p": float(min(1.0, 2 * max(beyond, 1 / len(means)))),
        }
    return found


def comparison_lines(comparison: dict) -> list[str]:
    """Return the tables of a comparison as lines for a terminal."""
    rows = [("run", "seed", "questions", *METRICS.values())]
    for model in comparison["models"]:
        for run in model["runs"]:
            seed = "" if run["seed"] is None else str(run["seed"])
            rows.append((run["name"], seed, f"{run['questions']:,}", *(f"{run[name]:.2f}" for name in METRICS)))
        if len(model["runs"]) > 1:
            scores = (f"{model[name]:.2f} ± {model[f'{name}_deviation']:.2f}" for name in METRICS)
            rows.append((f"mean of these {len(model['runs'])}", "", "", *scores))
    return [*aligned(rows), *map(difference_line, comparison["differences"])]


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]


def difference_line(pair: dict) -> str:
    """Return a difference between two models in a line."""
    names = f"{pair['second']} compared with {pair['first']}"
    if "f1" not in pair:
        return f"{names}: {pair['questions']} questions in common, too few to compare"
    parts = [
        f"{label} {score['value']:+.2f} ({score['low']:+.2f} to {score['high']:+.2f}, p {score['p']:.3f})"
        for name, label in METRICS.items()
        if (score := pair[name])
    ]
    return f"{names}, {pair['questions']:,} questions: {', '.join(parts)}"
