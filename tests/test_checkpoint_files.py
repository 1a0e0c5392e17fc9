"""Checkpoints that were cut off, emptied or changed: the reason is reported, and the one before is taken."""

import json
import os
import shutil
from contextlib import suppress

import pytest
import torch
from helpers import load
from safetensors.torch import load_file
from test_run_qa import run

import qa.resume
from qa.checkpoint_files import damage, refusal
from qa.device import training_arguments
from qa.errors import UserError
from qa.identity import RUN_FILE
from qa.locks import unlock
from qa.written import FILES_FILE, changed_file, write_fingerprints


FLAGS = """--do_train --per_device_train_batch_size 16 --max_steps 3 --save_steps 1 --seed 3 --pad_to_max_length False
    --max_train_samples 48""".split()
EVALUATION_FILES = """eval_results.json eval_predictions.json eval_nbest_predictions.json eval_null_odds.json eval_answers.csv
    eval_report.html eval_report.json""".split()
STATES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.fixture(scope="module")
def whole(tiny_model, squad_files, tmp_path_factory):
    """Return the output of a run with three checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_model, folder, *FLAGS, "--train_file", squad_files / "train.json")
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    """Return an output folder with the first two checkpoints, as an earlier version wrote them: without fingerprints."""
    for step in (1, 2):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / FILES_FILE).unlink()
    return tmp_path


@pytest.fixture
def fingerprinted(whole, stopped):
    for step in (1, 2):
        shutil.copy(whole / f"checkpoint-{step}" / FILES_FILE, stopped / f"checkpoint-{step}")
    return stopped


def arguments(folder, **flags):
    return training_arguments(False)(output_dir=str(folder), do_train=True, use_cpu=True, **flags)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file):
    file.write_bytes(bytes(file.stat().st_size))


def empty(file):
    file.write_bytes(b"")


def link(file):
    shutil.rmtree(file)
    file.symlink_to(file.parent / "gone")


def become_a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


DAMAGES = [(name, change, name.split("_")[0]) for name in STATES for change in (cut, empty, overwrite)]
DAMAGES += [
    (name, lambda file: file.unlink(), word)
    for name, word in zip(STATES, ("weights", "optimizer", "scheduler", "random"))
]
DAMAGES += [
    ("trainer_state.json", lambda file, content=content: file.write_text(content), "trainer_state.json")
    for content in ("{}", "null", "[]", "", '{"global_step": "2"}', '{"unknown": 1}', '{"global_step": 2')
]
DAMAGES += [("trainer_state.json", lambda file: file.unlink(), "trainer_state.json")]
DAMAGES += [("", link, "not a folder"), ("", become_a_file, "not a folder")]


@pytest.mark.parametrize(("name", "change", "word"), DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken(stopped, caplog, name, change, word):
    change(stopped / "checkpoint-2" / name)
    (stopped / "checkpoint-²").mkdir()
    assert qa.resume.last_checkpoint(stopped, arguments(stopped)) == stopped / "checkpoint-1"
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "qa.resume"]
    assert "checkpoint-2" in warning and word in warning and "\n" not in warning


def blank(file):
    """Write zeros in the middle, as after a loss of power, or ones where there are zeros; the ends stay."""
    content = bytearray(file.read_bytes())
    place = slice(len(content) * 2 // 5, len(content) * 2 // 5 + 64)
    content[place] = bytes(64) if any(content[place]) else b"\xff" * 64
    file.write_bytes(content)


def exchange(file):
    torch.save({"other": torch.ones(3)}, file)


CHANGES = [(name, blank) for name in STATES] + [(name, exchange) for name in STATES[1:]]
CHANGES += [("run.json", lambda file: file.unlink()), (FILES_FILE, empty), (FILES_FILE, overwrite)]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_checkpoint_before_one_with_other_content_is_taken(fingerprinted, caplog, name, change):
    """The structure is as before; the fingerprints that were written with a checkpoint differ."""
    newest, flags = fingerprinted / "checkpoint-2", arguments(fingerprinted)
    assert qa.resume.last_checkpoint(fingerprinted, flags) == newest
    change(newest / name)
    assert qa.resume.last_checkpoint(fingerprinted, flags) == fingerprinted / "checkpoint-1"
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "qa.resume"]
    assert "checkpoint-2" in warning and name in warning and "\n" not in warning
    if change is exchange:
        (newest / FILES_FILE).unlink()  # as the message says, for a change on purpose
        assert f"remove {FILES_FILE}" in warning and damage(newest, flags) is None


def test_a_change_anywhere_in_a_large_file_is_found(tmp_path):
    """Of 100 MB, by a bit."""
    weights = tmp_path / "model.safetensors"
    weights.touch()
    os.truncate(weights, 10**8)
    write_fingerprints(tmp_path)
    assert changed_file(tmp_path) is None
    with weights.open("r+b") as file:
        file.seek(12_345_678)
        file.write(b"\x01")
    assert "model.safetensors was changed" in changed_file(tmp_path)


class Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_no_code_in_a_checkpoint_runs(tiny_model, squad_files, stopped, name):
    """With fingerprints the file would not be opened at all."""
    torch.save({"state": Malicious(stopped / "code_ran")}, stopped / "checkpoint-2" / name)
    with suppress(Exception):  # as the library refuses it
        run(tiny_model, stopped, *FLAGS, "--train_file", squad_files / "train.json")
    unlock(stopped)
    assert not (stopped / "code_ran").exists()


def test_a_run_goes_on_from_the_one_before_to_the_same_weights(tiny_model, squad_files, whole, stopped):
    """Also where the damaged one is a file that has the name of the checkpoint to write."""
    become_a_file(stopped / "checkpoint-2")
    (stopped / "all_results.json").write_text('{"eval_f1": 3')
    run(tiny_model, stopped, *FLAGS, "--train_file", squad_files / "train.json")
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole.iterdir()}
    assert load(stopped / "all_results.json")["train_samples"] == 48


def test_a_run_without_a_whole_checkpoint_starts_again(stopped):
    """Its own remains are no foreign files: logs, results, half a file, and what is marked as unfinished."""
    for step in (1, 2):
        empty(stopped / f"checkpoint-{step}" / "optimizer.pt")
    (stopped / "logs").mkdir()
    own = [*EVALUATION_FILES, "all_results.json", ".eval_null_odds.json.partial", ".tmpA1b2C3"]
    for name in own:
        (stopped / name).touch()
    flags = arguments(stopped, logging_dir=str(stopped / "logs"))
    assert qa.resume.checkpoint_to_resume(flags, None) is None
    (stopped / "config.json").touch()  # of a model that somebody keeps there
    with pytest.raises(UserError, match="holds files but no complete checkpoint.*config.json"):
        qa.resume.checkpoint_to_resume(flags, None)
    (stopped / ".unfinished").mkdir()
    assert qa.resume.checkpoint_to_resume(flags, None) is None


def test_the_best_checkpoint_so_far_has_to_be_whole_too(stopped):
    state = load(stopped / "checkpoint-2" / "trainer_state.json") | {"best_model_checkpoint": "elsewhere/checkpoint-1"}
    (stopped / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    best = arguments(stopped, load_best_model_at_end=True, eval_strategy="steps", save_steps=500, eval_steps=500)
    assert damage(stopped / "checkpoint-2", best) is None
    cut(stopped / "checkpoint-1" / "model.safetensors")
    assert "best checkpoint, checkpoint-1" in damage(stopped / "checkpoint-2", best)
    assert damage(stopped / "checkpoint-2", arguments(stopped)) is None


def test_sharded_weights_and_ranks_are_complete(stopped):
    checkpoint, flags = stopped / "checkpoint-2", arguments(stopped)
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {"weight_map": {f"tensor_{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert "model-00002-of-00002.safetensors" in damage(checkpoint, flags)
    shutil.copy(checkpoint / "model-00001-of-00002.safetensors", checkpoint / "model-00002-of-00002.safetensors")
    assert damage(checkpoint, flags) is None
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_1.pth")
    assert damage(checkpoint, flags) == "there is no rng_state_0.pth"
    (checkpoint / "rng_state_1.pth").rename(checkpoint / "rng_state_0.pth")
    (checkpoint / "run.json").write_text('{"ranks": 2}')
    assert damage(checkpoint, flags) == "there is no rng_state_1.pth"


def test_a_model_alone_is_refused(stopped):
    for name in STATES[1:]:
        (stopped / "checkpoint-2" / name).unlink()
    with pytest.raises(UserError, match="checkpoint-2; it holds a model alone"):
        qa.resume.checkpoint_to_resume(arguments(stopped), None)
    with pytest.raises(UserError, match="--resume_from_checkpoint .*checkpoint-2"):
        qa.resume.checkpoint_to_resume(arguments(stopped, resume_from_checkpoint=str(stopped / "checkpoint-2")), None)


def test_checkpoints_of_other_engines_are_refused(stopped):
    """DeepSpeed's files, as version 0.19 names them; real ones are resumed from in runs/test_deepspeed.py."""
    zero, plain = stopped / "checkpoint-2", stopped / "checkpoint-1"
    (zero / "optimizer.pt").unlink()
    (zero / "global_step2").mkdir()
    (zero / "latest").write_text("global_step2")
    names = ["mp_rank_00_model_states", *(f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states" for rank in (0, 1))]
    for name in names:
        torch.save({}, zero / "global_step2" / f"{name}.pt")
    flags = arguments(stopped)
    assert "it was written by DeepSpeed; add --deepspeed" in refusal(zero, flags)
    flags.deepspeed = {"zero_optimization": {"stage": 2}}  # building them with it would start DeepSpeed
    folder = zero / "global_step2"
    assert refusal(zero, flags) == (
        "ZeRO wrote it on 2 ranks, and this run has 1 rank; run `python -m deepspeed.checkpoint.ds_to_universal "
        f"--inject_missing_state --input_folder {folder} --output_folder {folder}_universal`, then this command with "
        "--resume_anyway"
    )
    (zero / "latest_universal").write_text("global_step2_universal")
    assert refusal(zero, flags) is None and damage(zero, flags) is None
    assert "it was written without --deepspeed" in refusal(plain, flags)
    (zero / "latest_universal").unlink()
    (folder / f"{names[2]}.pt").rename(folder / "lost")
    record = load(zero / RUN_FILE)
    assert refusal(zero, flags) is None and record["ranks"] == 1
    (zero / RUN_FILE).write_text(json.dumps(record | {"ranks": 2}))
    assert "ZeRO wrote it on 2 ranks, and this run has 1" in refusal(zero, flags)
    (zero / RUN_FILE).write_text(json.dumps(record))
    (folder / "lost").rename(folder / f"{names[2]}.pt")
    (folder / f"{names[1]}.pt").unlink()
    assert "bf16_zero_pp_rank_0" in damage(zero, flags)
    (zero / "latest").write_text("/tmp")
    assert damage(zero, flags) == "there is no weights"
