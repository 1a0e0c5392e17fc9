"""Length buckets: boundaries, widths and orders against obvious solutions, then the scripts that train and answer with them."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from helpers import examples, load, mixed_training, peak_memory, read_rows, run_in_windows
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

import qa.arguments
import qa.buckets
import qa.device
import qa.models
import qa.order
import run_qa
import run_seq2seq_qa
import trainer_qa
from qa.errors import UserError


BUCKETS = ["32", "64", "96"]
# also those of which few are long
LENGTHS = st.builds(
    lambda some, short: np.array(some + short),
    st.lists(st.integers(1, 56), min_size=1, max_size=30),
    st.lists(st.integers(1, 16), max_size=30),
)


def padded_tokens(lengths, boundaries) -> int:
    return sum(min(boundary for boundary in boundaries if boundary >= length) for length in lengths)


@examples(200)
@given(LENGTHS, st.integers(1, 4))
def test_no_other_boundaries_pad_less(lengths, number):
    chosen = qa.buckets.choose_boundaries(lengths, number, 56)
    assert len(chosen) <= number and chosen[-1] == 56 and chosen == sorted(set(chosen))
    others = [[*others, 56] for k in range(number) for others in combinations(range(8, 56, 8), k)]
    assert padded_tokens(lengths, chosen) == min(padded_tokens(lengths, other) for other in others)


def test_the_work_for_boundaries_grows_with_their_number():
    """A model of 128k tokens has 16,000 boundaries to choose from; a table of pairs of them takes 2 GB."""
    lengths = np.random.default_rng(0).integers(1, 2**17, 1000)
    assert peak_memory(lambda: qa.buckets.choose_boundaries(lengths, 4, 2**17)) < 100 * 2**17 / 8
    every = qa.buckets.choose_boundaries(lengths, 10**6, 2**17)  # as many as there are, at once
    assert every == sorted({*(-(-lengths // 8) * 8).tolist(), 2**17})


@examples(100)
@given(LENGTHS, st.integers(1, 9))
def test_every_bucket_but_the_longest_holds_whole_groups(lengths, group):
    boundaries = [16, 32, 56]
    widths = qa.buckets.pad_widths(lengths, boundaries, group)
    assert (widths >= lengths).all() and set(widths) <= set(boundaries)
    for boundary in boundaries[:-1]:
        inside = lengths[widths == boundary]
        moved = lengths[(lengths <= boundary) & (widths > boundary)]
        assert not len(moved) or not len(inside) or moved.min() >= inside.max()
        assert len(inside) % group == 0 or boundary == widths.max()
    assert (widths == widths.max()).sum() >= min(group, len(lengths))
    assert (
        qa.buckets.pad_widths(lengths, boundaries, 1) == [min(b for b in boundaries if b >= n) for n in lengths]
    ).all()


@examples(100)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_all_ranks_of_a_step_see_one_width_and_every_feature_once(lengths, batch, ranks, drop_last):
    """Through accelerate's own sharding."""
    group = batch * ranks
    widths = qa.buckets.pad_widths(lengths, [16, 32, 56], group)
    orders = [qa.buckets.training_order(widths, group, (3, epoch), drop_last) for epoch in (0, 0, 1)]
    assert (orders[0] == orders[1]).all() and len(orders[0]) == len(orders[2]) and len(orders[0]) % group == 0
    sampler = qa.order.EpochOrderSampler(lambda: orders[0], len(orders[0]))
    shards = [BatchSamplerShard(BatchSampler(sampler, batch, drop_last), ranks, rank) for rank in range(ranks)]
    steps = list(zip(*map(list, shards), strict=True))
    assert len(steps) == len(shards[0])
    for step in steps:
        assert {len(part) for part in step} == {batch} and len({widths[index] for part in step for index in part}) == 1
    counts = np.bincount(orders[0], minlength=len(lengths))
    longest = widths == widths.max()
    left = longest.sum() % group
    there = [width for width in np.unique(widths)[::-1] if (widths == width).sum() >= group]
    assert widths[orders[0][::group]][: len(there)].tolist() == there
    assert len(lengths) < group or counts.max() <= 2
    if drop_last:
        assert counts.max(initial=0) <= 1 and (counts == 0).sum() == left and not (counts == 0)[~longest].any()
    else:
        assert counts.min() >= 1 and (counts[~longest] == 1).all() and len(orders[0]) - len(lengths) == -left % group


