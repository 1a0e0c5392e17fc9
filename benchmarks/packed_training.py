"""Training speed of a pretrained BERT, packed compared with padded: some steps on all questions of SQuAD 1.1, in fp32.

    python -m benchmarks.packed_training FOLDER_OF_A_PRETRAINED_BERT

All steps of a setting have one shape, so that a few of them represent an epoch. The settings run in turns, in one process,
after a short first run. docs/measurements.md names a package that contains a real BERT.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.__main__ import keep_memory
from benchmarks.questions import MAX_SEQ_LENGTH, load_questions, write_rows
from benchmarks.throughput import SETTINGS, run


BATCHES = (24, 32)
STEPS = 6
ROUNDS = 3


def main(model: str) -> None:
    rows, source = load_questions("train", 10**6)
    print(f"{len(rows)} questions of {source}, {STEPS} steps, {torch.get_num_threads()} threads, {ROUNDS} rounds\n")
    print(
        "| batch | setting | samples/s of each round | ratio of medians | shapes |\n|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        flags = ["--model_name_or_path", model, "--do_train", "--train_file", write_rows(rows, folder / "train.jsonl")]
        flags += ["--max_seq_length", MAX_SEQ_LENGTH, "--max_steps", STEPS, "--per_device_train_batch_size"]
        run(folder, [*flags, 2, "--max_train_samples", 12])
        for batch in BATCHES:
            results = {name: [] for name in ("padded", "--pack")}
            for _ in range(ROUNDS):
                for name, runs in results.items():
                    runs.append(run(folder, [*flags, batch, *SETTINGS[name]]))
            print_rows(batch, results)


def print_rows(batch: int, results: dict[str, list[dict]]) -> None:
    speeds = {name: [STEPS * batch / result["train_runtime"] for result in runs] for name, runs in results.items()}
    for name, values in speeds.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        ratio = statistics.median(values) / statistics.median(speeds["padded"])
        print(f"| {batch} | {name} | {each} | {ratio:.2f}x | {results[name][0]['shapes']} |", flush=True)


if __name__ == "__main__":
    keep_memory()
    main(sys.argv[1])
