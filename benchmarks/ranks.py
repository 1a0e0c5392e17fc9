"""The same training as one rank and as two started in each way of the launcher: a table of answers, scores and losses.

    python -m benchmarks.ranks [--gaudi] [--questions 1000]
    python -m benchmarks.ranks --start [--questions 78795]

The quickstart's pretrained model, without dropout (ranks draw other masks), is trained on questions of its generator with
batches of 16 in all, in fp32, and scored on 201 others. --gaudi runs all of it on the simulated Gaudi, through
optimum-habana's trainer. Needs what requirements-dev.txt installs.

--start prints what 1, 2 and 4 ranks take before their first step of a training on questions of SQuAD 1.1, or on generated
ones: CPU seconds and memory of all ranks, and of these what a training on 64 questions does not take.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "quickstart")]

import corpus  # noqa: E402

from benchmarks.questions import TINY, load_questions, make_model, run_process, write_rows  # noqa: E402


BATCH, SCORED = 16, 201
RUNS = {
    "1 rank": (1, []),
    "2 ranks, no flag": (2, []),
    "2 ranks, MPI": (2, ["--use_mpi"]),
    "2 ranks, `--use_deepspeed`": (2, ["--use_deepspeed"]),
}
FLAGS = """--do_train --do_eval --learning_rate 1.5e-3 --warmup_ratio 0.1 --num_train_epochs 1 --max_seq_length 192
    --doc_stride 64 --logging_steps 1 --save_strategy no --report_to none --disable_tqdm True"""
START_FLAGS = "--do_train --max_seq_length 384 --doc_stride 128 --overwrite_output_dir --report_to none"


def make_inputs(folder: Path, questions: int) -> None:
    """`model`, `train.json` and `dev.json`."""
    shutil.copytree(ROOT / "quickstart" / "checkpoint", folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    config |= {name: 0.0 for name in config if name.endswith("dropout_prob")}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    for part, number in (("train", questions), ("dev", SCORED)):
        (folder / f"{part}.json").write_text(json.dumps(corpus.make_part(part, number, seed=0)))


def run(folder: Path, ranks: int, engine: list[str], questions: int, gaudi: bool) -> dict:
    """Answers, scores and training losses of a run."""
    flags = ["--model_name_or_path", folder / "model", "--output_dir", folder / "out", "--overwrite_output_dir"]
    flags += ["--train_file", folder / "train.json", "--validation_file", folder / "dev.json", *FLAGS.split()]
    flags += ["--max_train_samples", questions, "--max_eval_samples", SCORED]
    flags += ["--per_device_train_batch_size", BATCH // ranks]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if gaudi:
        from tests import gaudi_sim

        environment |= gaudi_sim.environment()
        flags += ["--use_habana", "--use_lazy_mode", "--use_hpu_graphs_for_inference"]
    launcher = [sys.executable, ROOT / "gaudi_spawn.py", "--world_size", ranks, *engine]
    command = list(map(str, [*launcher, ROOT / "run_qa.py", *flags]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    names = ("eval_predictions", "eval_results", "trainer_state")
    answers, scores, state = (json.loads((folder / "out" / f"{name}.json").read_text()) for name in names)
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return {"answers": answers, "em": scores["eval_exact_match"], "f1": scores["eval_f1"], "losses": losses}


def measure_start(folder: Path, ranks: int, rows: Path) -> dict[str, float]:
    """Return seconds and MB of all ranks together before the first step, see `rank_start`."""
    flags = ["--model_name_or_path", folder / "model", "--train_file", rows, "--output_dir", folder / "out"]
    flags += START_FLAGS.split()
    launcher = [ROOT / "gaudi_spawn.py", "--world_size", ranks] if ranks > 1 else []
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    run_process([sys.executable, *launcher, ROOT / "benchmarks" / "rank_start.py", folder, *flags], env=environment)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    return {name: sum(each[name] for each in found) for name in found[0]}


def print_start(questions: int, most: int) -> None:
    """Print a table of what the start of some ranks takes."""
    rows, source = load_questions("train", questions)
    print(f"{len(rows):,} questions of {source}\n")
    print(
        "| ranks | CPU s | beyond those of 64 questions | MB of all | beyond those of 64 questions |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_model(folder / "model", rows[:1000], **TINY)
        files = [write_rows(part, folder / f"{len(part)}.jsonl") for part in (rows[:64], rows)]
        for ranks in (ranks for ranks in (1, 2, 4) if ranks <= most):
            few, every = (measure_start(folder, ranks, file) for file in files)
            cells = [f"{every[name]:.1f} | {every[name] - few[name]:.1f}" for name in ("seconds", "share")]
            print(f"| {ranks} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1008, help="to train on; a multiple of 16")
    parser.add_argument("--gaudi", action="store_true", help="on the simulated Gaudi")
    parser.add_argument("--start", action="store_true", help="what ranks take before their first step")
    parser.add_argument("--most", type=int, default=4, help="ranks to start, with --start")
    given = parser.parse_args()
    if given.start:
        return print_start(given.questions, given.most)
    print("| | EM | F1 | other answers than one rank's | largest difference of a step's loss |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), given.questions)
        first = None
        for name, (ranks, engine) in RUNS.items():
            found = run(Path(folder), ranks, engine, given.questions, given.gaudi)
            first = first or found
            others = sum(found["answers"][name] != answer for name, answer in first["answers"].items())
            furthest = max(abs(mine - theirs) for mine, theirs in zip(found["losses"], first["losses"], strict=True))
            row = f"| {name} | {found['em']:.2f} | {found['f1']:.2f} | {others} of {len(first['answers'])} |"
            print(f"{row} {furthest:.4f} of {max(first['losses']):.2f} |", flush=True)


if __name__ == "__main__":
    main()