def test_epochs_are_shuffled_apart():
    widths = np.repeat([16, 56], 40)
    orders = [qa.buckets.training_order(widths, 4, seed) for seed in ((3, 0), (3, 1), (4, 0))]
    assert len({tuple(order) for order in orders}) == 3
    firsts = widths[orders[0][::4]]  # batches of both widths alternate
    assert 3 < (np.diff(firsts) != 0).sum() < len(firsts)


def test_the_trainers_order_is_that_of_the_epoch_it_is_in():
    trainer = object.__new__(trainer_qa.QuestionAnsweringTrainer)
    trainer.args = SimpleNamespace(
        seed=3, data_seed=None, train_batch_size=2, world_size=2, dataloader_drop_last=False
    )
    features, orders = SimpleNamespace(widths=np.repeat([16, 56], 40)), []
    for epoch in (None, 0.5, 1.0, 1.75, 2.0):
        trainer.state = SimpleNamespace(epoch=epoch)
        orders.append(trainer.order_of_epoch(features).tolist())
    assert orders[0] == orders[1] != orders[2] == orders[3] != orders[4] != orders[0]


@examples(100)
@given(LENGTHS, st.integers(1, 9))
def test_evaluation_comes_back_in_the_order_of_the_features(lengths, group):
    widths = qa.buckets.pad_widths(lengths, [16, 32, 56], group)
    order = qa.buckets.evaluation_order(widths, group)
    assert len(order) % group == 0 and sorted(order[: len(lengths)]) == list(range(len(lengths)))
    steps = widths[order].reshape(-1, group)
    there = [width for width in np.unique(widths)[::-1] if (widths == width).sum() >= group]
    assert (steps == steps[:, :1]).all() and steps[: len(there), 0].tolist() == there
    said = np.arange(len(lengths))[:, None] * [1, 2]
    assert (qa.order.in_order(said[order], order, len(said)) == said).all()


def test_an_evaluation_on_several_ranks_has_no_short_batch():
    """dispatch_batches of accelerate divides a short one among the ranks in another way than those before it."""
    args = SimpleNamespace(eval_batch_size=4, world_size=2, dataloader_drop_last=False, use_habana=False)
    order = qa.order.evaluation_order([{}] * 14, args)
    assert order[:14].tolist() == list(range(14)) and len(order) == 16


@pytest.mark.parametrize(
    "words, problem",
    [
        (
            ["160", "256"],
            "--length_buckets ends at 256, but features have up to --max_seq_length 384 tokens; make",
        ),
        (
            ["256", "160", "384"],
            "--length_buckets 256 160 384: boundaries must increase; sort them, and give each once",
        ),
        (
            ["128", "128", "384"],
            "--length_buckets 128 128 384: boundaries must increase; sort them, and give each once",
        ),
        (
            ["auto", "x"],
            "--length_buckets auto x: give boundaries in tokens, as in `160 256 384`, or `auto`, or `auto 6`",
        ),
        (["0", "384"], "--length_buckets 0 384: give boundaries in tokens"),
        (["384", "--group_by_length"], "--length_buckets does not go with --group_by_length; omit one of them"),
        (
            ["384", "--auto_find_batch_size"],
            "--length_buckets does not go with --auto_find_batch_size; omit one of them",
        ),
    ],
)
def test_impossible_buckets_are_reported(words, problem, squad_files):
    flags = ["--model_name_or_path", "x", "--do_train", "--train_file", str(squad_files / "train.json")]
    with pytest.raises(UserError) as error:
        run_qa.main([*flags, "--length_buckets", *words])
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(problem)


def test_the_last_boundary_of_auto_is_a_multiple_of_8_where_there_is_room():
    lengths = np.array([20, 30, 41])
    for longest, last in ((96, 48), (45, 45)):
        features = SimpleNamespace(lengths=lambda: lengths)
        args = SimpleNamespace(train_batch_size=1, world_size=1)
        qa.buckets.set_widths({"train": features}, ["auto", "2"], longest, args)
        assert features.widths.max() == last


