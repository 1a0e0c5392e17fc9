"""Training and evaluation speed of run_qa.py, padded compared with length buckets and packing, from its own results.

A BERT of 6 layers, 384 wide, on a GPU BERT-base, from random weights, on random questions of SQuAD. The settings run in
turns, in one process, after a short first run; a ratio is that of medians. Samples per second are those of the whole training
and evaluation, without the rows that fill a batch up: the first steps hold more of the long buckets than the others do, so
none is omitted. Both runtimes end with a copy from the device, which waits for everything before it.
"""

import contextlib
import json
import logging
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.questions import MAX_SEQ_LENGTH, fast_bf16, load_questions, make_model, write_rows


# isort: split
import run_qa


SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BUCKETS = (["160", "256", "384"], ["auto", "6"], ["auto", "12"])
SETTINGS = {"padded": []} | {f"--length_buckets {' '.join(words)}": ["--length_buckets", *words] for words in BUCKETS}
SETTINGS |= {"--pack": ["--pack"]}
QUIET = "--save_strategy no --report_to none --disable_tqdm True --log_level error".split()


def sizes(precision: str, full: bool) -> tuple[int, int, int, int]:
    """Return the questions of the training and of the evaluation, the batch size and the rounds.

    The fewer steps there are, the more the features count that move to the next bucket. Small batches waste rows in packing,
    and keep a GPU waiting for its next kernel.
    """
    if torch.cuda.is_available():
        return (25_600, 9600, 128, 1) if precision == "bf16" else (1920, 3200, 32, 1)
    if precision == "bf16" and not fast_bf16():  # it takes ten times as long
        return 40, 40, 2, 1
    return (480, 576, 24, 2) if full else (96, 96, 8, 1)


def bench(full: bool) -> None:
    """bf16 in full, or on a GPU."""
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    head = "| precision | setting | training samples/s | ratio | padding | evaluation samples/s | ratio | shapes |"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_model(folder / "model", load_questions("train", 8000)[0], **{} if gpu else SIZES)
        for precision in ("fp32", "bf16") if full or gpu else ("fp32",):
            *questions, batch, rounds = sizes(precision, full)
            flags = ["--model_name_or_path", folder / "model", "--do_train", "--do_eval", "--num_train_epochs", "1"]
            flags += ["--bf16", "--bf16_full_eval"] if precision == "bf16" else []
            sources = []
            for flag, part, number in zip(("--train_file", "--validation_file"), ("train", "dev"), questions):
                rows, source = load_questions(part, number)
                flags += [flag, write_rows(rows, folder / f"{part}.jsonl")]
                sources.append(f"{number} of {source}")
            flags += ["--per_device_train_batch_size", batch, "--per_device_eval_batch_size", batch]
            flags += ["--max_seq_length", MAX_SEQ_LENGTH]
            print(f"\n{', '.join(sources)}; batches of {batch}; {where}; median of {rounds}\n")
            print(head + "\n|---|---|---|---|---|---|---|---|", flush=True)
            run(folder, [*flags, "--max_train_samples", 2 * batch, "--max_eval_samples", 2 * batch])
            results = {name: [] for name in SETTINGS}
            for _ in range(rounds):
                for name, words in SETTINGS.items():
                    results[name].append(run(folder, [*flags, *words]))
                    print(f"{precision}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
            print_rows(precision, results)


def run(folder: Path, flags: list) -> dict:
    """Run the script once; return its results, and the number of shapes."""
    logging.disable(logging.WARNING)
    shapes = Shapes()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(shapes)
    with contextlib.redirect_stdout(None):
        run_qa.main([*map(str, flags), *QUIET, "--overwrite_output_dir", "--output_dir", str(folder / "out")])
    hook.remove()
    return json.loads((folder / "out" / "all_results.json").read_text()) | {"shapes": len(shapes.seen)}


class Shapes:
    """Notes the shapes of the ids that embeddings are asked for, apart for training and evaluation."""

    def __init__(self):
        self.seen = set()

    def __call__(self, module, inputs) -> None:
        if isinstance(module, torch.nn.Embedding) and inputs and inputs[0].dim() == 2 and len(inputs[0]) > 1:
            self.seen.add((module.training, tuple(inputs[0].shape)))


def print_rows(precision: str, results: dict[str, list[dict]]) -> None:
    speeds = {
        name: [
            statistics.median(r[f"{part}_samples"] / r[f"{part}_runtime"] for r in runs) for part in ("train", "eval")
        ]
        for name, runs in results.items()
    }
    for name, (train, evaluation) in speeds.items():
        padding, shapes = (results[name][0][key] for key in ("train_padding_share", "shapes"))
        ratios = train / speeds["padded"][0], evaluation / speeds["padded"][1]
        print(
            f"| {precision} | {name} | {train:.2f} | {ratios[0]:.2f}x | {padding:.0%} | {evaluation:.2f} | {ratios[1]:.2f}x | "
            f"{shapes} |",
            flush=True,
        )
