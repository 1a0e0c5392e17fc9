"""Runs run_qa.py on a tiny model up to its first training step: `python first_step.py MODEL TRAIN_FILE` (see start.py)."""

import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qa.script import begin_script  # noqa: E402


begin_script()

from transformers import TrainerCallback  # noqa: E402

import run_qa  # noqa: E402
import trainer_qa  # noqa: E402


class StopAfterFirstStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        os._exit(0)  # what follows is not measured


class StoppingTrainer(trainer_qa.QuestionAnsweringTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, callbacks=[StopAfterFirstStep()], **kwargs)


trainer_qa.QuestionAnsweringTrainer = StoppingTrainer
model, train_file = sys.argv[1:]
flags = ["--model_name_or_path", model, "--train_file", train_file, "--do_train", "--report_to", "none"]
run_qa.main([*flags, "--output_dir", f"{model}/out", "--overwrite_output_dir"])