def test_the_numbers_of_auto():
    assert [qa.buckets.read_buckets(words) for words in (["auto"], ["auto", "6"], ["7", "9"])] == [12, 6, [7, 9]]


# The scripts


def test_a_run_has_the_shapes_of_its_buckets_and_the_padded_answers(tiny_model, mixed_lengths, tmp_path, seen):
    flags = ["--do_eval", "--validation_file", mixed_lengths / "dev.json"]
    run_in_windows(
        run_qa,
        tiny_model,
        tmp_path / "trained",
        *mixed_training(mixed_lengths, 4),
        *flags,
        "--length_buckets",
        *BUCKETS,
    )
    expected = {(4, int(width)) for width in BUCKETS}
    assert set(seen["training_step"]) == expected
    assert set(seen["prediction_step"]) == {(8, int(width)) for width in BUCKETS}
    seen["prediction_step"].clear()
    run_in_windows(run_qa, tmp_path / "trained", tmp_path / "padded", *flags)
    assert {width for _, width in seen["prediction_step"]} == {96}
    check_same_answers(tmp_path / "trained", tmp_path / "padded")
    run_in_windows(
        run_qa,
        tmp_path / "trained",
        tmp_path / "auto",
        *flags,
        "--length_buckets",
        "auto",
        "5",
        "--dataloader_drop_last",
    )
    check_same_answers(tmp_path / "auto", tmp_path / "padded")


def check_same_answers(folder, padded) -> None:
    """The same texts and scores of the answers, and nearly the same logits."""
    assert load(folder / "eval_predictions.json") == load(padded / "eval_predictions.json")
    names = ("eval_f1", "eval_exact_match")
    scores, expected = ({n: load(where / "eval_results.json")[n] for n in names} for where in (folder, padded))
    assert scores == expected
    nbest, expected = (load(where / "eval_nbest_predictions.json") for where in (folder, padded))
    for name, rows in expected.items():  # of the others some may pair with a place in the padding
        assert nbest[name][0]["start_logit"] == pytest.approx(rows[0]["start_logit"], abs=1e-4)


def test_dropping_last_batches_drops_no_answers(tiny_model, mixed_lengths, tmp_path):
    """transformers drops them in evaluation too."""
    flags = ["--do_eval", "--validation_file", mixed_lengths / "dev.json", "--max_eval_samples", "13"]
    run_in_windows(run_qa, tiny_model, tmp_path / "kept", *flags)
    run_in_windows(run_qa, tiny_model, tmp_path / "dropped", *flags, "--dataloader_drop_last")
    check_same_answers(tmp_path / "dropped", tmp_path / "kept")


def test_a_run_is_not_resumed_with_batches_of_another_size(tiny_model, mixed_lengths, tmp_path):
    """transformers 4.55 continues with those of the checkpoint, which would hold features of several buckets."""
    flags = [*mixed_training(mixed_lengths, 4), "--max_steps", "1", "--save_steps", "1"]
    run_in_windows(run_qa, tiny_model, tmp_path, *flags, "--length_buckets", *BUCKETS)
    flags[flags.index("--per_device_train_batch_size") + 1] = "8"
    flags[flags.index("--max_steps") + 1] = "2"
    flags.append("--resume_anyway")
    with pytest.raises(UserError) as error:
        run_in_windows(run_qa, tiny_model, tmp_path, *flags, "--length_buckets", *BUCKETS)
    (problem,) = error.value.problems
    assert (
        problem.startswith("--per_device_train_batch_size 8: the run of")
        and "has 4, by which --length_buckets" in problem
    )
    run_in_windows(run_qa, tiny_model, tmp_path, *flags)


@pytest.mark.parametrize("buckets", [[], ["--length_buckets", *BUCKETS]])
def test_dropping_all_training_features_is_reported(tiny_model, mixed_lengths, tmp_path, buckets):
    flags = [*mixed_training(mixed_lengths, 4), "--max_train_samples", "1", "--dataloader_drop_last", *buckets]
    flags += ["--per_device_train_batch_size", "16", "--check"]
    with pytest.raises(UserError) as error:
        run_in_windows(run_qa, tiny_model, tmp_path, *flags)
    (problem,) = error.value.problems
    assert problem.startswith("--dataloader_drop_last drops all ") and problem.endswith(": a step takes 16")


