"""F1 with the threshold of `--tune_null_threshold`, compared with threshold 0, over three seeds.

    python -m benchmarks.tuning FOLDER_OF_A_MODEL_FINE_TUNED_ON_SQUAD_1.1

Each seed trains the model on half of the articles of `squad-v2.0-dev.json.gz`, with a fifth of their contexts held out to
tune, and scores it on the other half. docs/measurements.md has the command that fine-tunes such a model.

The second table compares two rules on the answers to that half: 200 times, some random questions tune the threshold and the
others are scored.
"""

import contextlib
import gzip
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.questions import SHARED, fast_bf16, write_rows


# isort: split
import run_qa
from qa.answer_files import read_table
from qa.answer_table import has_answer
from qa.reading import flatten_squad
from qa.settings import read_settings
from qa.thresholds import threshold_of_most
from qa.tuning import better_threshold


SEEDS = (0, 1, 2)
SHARE = 0.2
FLAGS = """--do_train --per_device_train_batch_size 16 --per_device_eval_batch_size 32 --warmup_ratio 0.1 --learning_rate 1e-4
    --max_seq_length 256 --doc_stride 64 --pack --save_strategy no --eval_report false --report_to none --disable_tqdm True
    --log_level error"""


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), model)


def measure(folder: Path, model: str) -> None:
    parts = halves()
    files = {part: write_rows(rows, folder / f"{part}.jsonl") for part, rows in parts.items()}
    data = [
        "--train_file",
        files["train"],
        "--validation_file",
        files["dev"],
        "--version_2_with_negative",
        "--do_eval",
    ]
    print(
        f"{len(parts['train'])} questions of SQuAD 2.0; scored on {len(parts['dev'])}\n\n"
        "| seed | held out | threshold | temperature | F1 | F1 with threshold 0 | best F1 |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    found = []
    for seed in SEEDS:
        output = folder / f"seed_{seed}"
        train(model, output, *data, "--seed", seed, "--num_train_epochs", 3, "--tune_null_threshold", SHARE)
        found.append(scores_of(output))
        settings, numbers = read_settings(output), " | ".join(f"{value:.2f}" for value in found[-1])
        threshold, temperature = settings.null_score_diff_threshold, settings.temperature
        print(f"| {seed} | {settings.tuned_on} | {threshold:.2f} | {temperature:.2f} | {numbers} |", flush=True)
    print(f"| mean | | | | {' | '.join(f'{statistics.mean(column):.2f}' for column in zip(*found))} |", flush=True)
    compare_rules([folder / f"seed_{seed}" for seed in SEEDS])


def compare_rules(folders: list[Path]) -> None:
    """Print what F1 a threshold gains over 0 on questions that did not choose it, by the rule that chose it."""
    print(
        "\n| questions that tune | the highest F1 | ... lower than with 0 | find_threshold | ... lower than with 0 |"
    )
    print("|---|---|---|---|---|")
    tables = [read_table(folder, "eval") for folder in folders]
    for number in (100, 250, 500):
        draw, gained = np.random.default_rng(0), []
        for table in tables:
            odds, answered = table.numbers("null_odds"), table.numbers("best_f1")
            gains = (answered - np.where(has_answer(table), 0.0, 100.0)) / 100
            for _ in range(200):
                chosen = np.arange(len(odds)) < number
                draw.shuffle(chosen)
                thresholds = [rule(odds[chosen], gains[chosen]) for rule in (threshold_of_most, better_threshold)]
                scored = odds[~chosen], gains[~chosen]
                with_0, *others = (np.where(scored[0] <= value, scored[1], 0).mean() for value in (0.0, *thresholds))
                gained.append([100 * (value - with_0) for value in others])
        columns = [f"{np.mean(column):+.2f} | {np.mean(np.array(column) < 0):.0%}" for column in zip(*gained)]
        print(f"| {number} | {' | '.join(columns)} |", flush=True)


def halves() -> dict[str, list[dict]]:
    """Return the questions on the two halves of the articles."""
    with gzip.open(SHARED / "squad-v2.0-dev.json.gz", "rt") as file:
        articles = json.load(file)["data"]
    random.Random(0).shuffle(articles)
    return {"train": flatten_squad(articles[::2]), "dev": flatten_squad(articles[1::2])}


def train(model: str | Path, output: Path, *flags) -> None:
    words = ["--model_name_or_path", model, "--output_dir", output, *FLAGS.split(), *flags]
    words += ["--bf16", "--bf16_full_eval"] * fast_bf16()
    with contextlib.redirect_stdout(sys.stderr):
        run_qa.main(list(map(str, words)))


def scores_of(folder: Path) -> tuple[float, float, float]:
    """Return the F1 of an evaluation, that with threshold 0, and that with the best threshold for its questions."""
    results, table = json.loads((folder / "eval_results.json").read_text()), read_table(folder, "eval")
    refused = np.where(has_answer(table), 0.0, 100.0)
    with_0 = np.where(table.numbers("null_odds") > 0, refused, table.numbers("best_f1")).mean()
    return results["eval_f1"], float(with_0), results["eval_best_f1"]


if __name__ == "__main__":
    main(sys.argv[1])
