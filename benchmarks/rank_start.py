"""Runs run_qa.py up to its first training step: `python rank_start.py FOLDER FLAG...`; each rank writes what that took.

The file `FOLDER/RANK.json` holds the CPU seconds of its process, the MB that it has alone, and its share of all others.
"""

import json
import os
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qa.script import begin_script  # noqa: E402


begin_script()

import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

import run_qa  # noqa: E402
import trainer_qa  # noqa: E402


def memory() -> dict[str, float]:
    """Return MB of this process: what it has alone, and that with its share of what it has together with others."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
    return {"alone": sizes["Private_Clean"] + sizes["Private_Dirty"], "share": sizes["Pss"]}


class StopBeforeFirstStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            torch.distributed.barrier()
        found = {"seconds": time.process_time()} | memory()
        (Path(sys.argv[1]) / f"{args.process_index}.json").write_text(json.dumps(found))
        if args.world_size > 1:
            torch.distributed.barrier()
        os._exit(0)  # what follows is not measured


class StoppingTrainer(trainer_qa.QuestionAnsweringTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, callbacks=[StopBeforeFirstStep()], **kwargs)


trainer_qa.QuestionAnsweringTrainer = StoppingTrainer
run_qa.main(sys.argv[2:])
