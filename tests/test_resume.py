"""Runs that are stopped and resume, and runs that are started again after their end."""

import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from helpers import history_of, load, signal_at_step
from safetensors.torch import load_file

import run_qa
import run_seq2seq_qa
from qa.arguments import DataArguments
from qa.errors import Stopped
from qa.finished import keep_only_missing
from qa.locks import LOCK_FILE
from qa.saving import UNFINISHED
from qa.settings import SETTINGS_FILE


CASES = {
    "plain": (run_qa, []),
    "grouped": (run_qa, ["--group_by_length"]),
    "accumulated": (run_qa, ["--gradient_accumulation_steps", 2]),
    "buckets": (run_qa, ["--length_buckets", 32, 64, 96, "--gradient_accumulation_steps", 2]),
    "packed": (run_qa, ["--pack"]),
    "writes": (run_seq2seq_qa, []),
    "evaluated": (run_qa, ["--eval_strategy", "epoch", "--save_steps", 1 / 3]),  # after the checkpoint
}
REPORT = {"eval_report.html", "eval_report.json"}
TIMES = ("_runtime", "_per_second", "_time")


@pytest.fixture(scope="module")
def models(tiny_model, tiny_writers):
    return {run_qa: tiny_model, run_seq2seq_qa: tiny_writers["t5"]}


def run(script, models: dict, files, output_dir, *flags) -> None:
    """Train three epochs on batches of 5, or as the flags say, with a log every 4 steps; evaluate."""
    words = ["--model_name_or_path", models[script], "--output_dir", output_dir, "--report_to", "none", "--do_train"]
    words += ["--max_seq_length", 96, "--doc_stride", 32, "--disable_tqdm", True, "--learning_rate", "1e-3"]
    words += ["--train_file", files / "train.json", "--validation_file", files / "dev.json", "--max_train_samples", 14]
    words += ["--max_eval_samples", 8, "--num_train_epochs", 3, "--per_device_train_batch_size", 5]
    script.main(list(map(str, [*words, "--logging_steps", 4, "--save_strategy", "steps", *flags])))


def steps_of(folder) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def resume(whole, step: int, resumed) -> None:
    """Make a run's folder as it was when the checkpoint of a step had been written."""
    shutil.copytree(whole / f"checkpoint-{step}", resumed / f"checkpoint-{step}")


def without_times(record: dict) -> dict:
    return {name: value for name, value in record.items() if not name.endswith(TIMES)}


def check_same_run(resumed, whole, step: int) -> None:
    """Check weights, logs and records of a run that was resumed at a step, or at its end."""
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(found[name].equal(expected[name]) for name in expected)
    for name in ("loss", "grad_norm", "learning_rate"):
        assert history_of(resumed, name) == history_of(whole, name)
    state, expected = (load(folder / "trainer_state.json") for folder in (resumed, whole))
    for name in ("epoch", "global_step", "max_steps", "num_train_epochs", "total_flos", "best_metric"):
        assert state[name] == expected[name]
    record, expected = (load(folder / "train_results.json") for folder in (resumed, whole))
    assert record.pop("train_resumed_step") == step
    for results in (record, expected):
        results.pop("train_padding_share", None)  # of the steps since then, as the times
    assert without_times(record) == pytest.approx(without_times(expected), rel=1e-6)  # a sum in another order
    totals = load(resumed / f"checkpoint-{step}" / "trainer_state.json")["stateful_callbacks"]["RunTotals"]
    assert record["train_runtime"] > totals["attributes"]["seconds"] > 0


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_run_that_was_not_stopped(models, mixed_lengths, tmp_path, monkeypatch, case):
    """Between two logs, within the second epoch or at its beginning; the models have dropout. There is no warning of flags."""
    warnings = []
    monkeypatch.setattr(transformers.trainer.logger, "warning_once", warnings.append)
    script, flags = CASES[case]
    flags = ["--save_steps", 0.5, *flags]
    run(script, models, mixed_lengths, tmp_path / "whole", *flags)
    step = steps_of(tmp_path / "whole")[0]
    epoch = load(tmp_path / "whole" / f"checkpoint-{step}" / "trainer_state.json")["epoch"]
    assert step % 4 and (epoch == 1 if case == "evaluated" else 1 < epoch < 2)
    resume(tmp_path / "whole", step, tmp_path / "resumed")
    run(script, models, mixed_lengths, tmp_path / "resumed", *flags)
    check_same_run(tmp_path / "resumed", tmp_path / "whole", step)
    assert not [text for text in warnings if "do not match" in text]