def test_a_writing_model_writes_the_same(tiny_writers, mixed_lengths, tmp_path, seen):
    flags = [
        "--do_eval",
        "--validation_file",
        mixed_lengths / "dev.json",
        "--predict_with_generate",
        "--max_answer_length", 9, "--per_device_eval_batch_size", 4]  # fmt: skip
    run_in_windows(run_seq2seq_qa, tiny_writers["t5"], tmp_path / "padded", *flags)
    seen["prediction_step"].clear()
    train = mixed_training(mixed_lengths, 4)[:-2] + ["--learning_rate", "0"]
    run_in_windows(
        run_seq2seq_qa, tiny_writers["t5"], tmp_path / "buckets", *flags, *train, "--length_buckets", "48", "64", "96"
    )
    assert (
        {width for _, width in seen["prediction_step"]}
        == {48, 64, 96}
        == {width for _, width in seen["training_step"]}
    )
    names = ("eval_predictions.json", "eval_results.json")
    texts, expected = (load(tmp_path / where / names[0]) for where in ("buckets", "padded"))
    assert texts == expected and len(set(texts.values())) > 3
    results, expected = (load(tmp_path / where / names[1]) for where in ("buckets", "padded"))
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=0.05)  # the last batch is filled up


# Time in the results


def test_tokens_and_padding_are_counted(tiny_model, mixed_lengths, tmp_path):
    """Against the features themselves; the rates omit the first steps and the pauses, one of which is in the first steps."""
    flags = [
        *mixed_training(mixed_lengths, 4),
        "--dataloader_drop_last",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
    ]
    flags += ["--gradient_accumulation_steps", "2"]
    flags += ["--do_eval", "--validation_file", mixed_lengths / "dev.json", "--length_buckets", *BUCKETS]
    run_in_windows(run_qa, tiny_model, tmp_path, *flags, "--throughput_warmup_steps", "3")
    results, evaluated = load(tmp_path / "train_results.json"), load(tmp_path / "eval_results.json")
    rows = read_rows(mixed_lengths / "train.json")
    tokenizer = qa.models.load_config_and_tokenizer(qa.arguments.ModelArguments(str(tiny_model)))[1]
    features = run_qa.prepare_features(rows, tokenizer, 96, 16)
    widths = qa.buckets.pad_widths(features.lengths(), [int(word) for word in BUCKETS], 4)
    orders = [qa.buckets.training_order(widths, 4, (42, epoch), drop_last=True) for epoch in (0, 1)]
    real = sum(features.lengths()[order].sum() for order in orders)
    assert results["train_padding_share"] == pytest.approx(
        1 - real / sum(widths[order].sum() for order in orders), abs=1e-4
    )
    samples = sum(map(len, orders)) - 6 * 4
    steady = samples / results["train_steady_samples_per_second"]
    pauses = results["train_evaluation_runtime"] + results["train_saving_runtime"]
    assert results["train_evaluation_runtime"] > 0
    parts = results["train_first_steps_runtime"] + steady + pauses
    assert parts < results["train_runtime"] and parts == pytest.approx(results["train_runtime"], rel=0.2)
    seconds = samples / results["train_samples_per_second"]  # without the pauses before
    assert steady < seconds < steady + pauses
    updates = sum(-(-len(order) // 8) for order in orders) - 3
    assert results["train_steps_per_second"] == pytest.approx(updates / seconds, abs=2e-3)
    logged = load(tmp_path / "trainer_state.json")["log_history"][-1]
    assert {name: results[name] for name in logged if name.startswith("train_")}.items() <= logged.items()
    first = features.lengths()[orders[0][: 6 * 4]].sum()
    assert results["train_tokens_per_second"] * steady == pytest.approx(real - first, rel=0.01)
    assert evaluated["eval_postprocess_runtime"] > 0 and evaluated["eval_first_steps_runtime"] > 0
    for shapes, batch in ((results["train_shapes_runtime"], 4), (evaluated["eval_shapes_runtime"], 8)):
        assert list(shapes["first_steps"]) == [f"{batch} x {width}" for width in reversed(BUCKETS)]
        assert shapes["shapes"] == 3 and min(shapes["first_steps"].values()) > 0 < shapes["later_step"]
