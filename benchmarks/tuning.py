"""F1 with the threshold of `--tune_null_threshold`, compared with threshold 0, over three seeds.

    python -m benchmarks.tuning FOLDER_OF_A_MODEL [TITLE ...]

The model marks answers already, see docs/measurements.md. Random questions on half of the articles of `squad-v2.0-dev.json.gz`
train it, and others on the other half score it: of all articles, or of those with the titles. Of the training contexts 35 %
are held out to tune.
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


SEEDS = (0, 1, 2)
QUESTIONS = {"train": 640, "dev": 400}
SHARE = 0.35
FLAGS = """--do_train --do_eval --version_2_with_negative --learning_rate 1e-4 --num_train_epochs 1 --warmup_ratio 0.1
    --per_device_train_batch_size 16 --per_device_eval_batch_size 64 --max_seq_length 192 --doc_stride 64
    --pad_to_max_length False --group_by_length --save_strategy no --eval_report false --report_to none
    --disable_tqdm True --log_level error"""


def main(model: str, *titles: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), model, titles)


def measure(folder: Path, model: str, titles: tuple[str, ...]) -> None:
    train_file, dev_file = (write_rows(rows, folder / f"{part}.jsonl") for part, rows in halves(titles).items())
    print(
        "| seed | threshold | temperature | F1 | F1 with threshold 0 | best F1 |\n|---|---|---|---|---|---|",
        flush=True,
    )
    found = []
    for seed in SEEDS:
        output = folder / f"seed_{seed}"
        train(model, output, ["--train_file", train_file, "--validation_file", dev_file, "--seed", seed])
        found.append(scores_of(output))
        settings, numbers = read_settings(output), " | ".join(f"{value:.2f}" for value in found[-1])
        print(
            f"| {seed} | {settings.null_score_diff_threshold:.2f} | {settings.temperature:.2f} | {numbers} |",
            flush=True,
        )
    means = " | ".join(f"{statistics.mean(column):.2f}" for column in zip(*found))
    print(f"| mean | | | {means} |\n\nTuned on {settings.tuned_on} questions with the last seed.", flush=True)


def halves(titles: tuple[str, ...]) -> dict[str, list[dict]]:
    """Return random questions on the two halves of the articles."""
    with gzip.open(SHARED / "squad-v2.0-dev.json.gz", "rt") as file:
        articles = [article for article in json.load(file)["data"] if not titles or article["title"] in titles]
    draw = random.Random(0)
    draw.shuffle(articles)
    parts = {"train": flatten_squad(articles[::2]), "dev": flatten_squad(articles[1::2])}
    return {part: draw.sample(rows, QUESTIONS[part]) for part, rows in parts.items()}


def train(model: str | Path, output: Path, flags: list) -> None:
    every = [
        "--model_name_or_path",
        model,
        "--output_dir",
        output,
        "--tune_null_threshold",
        SHARE,
        *FLAGS.split(),
        *flags,
    ]
    every += ["--bf16", "--bf16_full_eval"] * fast_bf16()
    with contextlib.redirect_stdout(sys.stderr):
        run_qa.main(list(map(str, every)))


def scores_of(folder: Path) -> tuple[float, float, float]:
    """Return the F1 of an evaluation, that with threshold 0, and that with the best threshold for its questions."""
    results, table = json.loads((folder / "eval_results.json").read_text()), read_table(folder, "eval")
    refused = np.where(has_answer(table), 0.0, 100.0)
    with_0 = np.where(table.numbers("null_odds") > 0, refused, table.numbers("best_f1")).mean()
    return results["eval_f1"], float(with_0), results["eval_best_f1"]


if __name__ == "__main__":
    main(*sys.argv[1:])
