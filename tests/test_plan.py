"""The plan that `--check` prints, compared with the run: steps, shapes, checkpoints, bytes, parameters and memory."""

import argparse
import math
import re
from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from helpers import examples, load, memory_of_second_step
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

import qa.plan
import run_qa
import run_seq2seq_qa
import trainer_qa
from qa.plan import SMALL_FILES
from qa.steps import count_checkpoints, count_evaluations, count_steps


COMMON = "--max_seq_length 96 --doc_stride 16 --report_to none --disable_tqdm True --learning_rate 1e-3"
TRAIN = f"{COMMON} --do_train --per_device_train_batch_size 8 --do_eval --logging_steps 1"
# Script, model and flags; the features are not multiples of the batches.
RUNS = {
    "padded": (run_qa, "bert", f"{TRAIN} --num_train_epochs 1.5 --save_strategy epoch"),
    "buckets": (
        run_qa,
        "bert",
        f"""{TRAIN} --length_buckets 48 64 96 --gradient_accumulation_steps 3 --bf16 --num_train_epochs 1 --warmup_ratio 0.3
        --save_steps 3 --save_total_limit 2 --eval_strategy steps --eval_steps 3 --max_eval_samples 20""",
    ),
    "packed": (
        run_qa,
        "bert",
        f"{TRAIN} --pack --num_train_epochs 1.5 --gradient_accumulation_steps 2 --eval_strategy epoch",
    ),
    "writer": (
        run_seq2seq_qa,
        "t5",
        f"""{TRAIN} --max_steps 4 --save_steps 0.3 --gradient_checkpointing --max_answer_length 9 --dataloader_drop_last
        --optim sgd --predict_with_generate --max_eval_samples 20""",
    ),
    "adapters": (
        run_qa,
        "bert",
        f"{TRAIN} --max_steps 4 --save_steps 2 --gradient_checkpointing --dataloader_drop_last --max_eval_samples 20 --lora_r 4 --merge_lora",
    ),
    "evaluation": (
        run_qa,
        "bert",
        f"{COMMON} --do_eval --do_predict --length_buckets auto --per_device_eval_batch_size 4",
    ),
}


@pytest.fixture
def plans(monkeypatch):
    """Return the plans that the next runs make."""
    made, make = [], qa.plan.make_plan
    monkeypatch.setattr(qa.plan, "make_plan", lambda *args: made.append(make(*args)) or made[-1])
    return made


@pytest.fixture
def shapes(monkeypatch):
    """Return the shapes of the batches of the next runs, by the method that gets them."""
    seen = {"training_step": [], "prediction_step": []}
    for name in seen:
        monkeypatch.setattr(trainer_qa.FeatureOrder, name, noting(seen[name], name), raising=False)
    return seen


