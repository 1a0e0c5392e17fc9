"""F1 with the threshold of `--tune_null_threshold`, compared with threshold 0, over three seeds.

    python -m benchmarks.tuning FOLDER_OF_A_PRETRAINED_BERT

The BERT learns a part of SQuAD 1.1 train first. Then questions on half of the articles of `squad-v2.0-dev.json.gz` train it, and
questions on the other half score it. Of the training contexts 30 % are held out to tune. It takes 20 minutes of a core.
docs/measurements.md names a package that contains a real BERT.
"""

import contextlib
import gzip
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.questions import SHARED, fast_bf16, load_questions, write_rows


# isort: split
import run_qa
from qa.answer_files import read_table
from qa.curves import threshold_curve
from qa.reading import flatten_squad
from qa.settings import read_settings


SEEDS = (0, 1, 2)
FIRST = {"questions": 2000, "characters": 700}  # of SQuAD 1.1: their number, and the longest context
QUESTIONS = {"train": 1200, "dev": 800}
SHARE = 0.3
FLAGS = """--do_train --num_train_epochs 1 --warmup_ratio 0.1 --per_device_train_batch_size 16
    --per_device_eval_batch_size 64 --max_seq_length 192 --doc_stride 64 --pad_to_max_length False --group_by_length --save_strategy no
    --eval_report false --report_to none --disable_tqdm True --log_level error"""


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), model)


def measure(folder: Path, model: str) -> None:
    rows = load_questions("train", 10 * FIRST["questions"])[0]
    first = [row for row in rows if len(row["context"]) <= FIRST["characters"]][: FIRST["questions"]]
    train_file, dev_file = (write_rows(rows, folder / f"{part}.jsonl") for part, rows in halves().items())
    first_file = write_rows(first, folder / "first.jsonl")
    train(model, folder / "start", ["--train_file", first_file, "--learning_rate", "3e-4"])
    print(
        "| seed | threshold | temperature | F1 | F1 with threshold 0 | best F1 |\n|---|---|---|---|---|---|",
        flush=True,
    )
    found = []
    for seed in SEEDS:
        flags = ["--do_eval", "--train_file", train_file, "--validation_file", dev_file, "--version_2_with_negative"]
        flags += ["--tune_null_threshold", SHARE, "--seed", seed, "--learning_rate", "2e-4"]
        train(folder / "start", folder / f"seed_{seed}", flags)
        found.append(scores_of(folder / f"seed_{seed}"))
        settings = read_settings(folder / f"seed_{seed}")
        numbers = " | ".join(f"{value:.2f}" for value in found[-1])
        print(
            f"| {seed} | {settings.null_score_diff_threshold:.2f} | {settings.temperature:.2f} | {numbers} |",
            flush=True,
        )
    means = " | ".join(f"{statistics.mean(column):.2f}" for column in zip(*found))
    print(f"| mean | | | {means} |\n\nTuned on {settings.tuned_on} questions in each run.", flush=True)


def halves() -> dict[str, list[dict]]:
    """Return random questions on the two halves of the articles."""
    with gzip.open(SHARED / "squad-v2.0-dev.json.gz", "rt") as file:
        articles = json.load(file)["data"]
    draw = random.Random(0)
    draw.shuffle(articles)
    parts = {"train": flatten_squad(articles[::2]), "dev": flatten_squad(articles[1::2])}
    return {part: draw.sample(rows, QUESTIONS[part]) for part, rows in parts.items()}


def train(model: str | Path, output: Path, flags: list) -> None:
    every = ["--model_name_or_path", model, "--output_dir", output, *FLAGS.split(), *flags]
    every += ["--bf16", "--bf16_full_eval"] * fast_bf16()
    with contextlib.redirect_stdout(sys.stderr):
        run_qa.main(list(map(str, every)))


def scores_of(folder: Path) -> tuple[float, float, float]:
    """Return the F1 of an evaluation, that with threshold 0, and that with the best threshold for its questions."""
    curve = threshold_curve(read_table(folder, "eval"), 0.0)["f1"]
    return (
        json.loads((folder / "eval_results.json").read_text())["eval_f1"],
        curve["chosen"]["value"],
        curve["best"]["value"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
