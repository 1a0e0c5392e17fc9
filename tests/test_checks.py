"""Checks of a command line: by which score the best model can be chosen, and when."""

import pytest
from helpers import free_port
from test_command_line import problems_of

from qa.arguments import Seq2SeqDataArguments, Seq2SeqModelArguments
from qa.errors import UserError
from qa.start import start


TRAIN = ("--do_train", "--do_eval", "--dataset_name", "squad")
EVALUATED = (*TRAIN, "--eval_strategy", "epoch")


def test_names_of_scores():
    """Each was a KeyError at the first evaluation during training."""
    best = (*EVALUATED, "--metric_for_best_model")
    assert problems_of(*best, "exact") == [
        "--metric_for_best_model exact is not a score of this run (loss, exact_match, f1); use exact_match"
    ]
    (problem,) = problems_of(*best, "eval_EM", "--version_2_with_negative")
    assert problem.endswith("HasAns_exact, HasAns_f1, NoAns_exact, NoAns_f1, best_exact, best_f1); use exact")
    for name, nearest in (
        ("exact_match", "exact"),
        ("HasAns_F1", "HasAns_f1"),
        ("best_f1_thresh", "best_f1"),  # no score
        ("accuracy", "loss or exact or f1"),
    ):
        (problem,) = problems_of(*best, name, "--version_2_with_negative")
        assert problem.startswith(f"--metric_for_best_model {name} is not a score") and problem.endswith(
            f"use {nearest}"
        )
    (problem,) = problems_of(*best, "mlqa_em")
    assert problem.endswith("(loss, exact_match, f1); use loss or exact_match or f1")
    (problem,) = problems_of(*best, "mlqa_f2", "--answer_language", "auto")
    assert problem.endswith("use mlqa_f1")
    (problem,) = problems_of(*best, "f1", "--prediction_loss_only")
    assert problem == "--metric_for_best_model f1 needs written answers; omit --prediction_loss_only"


def test_right_names_are_accepted():
    """With and without `eval_`; only the problem of another flag is reported. The right direction is not asked for."""
    negatives = ("exact", "f1", "NoAns_f1", "best_exact", "loss")
    for more, names in (
        ((), ("exact_match", "f1", "loss")),
        (("--version_2_with_negative",), negatives),
        (("--answer_language", "de"), ("mlqa_f1", "mlqa_exact_match")),
    ):
        for name in (*names, *(f"eval_{name}" for name in names)):
            (problem,) = problems_of(*EVALUATED, *more, "--metric_for_best_model", name, "--n_best_size", "0")
            assert problem.startswith("--n_best_size")
    # Where nothing is compared, the name of a score of another run is good, but not one that no run has.
    for flags in ((*TRAIN, "--metric_for_best_model"), (*EVALUATED[1:], "--metric_for_best_model")):
        (problem,) = problems_of(*flags, "HasAns_f1", "--n_best_size", "0")
        assert problem.startswith("--n_best_size")
        (problem,) = problems_of(*flags, "f11")
        assert problem == "--metric_for_best_model f11 is not a score of this run (loss, exact_match, f1); use f1"


@pytest.mark.parametrize("flag", ["--save_strategy best", "--early_stopping_patience"])
def test_choosing_needs_evaluations_and_a_score(flag):
    """An AssertionError or ValueError once the model is loaded; `best` without evaluations never saved anything."""
    words = flag.split() + ["3"] * (flag == "--early_stopping_patience")
    evaluation, score = "--eval_strategy epoch (or steps)", "--metric_for_best_model f1"
    compares = f"{flag} compares evaluations during training; add"
    assert problems_of(*TRAIN, *words) == [f"{compares} {evaluation} and {score}"]
    assert problems_of(*EVALUATED, *words) == [f"{compares} {score}"]
    assert problems_of(*TRAIN, *words, "--metric_for_best_model", "f1") == [f"{compares} {evaluation}"]


def test_the_worst_model_is_not_kept():
    best = (*EVALUATED, "--save_strategy", "best", "--metric_for_best_model")
    for name, greater in (("f1", "False"), ("eval_loss", "True")):
        (problem,) = problems_of(*best, name, "--greater_is_better", greater)
        assert problem.startswith(f"--greater_is_better {greater} keeps the worst")


def test_a_model_that_writes_has_scores_only_when_it_writes():
    words = ["--model_name_or_path", "m", *EVALUATED, "--metric_for_best_model"]
    for name, more, problem in (
        ("f1", (), "--metric_for_best_model f1 needs written answers; add --predict_with_generate"),
        ("exact", (), "--metric_for_best_model exact is not a score of this run (loss); use loss"),
        ("exact", ("--predict_with_generate",), "use exact_match"),
    ):
        with pytest.raises(UserError) as caught:
            start([*words, name, *more], Seq2SeqModelArguments, Seq2SeqDataArguments, seq2seq=True)
        assert str(caught.value).endswith(problem)


@pytest.fixture
def one_of_two_ranks(monkeypatch):
    """Let this process be rank 0 of two, of which the other one never comes."""
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)


def test_a_mistake_is_reported_before_a_rank_waits_for_others(one_of_two_ranks):
    (problem,) = problems_of(*TRAIN, "--n_best_size", "0", "--ddp_timeout", "1")
    assert problem.startswith("--n_best_size")


def test_batches_of_several_lengths_are_not_shared_out(one_of_two_ranks, monkeypatch):
    """accelerate puts those of a step together: a RuntimeError at the first step whose batches differ."""
    shares = (*TRAIN, "--n_best_size", "0", "--accelerator_config", '{"dispatch_batches": true}')
    mixed = (*shares, "--pad_to_max_length", "False")
    _, problem = problems_of(*mixed)
    assert problem.startswith("--pad_to_max_length False: the batches of the ranks have several lengths")
    assert len(problems_of(*mixed, "--length_buckets", "128", "384")) == len(problems_of(*shares)) == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(problems_of(*mixed)) == 1