def noting(shapes: list, name: str):
    def step(self, model, inputs, *args, **kwargs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return getattr(super(trainer_qa.FeatureOrder, self), name)(model, inputs, *args, **kwargs)

    return step


@pytest.fixture
def command(tiny_model, tiny_writers, mixed_lengths, tmp_path):
    """Return a function that returns the script and the words of a run of `RUNS`."""

    def words(name: str) -> tuple:
        script, model, flags = RUNS[name]
        files = [f"--{flag}_file" for flag in ("train", "validation", "test")]
        data = [
            word
            for flag in files
            for word in (flag, mixed_lengths / ("train.json" if "train" in flag else "dev.json"))
        ]
        model = tiny_model if model == "bert" else tiny_writers[model]
        return script, [
            *map(str, [*flags.split(), *data, "--model_name_or_path", model, "--output_dir", tmp_path / "out"])
        ]

    return words


@given(
    number=some.integers(1, 40),
    batch=some.integers(1, 4),
    ranks=some.integers(1, 3),
    accumulated=some.integers(1, 3),
    drop=some.booleans(),
    epochs=some.sampled_from([0.1, 1.0, 1.5, 3.0]),
    max_steps=some.sampled_from([-1, -1, 1, 7]),
    every=some.sampled_from([1, 3, 50, 0.3]),
    strategy=some.sampled_from(["no", "steps", "epoch"]),
    delay=some.sampled_from([0, 1, 2, 0.7]),
)
@examples(60)
def test_steps_evaluations_and_checkpoints_are_those_of_the_libraries(
    number, batch, ranks, accumulated, drop, epochs, max_steps, every, strategy, delay
):
    """accelerate's number of batches, and transformers' own callback, in the order in which the trainer calls it."""
    args = argparse.Namespace(
        train_batch_size=batch, world_size=ranks, gradient_accumulation_steps=accumulated, dataloader_drop_last=drop
    )
    vars(args).update(num_train_epochs=epochs, max_steps=max_steps, eval_on_start=False, eval_delay=delay)
    vars(args).update({f"{name}_steps": every for name in ("eval", "save", "logging")}, logging_first_step=False)
    args.eval_strategy = args.logging_strategy = IntervalStrategy(strategy)
    args.save_strategy, args.save_total_limit = SaveStrategy(strategy), None
    args.max_train_minutes = args.early_stopping_patience = None
    sampler = BatchSampler(SequentialSampler(range(number)), batch, drop)
    batches = len(BatchSamplerShard(sampler, ranks, even_batches=True))
    if not batches:  # reported before
        return
    updates = [index for index in range(batches) if (index + 1) % accumulated == 0 or index + 1 == batches]
    total = max_steps if max_steps > 0 else math.ceil(epochs * len(updates))
    assert count_steps(number, args) == (len(updates), total)
    found = [count(len(updates), total, args) for count in (count_evaluations, count_checkpoints)]
    assert found == events(len(updates), total, args)


def events(epoch: int, total: int, args) -> list[int]:
    """Return how often transformers' callback asks for an evaluation and for a checkpoint."""
    state, control, flow = TrainerState(max_steps=total), TrainerControl(), DefaultFlowCallback()
    state.compute_steps(args, total)
    counts = [0, 0]

    def call(event: str) -> None:
        control.should_evaluate = control.should_save = False
        getattr(flow, event)(args, state, control)
        counts[0] += control.should_evaluate
        counts[1] += control.should_save

    while state.global_step < total:
        for _ in range(min(epoch, total - state.global_step)):
            state.global_step += 1
            state.epoch = state.global_step / epoch
            call("on_step_end")
        call("on_epoch_end")
    return counts


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_is_that_of_the_run(command, plans, shapes, tmp_path, capsys, name):
    script, words = command(name)
    script.main([*words, "--check", "--check_steps", "2"])
    (plan,) = plans
    assert not (tmp_path / "out").exists()
    check_lines(capsys.readouterr().out, plan)
    check_steps_taken(plan, shapes)
    with memory_of_second_step() as peaks:
        script.main(words)
    if plan.training:
        check_training(plan, tmp_path / "out", shapes["training_step"])
        assert plan.memory.total() == pytest.approx(*peaks, rel=0.02)
    evaluated = {shape for split, part in plan.parts.items() if split != "train" for shape in part.shapes}
    assert set(shapes["prediction_step"]) == evaluated
    assert (len(evaluated) > 4) == (name == "evaluation")  # more lengths than `auto` has on a Gaudi


def check_lines(printed: str, plan) -> None:
    """Check the lines of a plan, and that they are few and begin with a title, whose texts are aligned."""
    *lines, end = printed.splitlines()
    titles = [re.match(r"(\S+(?: \S+)*) {2,}\S", line) for line in lines]
    assert len(lines) < 15 and all(titles) and len({title.end() for title in titles}) == 1
    assert end.startswith("checked, a run could start: ")
    assert f"{plan.parameters:,}" in printed and re.search(
        r"^speed .*(evaluation|prediction) \S+ samples/s", printed, re.MULTILINE
    )
    assert re.search(r"^time +about \S+ .*evaluation \S+ s", printed, re.MULTILINE)


def check_steps_taken(plan, shapes: dict) -> None:
    """Check that each split took one step of each shape and then two, all of whole batches, and forget them."""
    expected = {"training_step": Counter(), "prediction_step": Counter()}
    for split, part in plan.parts.items():
        accumulated, step = (
            (plan.training.accumulated, "training_step") if split == "train" else (1, "prediction_step")
        )
        whole = max(batch for batch, _ in part.shapes)
        expected[step].update({shape: 3 * accumulated for shape in part.shapes if shape[0] == whole})
    assert {step: Counter(taken) for step, taken in shapes.items()} == expected
    for taken in shapes.values():
        taken.clear()


def test_steps_of_a_check_change_nothing(command, tmp_path, capsys):
    """Not in the folder of a run that was trained, either."""
    script, words = command("padded")
    script.main([*words, "--max_steps", "2"])

    def files() -> dict:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    script.main([*words, "--max_steps", "4", "--resume_anyway", "--check", "--check_steps", "1"])
    assert "4 steps, 20 an epoch, 2 of them done" in capsys.readouterr().out and files() == before


def check_training(plan, folder, shapes: list) -> None:
    """Check the numbers of a training by the files that it wrote and the shapes of its batches."""
    training, state = plan.training, load(folder / "trainer_state.json")
    assert training.steps == state["global_step"]
    assert training.epoch_steps == math.ceil(plan.parts["train"].steps / training.accumulated)
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert training.evaluations == sum("eval_runtime" in entry for entry in state["log_history"])
    assert len(rates) == training.steps and rates.index(max(rates)) == training.warmup
    assert set(shapes) == set(plan.parts["train"].shapes)
    checkpoints = sorted(folder.glob("checkpoint-*"))
    assert training.checkpoints == len(checkpoints)
    model = load_file(folder / "model.safetensors").values()
    assert training.model_bytes == sum(tensor.nbytes for tensor in model)
    (weights,) = checkpoints[0].glob("*model.safetensors")
    tensors = load_file(weights).values()
    assert plan.trainable == sum(tensor.numel() for tensor in tensors)
    assert training.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert (plan.trainable == plan.parameters) == (weights.name == "model.safetensors")
    states = torch.load(checkpoints[0] / "optimizer.pt", weights_only=True)["state"].values()
    assert training.state_bytes == sum(tensor.nbytes for state in states for tensor in state.values() if tensor.ndim)
    written = [path for part in (folder, *checkpoints) for path in part.glob("[!e]*") if path.is_file()]  # no answers
    assert training.disk_bytes() == pytest.approx(
        sum(path.stat().st_size for path in written), rel=0.05, abs=SMALL_FILES
    )
