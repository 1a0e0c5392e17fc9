"""CPU seconds from the start of a process to the first training step, compared with bare imports."""

import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.questions import ROOT, SHARED, TINY, load_questions, make_model, run_process, write_rows


IMPORTS = "import torch; from transformers import Trainer"


def bench(full: bool) -> None:
    """Of a tiny model on 64 questions; in full also on all questions of SQuAD 1.1 train."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows, _ = load_questions("train", 64)
        make_model(folder / "model", rows, **TINY)
        files = {"64 questions": write_rows(rows, folder / "train.jsonl")}
        if full and (SHARED / "squad-v1.1-train.json.gz").is_file():
            files["78,795 questions of SQuAD 1.1 train"] = SHARED / "squad-v1.1-train.json.gz"
        script = [str(ROOT / "benchmarks" / "first_step.py"), str(folder / "model")]
        commands = {"torch and transformers' Trainer imported": ["-c", IMPORTS]}
        commands |= {f"first step done, {name}": [*script, str(path)] for name, path in files.items()}
        seconds = {name: [] for name in commands}
        for _ in range(5):
            for name, command in commands.items():
                seconds[name].append(cpu_seconds(command))
    print(f"\n| start of a process to                                  | CPU s |\n|{'-' * 56}|{'-' * 7}|")
    for name, column in seconds.items():
        print(f"| {name:<54} | {statistics.median(column):5.2f} |", flush=True)


def cpu_seconds(arguments: list[str]) -> float:
    """User and system CPU seconds of a Python process; it runs on one thread, or idle ones would count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    run_process([sys.executable, *arguments], env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