# A run that is stopped in an evaluation


def stop_in_evaluation(step: int, batch: int, number: int, *args) -> None:
    """Start a run that a signal stops in its evaluation after a step; its checkpoint has no score of that."""
    with signal_at_step(number, step, batch), pytest.raises(Stopped) as stop:
        run(*args)
    folder = args[3]
    assert stop.value.status == (130 if number == signal.SIGINT else 143)
    assert (
        f" after step {step} of " in stop.value.line
        and f"{folder / f'checkpoint-{step}'} is written" in stop.value.line
    )
    log = load(folder / f"checkpoint-{step}" / "trainer_state.json")["log_history"]
    assert not [entry for entry in log if entry["step"] == step and "eval_loss" in entry]
    assert not (folder / "eval_results.json").exists()


def state_of(checkpoint: Path) -> dict:
    """Return what the trainer's state in a checkpoint says, except of times, of padding since a resume and of its folder."""
    state = load(checkpoint / "trainer_state.json")
    state["log_history"] = [
        without_times({name: value for name, value in entry.items() if not name.startswith(("train_", "padding_"))})
        for entry in state["log_history"]
    ]
    state["best_model_checkpoint"] = Path(state["best_model_checkpoint"] or "").name
    return {name: value for name, value in state.items() if name != "stateful_callbacks"}


def check_same_files(resumed: Path, whole: Path) -> None:
    """Check that two runs left the same files and checkpoints, with the same content except times."""
    for folder in (resumed, whole):
        assert not (folder / UNFINISHED).exists()
    names = {path.relative_to(folder) for folder in (resumed, whole) for path in folder.rglob("*")}
    names = {name for name in names if name.name not in (LOCK_FILE,) and name.parts[0] != "runs"}
    missing = [name for name in names if not ((resumed / name).exists() and (whole / name).exists())]
    assert not missing
    for name in names:
        if name.name == "trainer_state.json":
            assert state_of((resumed / name).parent) == state_of((whole / name).parent), name
        elif name.suffix in (".safetensors", ".pt", ".pth") or name.name.endswith("predictions.json"):
            assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def test_an_evaluation_that_a_signal_ends_is_repeated(models, mixed_lengths, ended, tmp_path):
    """Also where that is interrupted in its turn, and where early stopping ends the training then, without another step."""
    case = run_qa, models, mixed_lengths, tmp_path, *ENDS["early"]
    stop_in_evaluation(2, 1, signal.SIGTERM, *case)
    stop_in_evaluation(2, 2, signal.SIGINT, *case)
    stop_in_evaluation(6, 2, signal.SIGUSR1, *case)
    run(*case)
    check_same_run(tmp_path, ended / "early", step=6)
    check_same_files(tmp_path, ended / "early")


def test_an_evaluation_of_an_epoch_that_writes_answers_is_repeated(models, mixed_lengths, tmp_path):
    """Within a training and at its end."""
    flags = [
        "--eval_strategy",
        "epoch",
        "--save_strategy",
        "epoch",
        "--load_best_model_at_end",
        "--num_train_epochs",
        2,
    ]
    flags += ["--predict_with_generate", "--val_max_answer_length", 4, "--per_device_eval_batch_size", 4]
    run(run_seq2seq_qa, models, mixed_lengths, tmp_path / "whole", *flags)
    first, last = steps_of(tmp_path / "whole")
    for step in (first, last):
        stop_in_evaluation(
            step, 1, signal.SIGTERM, run_seq2seq_qa, models, mixed_lengths, tmp_path / "stopped", *flags
        )
    run(run_seq2seq_qa, models, mixed_lengths, tmp_path / "stopped", *flags)
    check_same_run(tmp_path / "stopped", tmp_path / "whole", step=last)
    check_same_files(tmp_path / "stopped", tmp_path / "whole")


# A run that is started again after its end


def content_of(folder) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK_FILE
    }


AUDITED: dict[Path, set] = {}  # folders in which changes are noted, with the names of what changed


def note_changes(event: str, args: tuple) -> None:
    """Note what this process writes, makes, renames or removes; an audit hook of Python."""
    if AUDITED and (event in CHANGES or (event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR))):
        for path in (Path(arg) for arg in args[:2] if isinstance(arg, str | os.PathLike)):
            for folder in AUDITED.keys() & set(path.parents):
                AUDITED[folder].add(str(path.relative_to(folder)))


CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
sys.addaudithook(note_changes)


