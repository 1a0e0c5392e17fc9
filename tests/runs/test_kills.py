"""Kills and full disks at every change of a file: the same command goes on, to the same weights, scores and answers.

kills.c counts the changes of a process below its output folder, and kills it at a chosen one; kills_run.py runs the jobs.
`make test` takes a sample of the plain job; `make fuzz` (FUZZ=1) takes every change of each job, and kills at any time.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


FUZZ = bool(os.environ.get("FUZZ"))
SAMPLE = {"before": 28, "half": 12, "full": 6}
EVERY = {"before": "all", "half": "all", "full": "all", "any": 25}
# The best checkpoint is the second of three: the first one goes before the end, the last one at the end.
FLAGS = """--do_train --do_eval --max_train_samples 24 --max_eval_samples 8 --max_seq_length 96 --doc_stride 32
    --per_device_train_batch_size 11 --num_train_epochs 1 --save_steps 2 --eval_strategy steps --eval_steps 2
    --load_best_model_at_end --metric_for_best_model loss --save_total_limit 1 --learning_rate 3e-2
    --lr_scheduler_type constant --report_to none --disable_tqdm True --seed 2""".split()
TWO_EPOCHS = "--num_train_epochs 2 --save_steps 4 --eval_steps 4".split()
JOBS = {
    "plain": ("run_qa", 1, []),
    "buckets": ("run_qa", 1, ["--length_buckets", "64", "96", *TWO_EPOCHS]),
    "t5": ("run_seq2seq_qa", 1, ["--predict_with_generate", "--val_max_answer_length", "8", *TWO_EPOCHS]),
    "packed": ("run_qa", 1, ["--pack", "--do_predict", "--max_predict_samples", "8", *TWO_EPOCHS]),
    "two_ranks": ("run_qa", 2, ["--per_device_train_batch_size", "6"]),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Return the compiled kills.c; without a C compiler the test is skipped."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    path = tmp_path_factory.mktemp("library") / "kills.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", path, ROOT / "tests" / "runs" / "kills.c", "-ldl"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        pytest.skip(f"kills.c cannot be compiled: {done.stderr[-1000:]}")
    return path


@pytest.mark.parametrize("name", JOBS if FUZZ else ["plain"])
def test_a_killed_run_goes_on(name, library, tiny_model, tiny_writers, squad_files, tmp_path):
    script, ranks, flags = JOBS[name]
    model = tiny_writers["t5"] if name == "t5" else tiny_model
    files = ["--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json"]
    files += ["--test_file", squad_files / "dev.json"]
    job = {"script": script, "ranks": ranks, "folder": tmp_path, "kills": EVERY if FUZZ else SAMPLE}
    job["flags"] = list(map(str, ["--model_name_or_path", model, *files, *FLAGS, *flags]))
    (tmp_path / "job.json").write_text(json.dumps(job, default=str))
    environment = os.environ | {"LD_PRELOAD": str(library), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, ROOT / "tests" / "runs" / "kills_run.py", tmp_path / "job.json"]
    with (tmp_path / "out").open("wb") as out:  # which shows problems while it runs
        done = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    assert done.returncode == 0, (tmp_path / "out").read_text()[-6000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["problems"] == {}, result["done"]
    check_order(result["trace"], tmp_path / "undisturbed")
    if name == "plain":
        assert result["kept"][-1] == "checkpoint-4"
        assert [path.name for path in (tmp_path / "undisturbed").glob("checkpoint-*")] == ["checkpoint-4"]
    print(name, result["done"])


def check_order(trace: list[str], output: Path) -> None:
    """Check that a loss of power leaves each file whole: it gets its name after its content is on the disk.

    safetensors writes to a file `.tmp...`, which it renames in a way that kills.c does not see.
    """
    unsynced, synced = set(), set()
    for kind, path in (line.split(maxsplit=1) for line in trace):
        if path.endswith("run.lock"):
            continue  # which holds nothing that must last
        if kind in ("open", "write", "truncate"):
            assert "/.unfinished/" in path or path.endswith(".partial"), path
            unsynced.add(path)
            synced.discard(path)
        elif kind in ("unlink", "rmdir"):
            assert "/.unfinished" in path or "/checkpoint-" not in path, path
        elif kind == "fsync":
            unsynced.discard(path)
            synced.add(path)
        elif kind == "from":
            early = [name for name in unsynced if name == path or name.startswith(f"{path}/")]
            assert all(Path(name).name.startswith(".tmp") for name in early), early
    (checkpoint,) = output.glob("checkpoint-*")
    assert all(str(output / ".unfinished" / checkpoint.name / file.name) in synced for file in checkpoint.iterdir())
    assert str(output / ".unfinished" / "model" / "model.safetensors") in synced
