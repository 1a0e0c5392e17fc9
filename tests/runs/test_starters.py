"""Ranks that something else than the launcher starts; tests/test_rank_variables.py has all of their variables."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT, history_of, load, skip_without

from qa.launch.job import find_mpirun


FLAGS = """--do_train --max_train_samples 16 --max_seq_length 128 --doc_stride 32 --max_steps 2 --logging_steps 1
    --per_device_train_batch_size 4 --save_strategy no --report_to none""".split()
NOT_FOR_RANKS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
SECONDS = 600


def command(still_models: Path, squad_files: Path, output: Path) -> list[str]:
    words = [sys.executable, ROOT / "run_qa.py", "--model_name_or_path", still_models / "bert", *FLAGS]
    return list(map(str, [*words, "--train_file", squad_files / "train.json", "--output_dir", output]))


def without_ranks(environment: dict) -> dict:
    kept = {name: value for name, value in environment.items() if name not in NOT_FOR_RANKS}
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def check_one_job(printed: str, output: Path) -> None:
    """Check that two ranks trained one model in steps of 2 * 4 questions, and that rank 0 alone printed."""
    assert printed.count(": 2 steps of 8 features") == printed.count("Step 2 of 2") == 1
    assert load(output / "run.json")["ranks"] == 2 and len(history_of(output, "loss")) == 2


def test_the_users_own_mpirun_on_two_cards(simulated_gaudi, still_models, squad_files, tmp_path):
    skip_without("mpi")
    start = [find_mpirun(), *["--allow-run-as-root"] * (os.geteuid() == 0), "--bind-to", "none"]
    start += ["--map-by", "slot:OVERSUBSCRIBE", "-n", "2", *command(still_models, squad_files, tmp_path / "out")]
    environment = without_ranks(simulated_gaudi.environment(counts_file=tmp_path / "counts"))
    del environment["PT_HPU_RECIPE_CACHE_CONFIG"]
    done = subprocess.run(
        [*start, "--use_habana", "--use_lazy_mode"],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    check_one_job(done.stdout, tmp_path / "out")
    assert "on hpu: 2 steps" in done.stdout
    kept = [json.loads(line)["recipe_cache"] for line in (tmp_path / "counts").read_text().splitlines()]
    assert kept == 2 * [f"{tmp_path}/cache/gaudi-question-answering/recipes,false,4096"]


def test_two_tasks_of_slurm(still_models, squad_files, tmp_path):
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    tasks = [
        subprocess.Popen(
            command(still_models, squad_files, tmp_path / "out"),
            env=without_ranks(os.environ) | step | {"SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_NODEID": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in "01"
    ]
    first, other = (task.communicate(timeout=SECONDS)[0] for task in tasks)
    assert [task.returncode for task in tasks] == [0, 0], first + other
    check_one_job(first, tmp_path / "out")
    assert other == "" and "INFO - datasets" not in first  # a line of the library, which no run needs
