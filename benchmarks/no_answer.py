"""Where a causal model says "no answer": at the first token of a window, or at a special token that ends it.

    python -m benchmarks.no_answer [FOLDER_OF_A_PRETRAINED_BERT]

Made-up questions, half of them about a thing that the context does not mention, train decoders of 2 layers, 64 wide,
from random weights. Other contexts score them. With a folder, the BERT in it learns SQuAD 2.0 with a causal mask:
first a part of SQuAD 1.1 train, then the articles of `squad-v2.0-dev.json.gz` except three, which score it.
docs/measurements.md names a package that contains a real BERT.
"""

import contextlib
import gzip
import json
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.questions import SHARED, fast_bf16, load_questions, write_rows


# isort: split
import transformers
from small_tokenizers import make_tokenizers

import run_qa
import utils_qa
from qa.windows import read_template


PLACES = ("first", "last")
DECODERS = {"llama": "llama", "qwen3": "qwen2"}  # with a BOS token, and without any special token of its own
SEEDS = range(6)
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
}
MADE_UP_FLAGS = """--num_train_epochs 3 --learning_rate 4e-3 --warmup_ratio 0.05 --lr_scheduler_type cosine
    --per_device_train_batch_size 64"""
SQUAD_FLAGS = "--per_device_train_batch_size 16 --num_train_epochs 1 --warmup_ratio 0.1 --length_buckets auto 4"
SCORED_ARTICLES = 3
NAMES = "Anna Bert Carl Dora Emil Fred".split()
THINGS = "boat lamp car coat bag hat bike book".split()
SCORES = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "best_exact", "best_f1")


def main(model: str | None = None) -> None:
    print(f"| model | seed | no answer | {' | '.join(SCORES)} |\n|{'---|' * (len(SCORES) + 3)}")
    with tempfile.TemporaryDirectory() as folder:
        score_made_up(Path(folder))
        if model is not None:
            score_squad(Path(folder), Path(model))


def score_made_up(folder: Path) -> None:
    rows = {part: made_up_rows(count, part) for part, count in (("train", 2000), ("dev", 200))}
    files = [write_rows(rows[part], folder / f"{part}.jsonl") for part in rows]
    tokenizers = make_tokenizers([row["context"] for row in rows["train"]])
    for kind, tokenizer in DECODERS.items():
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizers[tokenizer]), head_dim=16, **SIZES)
        for seed in SEEDS:
            transformers.set_seed(seed)
            transformers.AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder / "decoder")
            tokenizers[tokenizer].save_pretrained(folder / "decoder")
            for place in PLACES:
                flags = ["--pad_to_max_length", "False", "--seed", seed, *MADE_UP_FLAGS.split()]
                print_scores(kind, seed, place, train(folder / "decoder", folder / "out", place, *files, flags))


def made_up_rows(contexts: int, seed: str) -> list[dict]:
    """Return two questions on each of `contexts` contexts, one of them about something that the context omits."""
    draw, rows = random.Random(seed), []
    for _ in range(contexts):
        *present, absent = draw.sample(THINGS, 5)
        context = f"In the shed of {draw.choice(NAMES)} there are a {present[0]}, a {present[1]}, a {present[2]} and a {present[3]}."
        for thing in (draw.choice(present), absent):
            answers = {"text": [], "answer_start": []}
            if thing in present:
                answers = {"text": [thing], "answer_start": [context.index(thing)]}
            rows.append(
                {"id": str(len(rows)), "context": context, "question": f"Is there a {thing}?", "answers": answers}
            )
    return rows


def score_squad(folder: Path, model: Path) -> None:
    shutil.copytree(model, folder / "causal")
    config = json.loads((folder / "causal" / "config.json").read_text()) | {"is_decoder": True}
    (folder / "causal" / "config.json").write_text(json.dumps(config))
    with gzip.open(SHARED / "squad-v2.0-dev.json.gz", "rt") as file:
        articles = json.load(file)["data"]
    random.Random(0).shuffle(articles)
    files = [folder / "train.json", folder / "dev.json"]
    for path, part in zip(files, (articles[SCORED_ARTICLES:], articles[:SCORED_ARTICLES])):
        path.write_text(json.dumps({"version": "v2.0", "data": part}))
    first = write_rows(load_questions("train", 4000)[0], folder / "first.jsonl")
    flags = SQUAD_FLAGS.split() + ["--bf16", "--bf16_full_eval"] * fast_bf16()
    train(folder / "causal", folder / "start", "last", first, files[1], [*flags, "--learning_rate", "3e-4"])
    for place in PLACES:
        scores = train(folder / "start", folder / "out", place, *files, [*flags, "--learning_rate", "2e-4"])
        print_scores(model.name, 42, place, scores)


def train(model: Path, output: Path, place: str, train_file: Path, dev_file: Path, flags: list) -> dict:
    """Return the scores of a run of the script, whose model is left in `output`."""
    every = [
        "--model_name_or_path",
        model,
        "--output_dir",
        output,
        "--overwrite_output_dir",
        "--do_train",
        "--do_eval",
    ]
    every += ["--train_file", train_file, "--validation_file", dev_file, "--version_2_with_negative"]
    every += ["--per_device_eval_batch_size", "16", "--save_strategy", "no"]
    every += ["--report_to", "none", "--disable_tqdm", "True", "--log_level", "error"]
    with no_answer_at(place), contextlib.redirect_stdout(sys.stderr):
        run_qa.main(list(map(str, [*every, *flags])))
    return json.loads((output / "eval_results.json").read_text())


@contextlib.contextmanager
def no_answer_at(place: str):
    """Let "no answer" be at the first position: CLS, BOS, or the question's first word; else as the script has it."""
    if place == "first":
        utils_qa.read_template = lambda tokenizer, causal: replace(read_template(tokenizer), context_first=False)
    try:
        yield
    finally:
        utils_qa.read_template = read_template


def print_scores(model: str, seed: int, place: str, scores: dict) -> None:
    values = " | ".join(f"{scores[f'eval_{name}']:.1f}" for name in SCORES)
    print(f"| {model} | {seed} | {place} | {values} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
