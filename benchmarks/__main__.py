"""Side-by-side measurements, printed as tables: `make bench`, or `python -m benchmarks`.

Each row runs the plain oracle of the tests and the project's code in turns, in one process, on the same data, and compares
the medians of their seconds, as a watch shows them and of CPU time (tokenizing uses all cores). Data: SQuAD 1.1 dev of ../shared/data where it
is present, else questions of the quickstart's generator.
"""

import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "quickstart")]

import corpus  # noqa: E402
import numpy as np  # noqa: E402
import oracle  # noqa: E402
from tokenizers import BertWordPieceTokenizer  # noqa: E402
from transformers import BertTokenizerFast  # noqa: E402

import data_qa  # noqa: E402
import utils_qa  # noqa: E402
from arguments_qa import DataArguments  # noqa: E402
from metrics_qa import load_metric  # noqa: E402


SHARED_DEV = ROOT.parent / "shared" / "data" / "squad-v1.1-dev.json.gz"
MAX_SEQ_LENGTH, DOC_STRIDE = 384, 128


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu_start


def compare(name: str, plain: Callable, ours: Callable, rounds: int = 5) -> None:
    """Prints one row: median wall seconds of both, run in turns, their ratio, and the ratio of the CPU seconds."""
    gc.collect()
    gc.freeze()  # the garbage collector shall not go through the oracle's millions of tuples while our code runs
    seconds = [(*seconds_of(plain), *seconds_of(ours)) for _ in range(rounds)]
    slow, slow_cpu, fast, fast_cpu = (statistics.median(column) for column in zip(*seconds))
    print(
        f"| {name:<32} | {slow:8.3f} | {fast:8.3f} | {slow / fast:6.1f}x | {slow_cpu / fast_cpu:9.1f}x |", flush=True
    )


def load_questions() -> tuple[list[dict], str]:
    """Rows to measure with, and where they are from."""
    if SHARED_DEV.is_file():
        raw, source = data_qa.read_file(SHARED_DEV), SHARED_DEV.name
    else:
        raw, source = data_qa.flatten_squad(corpus.make_part("dev", 5000, seed=0)["data"]), "generated questions"
    return data_qa.checked_rows(raw, source, DataArguments(), needs_answers=True), source


def make_tokenizer(rows: list[dict]) -> BertTokenizerFast:
    """A WordPiece tokenizer of at most 20,000 pieces, trained on the contexts."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    contexts = dict.fromkeys(row["context"] for row in rows)
    tokenizer.train_from_iterator(contexts, vocab_size=20_000, show_progress=False)
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer)


def make_logits(features: utils_qa.Features, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits like those of a good model (EM about 80, BERT-base on SQuAD 1.1): low outside the context, noise inside, and
    a peak with slopes, in nine of ten windows on the answer and else on a span of up to five tokens."""
    rng = np.random.default_rng(seed)
    begin, length = features.context_begin(), features.last - features.first
    place = np.arange(MAX_SEQ_LENGTH) - begin[:, None]
    context = (place >= 0) & (place < length[:, None])
    right = rng.random(len(features)) < 0.9
    guess = rng.integers(0, length)
    logits = []
    for side, further in enumerate((0, rng.integers(0, 5, len(features)))):
        peak = np.where(right, features.labels[:, side] - begin, np.minimum(guess + further, length - 1))
        values = rng.normal(scale=1.5, size=context.shape) + np.where(context, -3, -9)
        values += 12 * np.exp(-np.abs(place - peak[:, None]) / 3)
        logits.append(values.astype(np.float32))
    return tuple(logits)


def write_plain(rows, listed, logits, folder):
    return oracle.write_answers(rows, listed, logits, output_dir=folder, prefix="eval")[0]


def write_ours(rows, features, logits, folder):
    return utils_qa.postprocess_qa_predictions(rows, features, logits, output_dir=folder, prefix="eval")


def bench_processing() -> None:
    """Features, answers with their files, and metrics."""
    rows, source = load_questions()
    tokenizer = make_tokenizer(rows)
    questions, contexts, answers = ([row[name] for row in rows] for name in ("question", "context", "answers"))
    features = utils_qa.prepare_features(rows, tokenizer, MAX_SEQ_LENGTH, DOC_STRIDE)
    listed = [features.as_dict(index) for index in range(len(features))]
    logits = make_logits(features)
    print(
        f"\n{source}: {len(rows)} questions, {len(features)} features of at most {MAX_SEQ_LENGTH} tokens, stride {DOC_STRIDE}\n"
    )
    print(f"| {'':<32} | oracle s |   ours s |   ratio | ratio, CPU |")
    print(f"|{'-' * 34}|{'-' * 10}|{'-' * 10}|{'-' * 9}|{'-' * 12}|")
    with tempfile.TemporaryDirectory() as folder:
        texts = write_ours(rows, features, logits, folder)
    golds = {row["id"]: row["answers"]["text"] for row in rows}
    predictions = [{"id": name, "prediction_text": text} for name, text in texts.items()]
    references = [{"id": row["id"], "answers": row["answers"]} for row in rows]
    metric = load_metric()
    exact = metric.compute(predictions=predictions, references=references)["exact_match"]
    compare(
        f"metrics (EM of the answers {exact:.1f})",
        lambda: oracle.squad_v1(texts, golds),
        lambda: metric.compute(predictions=predictions, references=references),
        rounds=15,
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(
            "answers with their files",
            lambda: write_plain(rows, listed, logits, folder),
            lambda: write_ours(rows, features, logits, folder),
        )
    compare(
        "features with labels",
        lambda: oracle.features(tokenizer, questions, contexts, answers, MAX_SEQ_LENGTH, DOC_STRIDE),
        lambda: utils_qa.prepare_features(rows, tokenizer, MAX_SEQ_LENGTH, DOC_STRIDE),
    )


IMPORTS = "import torch; from transformers import Trainer"


def bench_start() -> None:
    """CPU seconds from the start of a process to the first training step of a tiny model, beside bare imports."""
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_model(folder)
        script = [str(ROOT / "benchmarks" / "first_step.py"), folder]
        seconds = {name: [] for name in ("imports", "script")}
        for _ in range(5):
            seconds["imports"].append(process_cpu_seconds(["-c", IMPORTS]))
            seconds["script"].append(process_cpu_seconds(script))
    imports, script = (statistics.median(column) for column in seconds.values())
    print(f"\n| start of a process to                                  | CPU s |\n|{'-' * 56}|{'-' * 7}|")
    print(f"| torch and transformers' Trainer imported               | {imports:5.2f} |")
    print(f"| first training step of run_qa.py done, tiny model      | {script:5.2f} |")


def make_tiny_model(folder: str) -> None:
    """A model of 2 layers and a training file of 64 questions."""
    import json

    from transformers import BertConfig, BertForQuestionAnswering

    squad = corpus.make_part("train", 64, seed=0)
    Path(folder, "train.json").write_text(json.dumps(squad))
    tokenizer = make_tokenizer(data_qa.flatten_squad(squad["data"]))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def process_cpu_seconds(arguments: list[str]) -> float:
    """User and system CPU seconds of a Python process; it runs on one thread, or idle ones would count."""
    import os
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *arguments], check=True, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}")
    bench_processing()
    bench_start()


if __name__ == "__main__":
    main()
