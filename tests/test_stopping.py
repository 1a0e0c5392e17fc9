"""Trainings that end before their last step, and processes that a signal ends: real signals, to this process and to light scripts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, history_of, load, signal_at_step
from safetensors.torch import load_file, save_file

import run_qa
from qa.answerer import Answerer
from qa.errors import Stopped, UserError
from qa.identity import RUN_FILE
from qa.locks import LOCK_FILE
from qa.saving import UNFINISHED
from qa.signals import REQUEST


SCRIPT = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from qa.signals import REQUEST, handle_signals, signals_can_wait
handle_signals()
def wait_for(step):
    open(sys.argv[1], "w").close()
    while not step(): time.sleep(0.01)
"""
WAITING = "with signals_can_wait():\n    wait_for(lambda: REQUEST.number)\n    "
GIVE_UP = 90


def run(model, output_dir, squad_files, *flags) -> None:
    """Train with a loss in the log for each step."""
    words = ["--model_name_or_path", model, "--output_dir", output_dir, "--train_file", squad_files / "train.json"]
    words += ["--do_train", "--max_seq_length", 96, "--doc_stride", 32, "--logging_steps", 1, *flags]
    run_qa.main(list(map(str, words)))


def stopped(*args, number: int = signal.SIGTERM, step: int = 10**6) -> Stopped:
    with signal_at_step(number, step), pytest.raises(Stopped) as stop:
        run(*args)
    return stop.value


def test_a_stopped_training_goes_on_to_the_same_weights(tiny_model, squad_files, tmp_path, caplog):
    """It is stopped by each signal and by its time, with checkpoints that --save_strategy no does not ask for.

    After the last step there is no such checkpoint; the model is written.
    """
    flags = ["--max_steps", 8, "--save_strategy", "no", "--per_device_train_batch_size", 4]
    stop = stopped(tiny_model, tmp_path / "whole", squad_files, *flags, step=0)
    assert (stop.status, stop.line) == (
        143,
        "stopped by SIGTERM after the training; the same command goes on from there",
    )
    assert not list((tmp_path / "whole").glob("checkpoint-*"))
    run(tiny_model, tmp_path / "whole", squad_files, *flags)
    assert "holds the finished training (step 8 of 8); left to do: nothing" in caplog.text
    output, ends = tmp_path / "model", {2: (signal.SIGINT, 130), 4: (signal.SIGTERM, 143), 5: (signal.SIGUSR1, 143)}
    for step, (number, status) in ends.items():
        stop = stopped(tiny_model, output, squad_files, *flags, number=number, step=step)
        assert (
            stop.status == status
            and f" after step {step} of 8; {output / f'checkpoint-{step}'} is written" in stop.line
        )
        assert load(output / f"checkpoint-{step}" / "trainer_state.json")["global_step"] == step
    stop = stopped(tiny_model, output, squad_files, *flags, "--max_train_minutes", "0.001")
    assert stop.status == 75 and stop.line.startswith("stopped by --max_train_minutes after step 6 of 8; ")
    assert not list(output.glob("*.safetensors")) and not list(output.glob("*results.json"))
    run(tiny_model, output, squad_files, *flags)
    expected, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", output))
    assert all(expected[name].equal(found[name]) for name in expected)


def test_a_stop_at_the_end_of_an_epoch_comes_before_its_evaluation(tiny_model, squad_files, tmp_path):
    """The run that goes on from there has it, and each epoch has one. The step's checkpoint was there already."""
    flags = ["--num_train_epochs", 2, "--eval_strategy", "epoch", "--save_steps", 3, "--save_total_limit", 1]
    flags += ["--validation_file", squad_files / "dev.json", "--max_train_samples", 8]
    stop = stopped(tiny_model, tmp_path, squad_files, *flags, step=3)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert str(checkpoint) in stop.line
    state = load(checkpoint / "trainer_state.json")
    assert state["epoch"] == 1 and not history_of(checkpoint, "eval_f1")
    run(tiny_model, tmp_path, squad_files, *flags)
    state = load(tmp_path / "trainer_state.json")
    assert [entry["epoch"] for entry in state["log_history"] if "eval_f1" in entry] == [1, 2]


def test_a_signal_in_an_evaluation_before_the_first_step(tiny_model, squad_files, tmp_path):
    """There is nothing to save."""
    flags = ["--validation_file", squad_files / "dev.json", "--eval_strategy", "epoch", "--eval_on_start"]
    with signal_at_step(signal.SIGINT, 0, batch=1), pytest.raises(Stopped) as stop:
        run(tiny_model, tmp_path, squad_files, *flags)
    assert (stop.value.status, stop.value.line) == (
        130,
        "stopped by Ctrl-C (SIGINT) before the first step; the same command starts again",
    )
    assert {path.name for path in tmp_path.iterdir()} <= {UNFINISHED, RUN_FILE, LOCK_FILE}


