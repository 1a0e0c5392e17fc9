"""The memory that `--check` estimates for a device, compared with a training step: a table of models and flags.

    python -m benchmarks.step_memory

PyTorch's MemTracker counts the second step of a training on the CPU: weights, gradients, the optimizer's states, what the
step keeps and what it needs in between. Models have random weights, a vocabulary of 8,000, and layers 256 wide.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

from benchmarks.questions import generated_questions, write_rows


# isort: split
import run_qa
import run_seq2seq_qa  # before what imports PyTorch


# isort: split
import torch
from helpers import memory_of_second_step
from small_tokenizers import make_tokenizers, make_writers
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM

import qa.plan


WIDE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
WRITERS = {
    "t5": {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {"d_model": 256, "max_position_embeddings": 512}
    | {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 1024))}
    | {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
}
MODELS = ["bert", "roberta", "albert", "llama", *WRITERS]
FLAGS = {
    "": "",
    "bf16": "--bf16",
    "gradient checkpointing": "--gradient_checkpointing",
    "2 accumulated": "--gradient_accumulation_steps 2",
    "batch of 1": "--per_device_train_batch_size 1",
}
COMMON = """--do_train --max_steps 2 --max_seq_length 256 --doc_stride 64 --save_strategy no --disable_tqdm True --log_level error
    --overwrite_output_dir --per_device_train_batch_size 8 --max_answer_length 30"""


def main() -> None:
    torch.set_num_threads(1)
    rows = generated_questions(100)
    texts = [row[name] for row in rows for name in ("context", "question")]
    tokenizers, environment = make_tokenizers(texts) | make_writers(texts), os.environ.copy()
    print("| model | flags | estimate, MB | measured, MB | ratio |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(rows, Path(folder) / "train.jsonl")
        for kind in MODELS:
            make_model(kind, tokenizers[kind], Path(folder) / kind)
            for name, flags in FLAGS.items():
                words = [*COMMON.split(), *flags.split(), "--train_file", data, "--output_dir", Path(folder) / "out"]
                script = run_seq2seq_qa if kind in WRITERS else run_qa
                os.environ.clear()  # training arguments leave settings in it
                os.environ.update(environment)
                estimate, measured = compare(script, [*map(str, words), "--model_name_or_path", f"{folder}/{kind}"])
                row = f"{kind} | {name} | {estimate / 1e6:.1f} | {measured / 1e6:.1f} | {estimate / measured:.3f}"
                print(f"| {row} |", flush=True)


def make_model(kind: str, tokenizer, folder: Path) -> None:
    """Write a model of random weights with its tokenizer."""
    sizes = {"vocab_size": 8000, "pad_token_id": tokenizer.pad_token_id or 0} | WRITERS.get(kind, WIDE)
    config = AutoConfig.for_model(kind, **sizes)
    model_class = AutoModelForSeq2SeqLM if kind in WRITERS else AutoModelForQuestionAnswering
    model_class.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def compare(script, words: list[str]) -> tuple[int, int]:
    """Return the bytes of a training step that the check of a command estimates, and those of the step."""
    plans, make_plan = [], qa.plan.make_plan
    qa.plan.make_plan = lambda *args: plans.append(make_plan(*args)) or plans[-1]
    try:
        with contextlib.redirect_stdout(io.StringIO()), memory_of_second_step() as peaks:
            script.main([*words, "--check"])
            script.main(words)
    finally:
        qa.plan.make_plan = make_plan
    return plans[0].memory.total(), peaks[0]


if __name__ == "__main__":
    main()
