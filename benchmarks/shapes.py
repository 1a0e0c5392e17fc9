"""How many shapes of input a Gaudi sees, and would compile for: padded, with length buckets and packed, on the simulated one."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.questions import TINY, load_questions, make_model, run_process, write_rows


SETTINGS = {
    "padded": [],
    "160 256 384": ["--length_buckets", "160", "256", "384"],
    "auto 6": ["--length_buckets", "auto", "6"],
    "--pack": ["--pack"],
}


def bench(full: bool) -> None:
    from tests import gaudi_sim

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows, source = load_questions("train", 400)
        flags = [
            "--model_name_or_path",
            make_model(folder / "model", rows, **TINY),
            "--do_train",
            "--do_eval",
            "--use_habana",
        ]
        flags += [
            "--train_file",
            write_rows(rows, folder / "train.jsonl"),
            "--num_train_epochs",
            "1",
            "--disable_tqdm",
            "True",
        ]
        flags += ["--validation_file", write_rows(rows[:300], folder / "dev.jsonl"), "--report_to", "none"]
        print(
            f"\n| features of {source} | cards | shapes, training | shapes, evaluation |\n|---|---|---|---|",
            flush=True,
        )
        for cards in (1, 2):
            for name, words in SETTINGS.items():
                counts_file = folder / f"{cards}{name}.jsonl"
                launched = (
                    ["gaudi_spawn.py", "--world_size", "2", "--use_mpi", "run_qa.py"] if cards > 1 else ["run_qa.py"]
                )
                command = [sys.executable, *launched, *flags, *words, "--output_dir", folder / f"{cards}{name}"]
                environment = gaudi_sim.environment(lazy=True, counts_file=counts_file) | {"OMP_NUM_THREADS": "1"}
                run_process(command, env=environment)
                for line in counts_file.read_text().splitlines():
                    shapes = json.loads(line)["input_shapes"]
                    print(f"| {name} | {cards} | {shapes['train']} | {shapes['eval']} |", flush=True)
