"""Runs that are stopped and resume, and runs that are started again after their end."""

import json
import shutil

import pytest
from helpers import history_of, load
from safetensors.torch import load_file

import run_qa
import run_seq2seq_qa


CASES = {
    "plain": (run_qa, []),
    "grouped": (run_qa, ["--group_by_length"]),
    "accumulated": (run_qa, ["--gradient_accumulation_steps", 2]),
    "buckets": (run_qa, ["--length_buckets", "32", "64", "96"]),
    "writes": (run_seq2seq_qa, []),
    "evaluated": (run_qa, ["--eval_strategy", "epoch", "--save_steps", 1 / 3]),  # after the checkpoint
}
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
    totals = load(whole / f"checkpoint-{step}" / "trainer_state.json")["stateful_callbacks"]["RunTotals"]
    assert record["train_runtime"] > totals["attributes"]["seconds"] > 0


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_run_that_was_not_stopped(models, mixed_lengths, tmp_path, case):
    """Between two logs, within the second epoch or at its beginning; the models have dropout."""
    script, flags = CASES[case]
    flags = ["--save_steps", 0.5, *flags]
    run(script, models, mixed_lengths, tmp_path / "whole", *flags)
    step = steps_of(tmp_path / "whole")[0]
    epoch = load(tmp_path / "whole" / f"checkpoint-{step}" / "trainer_state.json")["epoch"]
    assert step % 4 and (epoch == 1 if case == "evaluated" else 1 < epoch < 2)
    resume(tmp_path / "whole", step, tmp_path / "resumed")
    run(script, models, mixed_lengths, tmp_path / "resumed", *flags)
    check_same_run(tmp_path / "resumed", tmp_path / "whole", step)


# A run that is started again after its end


def content_of(folder) -> dict:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file() and path.name != ".run.lock"}


ENDS = {
    "within an epoch": ["--max_steps", 5, "--lr_scheduler_type", "constant", "--save_steps", 5],
    # The learning rate rises until all is lost: the first evaluation is the best one.
    "early": ["--max_steps", 20, "--learning_rate", 20, "--warmup_steps", 10, "--save_steps", 2, "--eval_strategy", "steps",
              "--eval_steps", 2, "--load_best_model_at_end", "--metric_for_best_model", "loss",
              "--early_stopping_patience", 2],
}  # fmt: skip


@pytest.fixture(scope="module", params=ENDS)
def ended(request, models, mixed_lengths, tmp_path_factory):
    """Return the flags and the output folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("ended") / "out"
    run(run_qa, models, mixed_lengths, folder, *ENDS[request.param])
    assert load(folder / "trainer_state.json")["global_step"] == (6 if request.param == "early" else 5)
    return ENDS[request.param], folder


def test_a_run_that_has_ended_does_nothing(models, mixed_lengths, ended, caplog):
    flags, folder = ended
    before = content_of(folder)
    caplog.clear()
    run(run_qa, models, mixed_lengths, folder, *flags)
    assert content_of(folder) == before
    (line,) = [record.getMessage() for record in caplog.records if "holds this training" in record.getMessage()]
    step, steps = (load(folder / "trainer_state.json")[name] for name in ("global_step", "max_steps"))
    assert line.startswith(f"{folder} holds this training at its end (step {step} of {steps}); left to do: nothing")


def test_results_that_are_missing_are_made(models, mixed_lengths, ended, tmp_path):
    """With the trained model, which stays as it is; those of another command too, and each once."""
    flags, folder = ended
    out, scored = tmp_path / "out", tmp_path / "scored"
    shutil.copytree(folder, out)
    before = content_of(out)
    flags = [*flags, "--do_eval", "--n_best_size", 3]
    run(run_qa, models, mixed_lengths, out, *flags)
    run(run_qa, models, mixed_lengths, scored, *flags[-3:], "--do_train", False, "--model_name_or_path", folder)
    results, expected = (load(place / "eval_results.json") for place in (out, scored))
    assert without_times(results) == without_times(expected)
    texts, expected = (load(place / "eval_nbest_predictions.json") for place in (out, scored))
    assert texts == expected and all(len(rows) <= 3 for rows in texts.values())
    after = content_of(out)
    changed = {path.name for path in before | after if before.get(path) != after.get(path)}
    evaluation = {"eval_results.json", "eval_predictions.json", "eval_nbest_predictions.json"}
    assert changed == evaluation | {"all_results.json", "run.json"}
    run(run_qa, models, mixed_lengths, out, *flags)
    assert content_of(out) == after


def test_a_run_that_was_killed_at_its_end_takes_no_step(models, mixed_lengths, ended, tmp_path):
    """After its last checkpoint, before it wrote the model: the records are those of all its steps."""
    flags, folder = ended
    step = steps_of(folder)[-1]
    shutil.copytree(folder, tmp_path / "out", ignore=lambda where, names: [name for name in names if where == str(folder)
                                                                        and not name.startswith("checkpoint-")])  # fmt: skip
    run(run_qa, models, mixed_lengths, tmp_path / "out", *flags)
    check_same_run(tmp_path / "out", folder, step)
    assert steps_of(tmp_path / "out") == steps_of(folder)


def test_early_stopping_goes_on_counting(models, mixed_lengths, tmp_path, ended):
    """After one of the two evaluations without progress."""
    flags, folder = ended
    if flags is not ENDS["early"]:
        pytest.skip("the other run has no evaluations")
    for step in (2, 4):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    run(run_qa, models, mixed_lengths, tmp_path / "out", *flags)
    check_same_run(tmp_path / "out", folder, 4)


def test_sums_that_a_checkpoint_lacks_begin_there(models, mixed_lengths, tmp_path, ended):
    """As one of an earlier version lacks them. A training of no step has no records."""
    flags, folder = ended
    if flags is ENDS["early"]:
        pytest.skip("one run is enough")
    checkpoint = tmp_path / "out" / "checkpoint-5"
    shutil.copytree(folder / "checkpoint-5", checkpoint)
    state = load(checkpoint / "trainer_state.json")
    del state["stateful_callbacks"]["RunTotals"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    run(run_qa, models, mixed_lengths, tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "train_results.json").exists()
