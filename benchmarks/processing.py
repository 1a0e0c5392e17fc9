"""Features, answers and metrics, compared with the plain oracle of the tests.

Each row runs both in turns, in one process, on the same data, and compares the medians of their seconds, as a watch shows
them and of CPU time (tokenizing uses all cores).
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks.questions import DOC_STRIDE, MAX_SEQ_LENGTH, load_questions, make_tokenizer


# isort: split
import oracle  # of the tests

import utils_qa
from qa.metrics import load_metric


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu_start


def compare(name: str, plain: Callable, ours: Callable, rounds: int = 5) -> None:
    """Print one row: median wall seconds of both, run in turns, their ratio, and the ratio of the CPU seconds."""
    gc.collect()
    gc.freeze()  # the garbage collector shall not go through the oracle's millions of tuples while our code runs
    seconds = [(*seconds_of(plain), *seconds_of(ours)) for _ in range(rounds)]
    slow, slow_cpu, fast, fast_cpu = (statistics.median(column) for column in zip(*seconds))
    print(
        f"| {name:<32} | {slow:8.3f} | {fast:8.3f} | {slow / fast:6.1f}x | {slow_cpu / fast_cpu:9.1f}x |", flush=True
    )


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


def bench(full: bool) -> None:
    """Features, answers with their files, and metrics."""
    rows, source = load_questions("dev", 4935)
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
