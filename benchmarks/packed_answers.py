"""Answers of a packed evaluation compared with those of a padded one: all questions of SQuAD 1.1 dev, in fp32.

    python -m benchmarks.packed_answers FOLDER_OF_A_TRAINED_MODEL

Rounding differs between the two, so that two answers with next to the same score can change places. An answer that differs
is a near tie if the padded evaluation scores both answers within NEAR of each other. A score is a sum of two logits.
"""

import contextlib
import json
import logging
import sys
import tempfile
from pathlib import Path

from benchmarks.questions import DOC_STRIDE, MAX_SEQ_LENGTH, load_questions, write_rows


# isort: split
import run_qa


NEAR = 1e-3
SETTINGS = {"padded": [], "packed": ["--pack"]}


def main(model: str) -> None:
    rows, source = load_questions("dev", 10**6)
    with tempfile.TemporaryDirectory() as folder:
        file = write_rows(rows, Path(folder) / "dev.jsonl")
        padded, packed = (evaluate(model, file, Path(folder) / name, *words) for name, words in SETTINGS.items())
    differences = [
        difference(padded[name], packed[name]) for name in padded if best(padded[name]) != best(packed[name])
    ]
    near = sum(value <= NEAR for value in differences)
    apart = max(abs(score(padded[name][0]) - score(packed[name][0])) for name in padded)
    print(
        f"{len(padded)} questions of {source}: {len(padded) - len(differences)} answers are equal, {near} are near ties"
    )
    print(f"(scores within {NEAR:g}), {len(differences) - near} others. The best scores differ by up to {apart:.1e}.")


def evaluate(model: str, file: Path, output: Path, *words: str) -> dict[str, list[dict]]:
    """Return the best candidates of each question, best first; report EM, F1 and the speed on stderr."""
    flags = ["--model_name_or_path", model, "--do_eval", "--validation_file", file, "--output_dir", output, *words]
    flags += ["--max_seq_length", MAX_SEQ_LENGTH, "--doc_stride", DOC_STRIDE, "--per_device_eval_batch_size", 32]
    flags += ["--eval_report", "false", "--log_level", "error"]
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        results = run_qa.main([*map(str, flags)])
    print(" ".join(words) or "padded", {name: results[f"eval_{name}"] for name in KEYS}, file=sys.stderr, flush=True)
    return json.loads((output / "eval_nbest_predictions.json").read_text())


KEYS = ("exact_match", "f1", "loss", "samples_per_second")


def best(candidates: list[dict]) -> str:
    return candidates[0]["text"]


def score(candidate: dict) -> float:
    return candidate["start_logit"] + candidate["end_logit"]


def difference(padded: list[dict], packed: list[dict]) -> float:
    """Return how much lower the padded evaluation scores the packed one's answer than its own; infinite if not among its best."""
    scores = [score(candidate) for candidate in padded if candidate["text"] == best(packed)]
    return score(padded[0]) - max(scores, default=float("-inf"))


if __name__ == "__main__":
    main(sys.argv[1])