def status_after_signal(words: list, step: int) -> int:
    """Return the exit status of a process of its own that runs a command, after a SIGUSR1 in the evaluation of a step."""
    process = os.fork()
    if process == 0:
        REQUEST.__init__()
        with signal_at_step(signal.SIGUSR1, step, batch=2):
            run_qa.main(list(map(str, words)))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_signal_in_an_evaluation_outside_a_training_ends_it_at_once(tiny_model, squad_files, tmp_path, capfd):
    """Without a file of the evaluation; the line says how to go on after a training."""
    words = ["--model_name_or_path", tiny_model, "--do_eval", "--validation_file", squad_files / "dev.json"]
    words += ["--per_device_eval_batch_size", 4, "--report_to", "none", "--output_dir", tmp_path]
    assert status_after_signal(words, step=0) == 143
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    words += ["--do_train", "--train_file", squad_files / "train.json", "--max_steps", 1, "--overwrite_output_dir"]
    words += ["--resume_from_checkpoint", "false"]  # both would start again
    assert status_after_signal(words, step=1) == 143
    assert not list(tmp_path.glob("eval_*"))
    without, with_training = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stopped by")]
    assert without == "stopped by SIGUSR1; no training was under way"
    assert with_training == (
        "stopped by SIGUSR1; the training is finished, and the same command without --overwrite_output_dir and "
        "--resume_from_checkpoint goes on from there"
    )


def test_a_loss_that_is_not_finite_ends_a_training(tiny_model, squad_files, tmp_path, caplog):
    """A model with such weights is neither evaluated, the best, nor saved; the last good checkpoint stays."""
    flags = ["--learning_rate", "1e18", "--max_steps", 9, "--save_strategy", "no"]
    stop = stopped(tiny_model, tmp_path / "lost", squad_files, *flags)
    assert stop.status == 1 and stop.line.startswith("error: the loss of step 2 is nan at a learning rate of ")
    assert "this run wrote no checkpoint" in stop.line
    assert "Step 3 of 9: " in caplog.text and "Step 4 of 9: " not in caplog.text
    assert {path.name for path in (tmp_path / "lost").iterdir()} <= {UNFINISHED, RUN_FILE, LOCK_FILE}
    assert caplog.text.count("the training stops after 3 such steps") == 1
    flags += [
        "--eval_strategy",
        "steps",
        "--eval_steps",
        1,
        "--save_strategy",
        "steps",
        "--save_steps",
        1,
        "--save_total_limit",
        1,
    ]
    flags += [
        "--validation_file",
        squad_files / "dev.json",
        "--load_best_model_at_end",
        "--metric_for_best_model",
        "f1",
    ]
    stop = stopped(tiny_model, tmp_path / "kept", squad_files, *flags)
    assert stop.status == 1 and "checkpoint-1 is kept" in stop.line
    assert [path.name for path in (tmp_path / "kept").glob("checkpoint-*")] == ["checkpoint-1"]
    weights = load_file(tmp_path / "kept" / "checkpoint-1" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert not (tmp_path / "kept" / "model.safetensors").exists()


def test_a_model_that_is_not_finite_is_neither_scored_nor_asked(tiny_model, squad_files, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(tiny_model / "model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    words = ["--model_name_or_path", tmp_path / "model", "--do_eval", "--validation_file", squad_files / "dev.json"]
    with pytest.raises(UserError, match="1 of its weights are NaN or infinite, the first one is bert.*; name another"):
        run_qa.main(list(map(str, [*words, "--output_dir", tmp_path / "out"])))
    with pytest.raises(UserError, match="/model: 1 of its weights are NaN or infinite, the first one is bert"):
        Answerer(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    "script, numbers, status, lines",
    [
        ("wait_for(lambda: False)", [signal.SIGINT], 130, ["stopped by Ctrl-C (SIGINT); no training was under way"]),
        ("wait_for(lambda: False)", [signal.SIGUSR1], 143, ["stopped by SIGUSR1; no training was under way"]),
        (
            WAITING + "sys.exit(7)",
            [signal.SIGTERM],
            7,
            ["SIGTERM: the step ends and a checkpoint is written; a second"],
        ),
        (
            WAITING + "wait_for(lambda: False)",
            [signal.SIGTERM, signal.SIGINT],
            143,
            ["SIGTERM: the step ends", "stopped by SIGTERM; without a checkpoint"],
        ),
        (
            "signal.signal(signal.SIGINT, signal.SIG_IGN); handle_signals(); wait_for(lambda: False)",
            [signal.SIGINT, signal.SIGTERM],
            143,
            ["stopped by SIGTERM"],
        ),
        (  # A worker that loads data
            "with signals_can_wait():\n"
            "    worker = os.fork()\n"
            "    if worker == 0: os.kill(os.getpid(), 2); os.kill(os.getpid(), 15); os._exit(0)\n"
            "    sys.exit(os.waitpid(worker, 0)[1])",
            [],
            15,
            [],
        ),
    ],
)
def test_a_signal_ends_in_a_line(script, numbers, status, lines, tmp_path):
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT + script, ready], stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + GIVE_UP
    for number in numbers:
        while not ready.exists() and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(1.1 if number != numbers[0] else 0)  # Within a second they are one request.
        ready.unlink(missing_ok=True) if len(lines) > 1 else None
        process.send_signal(number)
    try:
        _, err = process.communicate(timeout=GIVE_UP)
    finally:
        process.kill()
    assert process.returncode == status and len(err.splitlines()) == len(lines)
    assert all(line.startswith(expected) for line, expected in zip(err.splitlines(), lines))


def test_ctrl_c_while_a_script_starts():
    """Also in the seconds of its imports: as soon as it handles signals."""
    process = subprocess.Popen([sys.executable, ROOT / "run_qa.py"], stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + GIVE_UP
    while not handles(process.pid, signal.SIGUSR1) and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=GIVE_UP)
    assert (process.returncode, err) == (130, "stopped by Ctrl-C (SIGINT); no training was under way\n")


def handles(process: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    (caught,) = [
        line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigCgt")
    ]
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
