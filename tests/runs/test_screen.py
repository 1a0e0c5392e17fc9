"""The screen during a run: a line for each stage, nothing of the libraries, and a summary at the end."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, load, split_import_times
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

import run_qa
from qa.device import training_arguments
from qa.screen import StageLines, summary
from qa.settings import Settings, write_settings


NUMBERS = r"loss \d\.\d+, learning rate \S+, gradient norm \d\S*, \d\S* features/s, \d\S* tokens/s, \d+% padding"
# In order; {out} is the output folder, {numbers} are those above.
LINES = r"""
    \d+ train features of at most 256 tokens
    \d+ validation features of at most 256 tokens
    Training \d+,\d+ parameters on cpu: 4 steps of 8 features
    Step 2 of 4: {numbers}, \S+ s plus 2 evaluations and 2 checkpoints left
    Step 4 of 4: {numbers}, \S+ s left
    Training: loss \d\.\d+ in \S+ s
    Evaluation: exact_match \S+, f1 \S+, loss \S+ in \S+ s
EM +\d+\.\d\d
F1 +\d+\.\d\d
best checkpoint +{out}/checkpoint-[24] \(f1 \S+\)
model +{out}
results +{out}/all_results.json
answers +{out}/eval_predictions.json
table +{out}/eval_answers.csv
report +{out}/eval_report.html
next +python run_qa.py --model_name_or_path {out} --test_file QUESTIONS.json --do_predict --output_dir ANSWERS --max_seq_length 256 --doc_stride 32 --pad_to_max_length false
question +predicted +gold
Where does the Pugust rise\? +.+ Licufo
Near which town does the Prouskaind rise\? +.+ Skalast
Near which town does the Pragos rise\? +.+ Rifom
In which town does Lolo Brejiprel live now\? +.+ Stogrist
Where does Saiberk Pusast live\? +.+ Skoskotro
"""


def test_a_run_prints_a_line_for_each_stage_and_a_summary(tiny_model, squad_files, tmp_path):
    """Evaluations during training have lines of their own; the command is run as a user runs it, into a file.

    It imports no library that it does not use. A later run of a process that has trained otherwise has its weights.
    """
    flags = ["--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json", "--do_train"]
    flags += ["--do_eval", "--max_steps", 4, "--logging_steps", 2, "--save_steps", 2, "--eval_strategy", "steps"]
    flags += ["--eval_steps", 2, "--load_best_model_at_end", "--metric_for_best_model", "f1", "--max_seq_length", 256]
    flags += ["--model_name_or_path", tiny_model, "--output_dir", tmp_path / "out", "--doc_stride", 32]
    command = [sys.executable, "-X", "importtime", ROOT / "run_qa.py", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    imported, errors = split_import_times(done.stderr)
    assert not errors, errors
    assert "transformers.trainer" in imported
    assert not imported & {"sklearn", "scipy", "datasets", "pandas", "pyarrow", "evaluate", "deepspeed", "matplotlib"}
    (padding,) = [line for line in printed if "tokens are padding" in line]
    assert re.search(r"WARNING .* \d\d% of the tokens are padding.* add --pad_to_max_length false", padding)
    log = [re.sub(r"^\S+ \S+ - INFO - \S+ - ", "    ", line) for line in printed if line != padding]
    wanted = (
        LINES.replace("{out}", re.escape(str(tmp_path / "out"))).replace("{numbers}", NUMBERS).strip("\n").splitlines()
    )
    evaluations = [line for line in log if line.startswith("    Evaluation at step")]
    assert len(evaluations) == 2 and all("f1" in line for line in evaluations)
    log = [line for line in log if line not in evaluations]
    assert len(log) == len(wanted), "\n".join(log)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(wanted, log)), "\n".join(log)
    for name, more in (("other", ["--bf16", "--seed", 7, "--max_steps", 1, "--eval_strategy", "no"]), ("again", [])):
        other = [*flags, *more, *(["--load_best_model_at_end", False] if more else [])]
        results = run_qa.main(list(map(str, [*other, "--output_dir", tmp_path / name])))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    timed = [name for name in results if name.endswith(("runtime", "per_second"))]
    expected = load(tmp_path / "out" / "all_results.json")
    assert {name: results[name] for name in expected if name not in timed} == {
        name: value for name, value in expected.items() if name not in timed
    }


@pytest.mark.parametrize(
    "schedule, steps, warns", [("linear", 2, True), ("linear", 100, False), ("constant", 2, False)]
)
def test_a_warm_up_longer_than_the_training_is_reported(schedule, steps, warns, tmp_path, caplog):
    """The rate would stay near 0, and the run would end well."""
    flags = {"output_dir": str(tmp_path), "use_cpu": True, "warmup_steps": 100, "lr_scheduler_type": schedule}
    args, state = training_arguments(False)(**flags), TrainerState(max_steps=steps)
    StageLines().on_train_begin(args, state, TrainerControl(), model=torch.nn.Linear(2, 2))
    assert ("--warmup_steps 100 is more than the 2 steps of the training" in caplog.text) == warns


@pytest.mark.parametrize("script, writes", [("run_qa.py", False), ("run_seq2seq_qa.py", True)])
def test_the_next_command_of_a_training_answers_questions(script, writes, tmp_path):
    """On the device of the training, with its settings; tuned ones are those of a prediction anyway."""
    args = training_arguments(writes)(output_dir=str(tmp_path), do_train=True)
    kind, columns = "written" if writes else "span", {"question": "Frage", "context": "context", "answer": "Antwort"}
    lengths = {"max_seq_length": 192, "doc_stride": 128, "max_answer_length": 30, "n_best_size": 20}
    saved = Settings(kind, **lengths, version_2_with_negative=True, columns=columns, generation_max_length=30)
    changed = " --max_seq_length 192 --version_2_with_negative True --question_column Frage"
    for on_gaudi, settings, flags in (
        (False, saved, changed),
        (True, saved, changed),
        (False, replace(saved, tuned_on=50), ""),
    ):
        args.use_habana = on_gaudi
        write_settings(tmp_path, settings)
        line = summary(args, TrainerState(), {}, script)[-1]
        flags = " --predict_with_generate" * writes + flags
        flags += " --use_habana" if on_gaudi else " --pad_to_max_length false"
        assert line.startswith(f"next     python {script} ") and line.endswith(f" --output_dir ANSWERS{flags}")


def test_few_trained_parameters_are_counted(tmp_path, caplog):
    """Adapters of a small model are not 0.0 million."""
    caplog.set_level("INFO")
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad = False
    args = training_arguments(False)(output_dir=str(tmp_path), use_cpu=True)
    StageLines().on_train_begin(args, TrainerState(max_steps=3), TrainerControl(), model=model)
    assert "Training 4 parameters on cpu: 3 steps" in caplog.text
