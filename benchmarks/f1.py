"""F1 after the same training, padded, with length buckets and packed, over three seeds; a run on each core at a time.

    python -m benchmarks.f1 FOLDER_OF_A_PRETRAINED_BERT

Random questions of SQuAD in ../shared/data, more on a GPU; in bf16 where that is fast. docs/measurements.md names a package that
contains a real BERT.
"""

import json
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.questions import fast_bf16, load_questions, run_process, write_rows


SETTINGS = {
    "padded to 384": [],
    "--length_buckets 160 256 384": ["--length_buckets", "160", "256", "384"],
    "--pack": ["--pack"],
}
SEEDS = (0, 1, 2)
FLAGS = """--do_train --do_eval --num_train_epochs 2 --per_device_train_batch_size 16 --per_device_eval_batch_size 16
    --learning_rate 3e-4 --warmup_ratio 0.1 --save_strategy no --report_to none --disable_tqdm True --log_level error"""
QUESTIONS = {"train": 4000, "dev": 5000 if torch.cuda.is_available() else 1000}


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(folder)
        flags = ["--model_name_or_path", Path(model).resolve(), *FLAGS.split()]
        flags += ["--bf16", "--bf16_full_eval"] if fast_bf16() else []
        rows = {part: load_questions(part, number)[0] for part, number in QUESTIONS.items()}
        for flag, part in (("--train_file", "train"), ("--validation_file", "dev")):
            flags += [flag, write_rows(rows[part], folder / f"{part}.jsonl")]
        runs = [(name, seed) for name in SETTINGS for seed in SEEDS]
        commands = [
            [
                sys.executable,
                "run_qa.py",
                *flags,
                *SETTINGS[name],
                "--seed",
                seed,
                "--output_dir",
                folder / name / str(seed),
            ]
            for name, seed in runs
        ]
        list(pool.map(lambda command: run_process(command, env=os.environ | {"OMP_NUM_THREADS": "1"}), commands))
        results = {name: [] for name in SETTINGS}
        for name, seed in runs:
            results[name].append(json.loads((folder / name / str(seed) / "eval_results.json").read_text()))
    train, dev = map(len, rows.values())
    precision = "bf16" if fast_bf16() else "fp32"
    print(f"{train} questions of SQuAD, 2 epochs, batches of 16, {precision}; {dev} of its dev part; seeds {SEEDS}\n")
    print("| setting | F1 of the seeds | mean F1 | mean EM |\n|---|---|---|---|")
    for name, seeds in results.items():
        f1, exact = ([result[key] for result in seeds] for key in ("eval_f1", "eval_exact_match"))
        each = ", ".join(f"{value:.2f}" for value in f1)
        print(f"| {name} | {each} | {statistics.mean(f1):.2f} | {statistics.mean(exact):.2f} |")


if __name__ == "__main__":
    main(sys.argv[1])