@contextmanager
def changes_in(folder: Path):
    """Yield a set to which the names are added that Python code within changes in a folder."""
    AUDITED[folder] = set()
    try:
        yield AUDITED[folder]
    finally:
        del AUDITED[folder]


ENDS = {
    "within an epoch": ["--max_steps", 5, "--lr_scheduler_type", "constant", "--save_steps", 5],
    # The learning rate rises until all is lost: the first evaluation is the best one.
    "early": ["--max_steps", 20, "--learning_rate", 20, "--warmup_steps", 10, "--save_steps", 2, "--eval_strategy", "steps",
              "--eval_steps", 2, "--load_best_model_at_end", "--metric_for_best_model", "loss",
              "--early_stopping_patience", 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(models, mixed_lengths, tmp_path_factory):
    """Return the output folder with the runs that have ended, by name."""
    folder = tmp_path_factory.mktemp("ended")
    for name, flags in ENDS.items():
        run(run_qa, models, mixed_lengths, folder / name, *flags)
    return folder


@pytest.mark.parametrize("name, step", {"within an epoch": 5, "early": 6}.items())
def test_a_run_that_has_ended_does_nothing(models, mixed_lengths, ended, caplog, name, step):
    """Since it changes no file except its lock, and removes a mark of an unfinished run, a kill leaves all as it is."""
    before = content_of(ended / name)
    caplog.clear()
    with changes_in(ended / name) as changed:
        run(run_qa, models, mixed_lengths, ended / name, *ENDS[name])
    assert changed == {LOCK_FILE, UNFINISHED}
    assert content_of(ended / name) == before
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    steps = load(ended / name / "trainer_state.json")["max_steps"]
    assert line.startswith(f"{ended / name} holds the finished training (step {step} of {steps}); left to do: nothing")


def test_results_that_are_missing_are_made_with_the_trained_model(models, mixed_lengths, ended, tmp_path):
    """Results of another command are replaced; each is made once."""
    out, flags = tmp_path / "out", ENDS["within an epoch"]
    shutil.copytree(ended / "within an epoch", out)
    before = content_of(out)
    for more in (["--do_eval"], ["--do_eval", "--n_best_size", 3, "--eval_report", False]):
        run(run_qa, models, mixed_lengths, out, *flags, *more)
        again = ["--do_train", False, "--model_name_or_path", out]
        run(run_qa, models, mixed_lengths, tmp_path / "scored", *flags, *more, *again)
        name = "eval_nbest_predictions.json"
        assert load(out / name) == load(tmp_path / "scored" / name)
        results, scored = (without_times(load(folder / "eval_results.json")) for folder in (out, tmp_path / "scored"))
        assert results == scored | {"epoch": load(out / "trainer_state.json")["epoch"]}
        assert {path.name for path in out.glob("eval_report.*")} == (set() if False in more else REPORT)
    assert max(len(rows) for rows in load(out / name).values()) == load(out / SETTINGS_FILE)["n_best_size"] == 3
    made = content_of(out)
    run(run_qa, models, mixed_lengths, out, *flags, *more)
    assert content_of(out) == made
    evaluation = {out / f"eval_{name}.json" for name in ("results", "predictions", "nbest_predictions")}
    evaluation.add(out / "eval_answers.csv")
    assert {path for path in made if made[path] != before.get(path)} == evaluation | {
        out / "all_results.json",
        out / "run.json",
        out / SETTINGS_FILE,
        out / "README.md",  # the card has the scores
    }


def test_a_prediction_that_is_missing_needs_no_questions_to_evaluate(models, mixed_lengths, ended, tmp_path, caplog):
    """The training has evaluated after steps; a kill left the run without its prediction alone."""
    out, flags = tmp_path / "out", [*ENDS["early"], "--do_predict", "--test_file", mixed_lengths / "dev.json"]
    shutil.copytree(ended / "early", out)
    run(run_qa, models, mixed_lengths, out, *flags, "--max_predict_samples", 8)
    assert "; left to do: predict;" in caplog.text
    predicted, evaluated = (load(out / f"{stage}_predictions.json") for stage in ("predict", "eval"))
    assert predicted == evaluated


def test_a_check_of_a_finished_run_changes_nothing(models, mixed_lengths, ended, tmp_path, caplog):
    """Neither where nothing is left to do, nor where results of other flags would be replaced."""
    out, flags = tmp_path / "out", [*ENDS["within an epoch"], "--do_eval"]
    shutil.copytree(ended / "within an epoch", out)
    run(run_qa, models, mixed_lengths, out, *flags)
    before = content_of(out)
    for more, left in (([], "nothing"), (["--n_best_size", 3], "eval")):
        caplog.clear()
        run(run_qa, models, mixed_lengths, out, *flags, *more, "--check")
        assert content_of(out) == before and f"; left to do: {left};" in caplog.text


def test_a_push_to_the_hub_is_left_to_do(ended, caplog):
    arguments = {"output_dir": str(ended / "within an epoch"), "do_train": True, "do_eval": False, "do_predict": False}
    training_args = SimpleNamespace(**arguments, push_to_hub=True, world_size=1, process_index=0)
    model_args = SimpleNamespace(model_name_or_path="start")
    assert keep_only_missing(model_args, DataArguments(), training_args, {}, None, None)
    assert "left to do: push to the hub" in caplog.text
    assert (model_args.model_name_or_path, training_args.do_train) == (arguments["output_dir"], False)


def test_results_of_another_model_are_not_presented_as_those_of_a_training(models, mixed_lengths, ended, tmp_path):
    """Nor are those of its earlier weights when it goes on."""
    out, flags = tmp_path / "out", [*ENDS["within an epoch"], "--do_eval"]
    shutil.copytree(ended / "within an epoch", out)
    run(run_qa, models, mixed_lengths, out, *flags)
    own, train_results = load(out / "eval_results.json"), load(out / "train_results.json")
    other = [
        "--do_train",
        False,
        "--do_predict",
        "--test_file",
        mixed_lengths / "dev.json",
        "--max_predict_samples",
        2,
    ]
    run(run_qa, models, mixed_lengths, out, *flags, *other)
    assert load(out / "eval_results.json")["eval_loss"] != own["eval_loss"]
    assert load(out / "run.json")["replaced"] == ["eval", "predict"]
    run(run_qa, models, mixed_lengths, out, *flags)
    assert without_times(load(out / "eval_results.json")) == without_times(own)
    assert load(out / "run.json")["replaced"] == ["predict"]
    assert load(out / "all_results.json").keys() > train_results.keys() | own.keys()
    made = content_of(out)
    run(run_qa, models, mixed_lengths, out, *flags)
    assert content_of(out) == made

    run(run_qa, models, mixed_lengths, out, *ENDS["within an epoch"], "--max_steps", 6, "--resume_anyway")
    assert not [path.name for stage in ("eval", "predict") for path in out.glob(f"{stage}_*")]
    assert load(out / "all_results.json") == load(out / "train_results.json")
    assert "replaced" not in load(out / "run.json")


@pytest.mark.parametrize("name", ENDS)
def test_a_run_that_was_killed_at_its_end_takes_no_step(models, mixed_lengths, ended, tmp_path, name):
    """After its last checkpoint, before it wrote the model: the records are those of all its steps."""
    for step in steps_of(ended / name):
        resume(ended / name, step, tmp_path)
    run(run_qa, models, mixed_lengths, tmp_path, *ENDS[name])
    check_same_run(tmp_path, ended / name, step)
    assert steps_of(tmp_path) == steps_of(ended / name)


def test_early_stopping_goes_on_counting(models, mixed_lengths, ended, tmp_path):
    """After one of the two evaluations without progress."""
    for step in (2, 4):
        resume(ended / "early", step, tmp_path)
    run(run_qa, models, mixed_lengths, tmp_path, *ENDS["early"])
    check_same_run(tmp_path, ended / "early", 4)


@pytest.mark.parametrize("steps", [5, 6])
def test_sums_that_a_checkpoint_lacks_begin_there(models, mixed_lengths, ended, tmp_path, steps):
    """As one of an earlier version lacks them. A training of no step has no record."""
    resume(ended / "within an epoch", 5, tmp_path)
    path = tmp_path / "checkpoint-5" / "trainer_state.json"
    state = load(path)
    del state["stateful_callbacks"]["RunTotals"]
    path.write_text(json.dumps(state))
    (path.parent / "files.json").unlink()
    flags = [*ENDS["within an epoch"], "--max_steps", steps, "--resume_anyway"]
    run(run_qa, models, mixed_lengths, tmp_path, *flags)
    assert (tmp_path / "train_results.json").exists() == (steps == 6)
    if steps == 6:
        record = load(tmp_path / "train_results.json")
        assert record["train_counted_from_step"] == record["train_resumed_step"] == 5
        assert record["train_loss"] > 3  # of one step, not divided by six
        assert record["train_steps_per_second"] == pytest.approx(1 / record["train_runtime"], rel=0.01)
