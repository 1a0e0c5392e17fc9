"""Training and evaluation speed of run_qa.py, padded beside length buckets, as its own results tell.

A BERT of 6 layers, 384 wide, from random weights, on random questions of SQuAD. The settings run in turns, in one process;
a ratio is that of medians. Samples per second of the steady state: without the first steps, evaluation and saving.
"""

import contextlib
import json
import logging
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.questions import MAX_SEQ_LENGTH, load_questions, make_model, write_rows


# isort: split
import run_qa


SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BUCKETS = {
    "3 buckets, 160 256 384": ["160", "256", "384"],
    "4 buckets, auto 4": ["auto", "4"],
    "6 buckets, auto 6": ["auto", "6"],
}
SETTINGS = {"padded": [], **{name: ["--length_buckets", *words] for name, words in BUCKETS.items()}}
WARMUP_STEPS = 2


def bench(full: bool) -> None:
    """On a GPU 16 times the questions, in batches of 32."""
    gpu = torch.cuda.is_available()
    train, dev, rounds = (288, 288, 3) if full else (128, 128, 1)
    train, dev = (16 * train, 16 * dev) if gpu else (train, dev)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows, source = load_questions("train", train)
        dev_rows, _ = load_questions("dev", dev)
        make_model(folder / "model", load_questions("train", 8000)[0], **SIZES)
        flags = ["--model_name_or_path", folder / "model", "--do_train", "--do_eval", "--num_train_epochs", "1"]
        flags += ["--train_file", write_rows(rows, folder / "train.jsonl")]
        flags += ["--validation_file", write_rows(dev_rows, folder / "dev.jsonl")]
        flags += ["--per_device_train_batch_size", 32 if gpu else 8, "--per_device_eval_batch_size", 32 if gpu else 8]
        flags += ["--throughput_warmup_steps", WARMUP_STEPS, "--save_strategy", "no", "--report_to", "none"]
        flags += ["--disable_tqdm", "True", "--log_level", "error", "--max_seq_length", MAX_SEQ_LENGTH]
        where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
        print(
            f"\n{len(rows)} questions of {source} to train, {len(dev_rows)} to evaluate; {where}; median of {rounds}\n"
        )
        print("| precision | setting | training samples/s | ratio | padding | evaluation samples/s | ratio | shapes |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for precision in ("fp32", "bf16") if full or gpu else ("fp32",):
            more = ["--bf16", "--bf16_full_eval"] if precision == "bf16" else []
            results = {name: [] for name in SETTINGS}
            for _ in range(rounds):
                for name, words in SETTINGS.items():
                    results[name].append(run(folder, [*flags, *more, *words]))
            print_rows(precision, results)


def run(folder: Path, flags: list) -> dict:
    """One run of the script; its results."""
    logging.disable(logging.WARNING)
    shapes = Shapes()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(shapes, always_call=False)
    with contextlib.redirect_stdout(None):
        run_qa.main([*map(str, flags), "--overwrite_output_dir", "--output_dir", str(folder / "out")])
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
    keys = ("train_steady_samples_per_second", "eval_samples_per_second", "train_padding_share", "shapes")
    medians = {name: [statistics.median(run[key] for run in runs) for key in keys] for name, runs in results.items()}
    for name, (train, evaluation, padding, shapes) in medians.items():
        ratios = train / medians["padded"][0], evaluation / medians["padded"][1]
        print(
            f"| {precision} | {name} | {train:.2f} | {ratios[0]:.2f}x | {padding:.0%} | {evaluation:.2f} | {ratios[1]:.2f}x | "
            f"{shapes:.0f} |",
            flush=True,
        )
