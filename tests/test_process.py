"""Runs of one process one after the other: `main` returns the results, and leaves nothing for the next run to follow."""

import contextlib
import gc
import time
import weakref

import pytest
from helpers import load
from safetensors.torch import load_file
from transformers.utils import logging

import qa.stages
import run_qa
import run_seq2seq_qa
from qa.errors import Stopped, UserError
from qa.locks import HELD
from qa.process import CLOCK, run_of_its_own


SETTINGS = """--max_seq_length 96 --doc_stride 32 --max_train_samples 8 --max_eval_samples 4 --max_predict_samples 3
    --per_device_train_batch_size 4 --max_steps 2 --save_strategy no --do_train""".split()


@pytest.fixture(scope="module")
def flags(tiny_model, squad_files) -> list[str]:
    data = ["--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json"]
    return list(map(str, ["--model_name_or_path", tiny_model, *data, *SETTINGS]))


def test_main_returns_the_results_of_all_stages(flags, squad_files, tmp_path, monkeypatch):
    """Also of a finished run, whose command does nothing when it is started again, or only what is missing."""
    models = []
    check = qa.stages.check_weights
    monkeypatch.setattr(
        qa.stages, "check_weights", lambda model, *rest: models.append(weakref.ref(model)) or check(model, *rest)
    )
    command = [*flags, "--output_dir", str(tmp_path / "out"), "--do_eval"]
    assert run_qa.main([*command, "--check"]) is None
    results = run_qa.main(command)
    assert results == load(tmp_path / "out" / "all_results.json")
    assert results["train_samples"] == 8 and results["eval_f1"] >= 0
    with contextlib.redirect_stdout(None):  # as of a program without a console
        assert run_qa.main(command) == results
    more = run_qa.main([*command, "--do_predict", "--test_file", str(squad_files / "dev.json")])
    assert more == load(tmp_path / "out" / "all_results.json") and more.keys() > results.keys()
    assert more["train_loss"] == results["train_loss"] and more["predict_samples"] == 3
    gc.collect()
    assert [model() for model in models] == [None, None]  # their memory is for the next run


def test_main_of_models_that_write_returns_them_too(tiny_writers, squad_files, tmp_path):
    data = ["--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json"]
    command = ["--model_name_or_path", tiny_writers["t5"], *data, *SETTINGS, "--do_eval", "--output_dir", tmp_path]
    gc.disable()  # as in a script's process, until the training begins
    try:
        results = run_seq2seq_qa.main(list(map(str, command)))
        assert gc.isenabled()
    finally:
        gc.enable()
    assert results == load(tmp_path / "all_results.json") == run_seq2seq_qa.main(list(map(str, command)))
    assert results["train_samples"] == 8 and results["eval_loss"] > 0


def test_a_run_does_not_follow_the_flags_of_an_earlier_one(flags, tmp_path):
    """A run in bfloat16 would make all later ones bfloat16."""
    weights = {}
    for name, more in (("first", []), ("bf16", ["--bf16", "--seed", "7", "--disable_tqdm", "true"]), ("last", [])):
        run_qa.main([*flags, "--disable_tqdm", "false", *more, "--output_dir", str(tmp_path / name)])
        weights[name] = load_file(tmp_path / name / "model.safetensors")
        assert logging.is_progress_bar_enabled() == (name != "bf16")
    assert all(tensor.equal(weights["last"][name]) for name, tensor in weights["first"].items())
    assert not all(tensor.equal(weights["bf16"][name]) for name, tensor in weights["first"].items())


def test_a_run_that_fails_leaves_its_folder_unlocked(flags, tmp_path):
    folder = tmp_path / "new" / "out"
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(UserError, match="no rows"):
        run_qa.main([*flags, "--train_file", str(tmp_path / "empty.json"), "--output_dir", str(folder)])
    assert folder.resolve() not in HELD and not folder.exists()


def test_the_minutes_of_a_run_begin_with_it(flags, tmp_path):
    assert CLOCK.began is None
    with run_of_its_own():
        assert time.monotonic() - CLOCK.began < 60
    CLOCK.began = time.monotonic() - 1000  # as of a script's process
    with pytest.raises(Stopped, match="max_train_minutes after step 1"):
        run_qa.main([*flags, "--output_dir", str(tmp_path / "out"), "--max_train_minutes", "10"])
    assert CLOCK.began is None
    run_qa.main([*flags, "--output_dir", str(tmp_path / "out"), "--max_train_minutes", "10"])
