"""CPU seconds of the scripts' start: `--help`, a misspelt flag, the first training step, a whole tiny run; and of bare imports."""

import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.questions import ROOT, SHARED, TINY, load_questions, make_model, run_process, write_rows


IMPORTS = "import torch; from transformers import Trainer"
MISSPELT = "--do_trian"


def bench(full: bool) -> None:
    """Of a tiny model on 64 questions; in full also on all questions of SQuAD 1.1 train."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows, _ = load_questions("train", 64)
        make_model(folder / "model", rows, **TINY)
        files = {"64 questions": write_rows(rows, folder / "train.jsonl")}
        if full and (SHARED / "squad-v1.1-train.json.gz").is_file():
            files["78,795 questions of SQuAD 1.1 train"] = SHARED / "squad-v1.1-train.json.gz"
        script, first_step = str(ROOT / "run_qa.py"), str(ROOT / "benchmarks" / "first_step.py")
        commands = {"torch and transformers' Trainer imported": ["-c", IMPORTS]}
        commands |= {"--help": [script, "--help"], "a misspelt flag reported": [script, MISSPELT]}
        commands |= {
            f"first step done, {name}": [first_step, str(folder / "model"), str(path)] for name, path in files.items()
        }
        commands["end of a run, 4 steps and 64 questions scored"] = [script, *tiny_run(folder)]
        seconds = {name: [] for name in commands}
        for _ in range(5):
            for name, command in commands.items():
                seconds[name].append(cpu_seconds(command))
    print(f"\n| start of a process to                                  | CPU s |\n|{'-' * 56}|{'-' * 7}|")
    for name, column in seconds.items():
        print(f"| {name:<54} | {statistics.median(column):5.2f} |", flush=True)


def tiny_run(folder: Path) -> list[str]:
    """Return the flags of a training of four steps and an evaluation."""
    rows = str(folder / "train.jsonl")
    flags = [
        "--model_name_or_path",
        str(folder / "model"),
        "--train_file",
        rows,
        "--validation_file",
        rows,
        "--do_train",
    ]
    return [*flags, "--do_eval", "--max_steps", "4", "--output_dir", str(folder / "run"), "--overwrite_output_dir"]


def cpu_seconds(arguments: list[str]) -> float:
    """User and system CPU seconds of a Python process; it runs on one thread, or idle ones would count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    run_process([sys.executable, *arguments], status=2 if MISSPELT in arguments else 0, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
