"""Names and JSON in flags: the checks agree with the libraries, which find the same mistakes after everything is loaded."""

import argparse

import pytest
from transformers import Trainer
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, TrainingArguments

from qa.names import json_problems, optimizer_problems, schedule_problems, unknown_name


def values(**settings) -> argparse.Namespace:
    known = {"optim_target_modules": None, "optim_args": None, "learning_rate": 1e-3, "lr_scheduler_kwargs": None}
    return argparse.Namespace(**known | settings)


def test_optimizers_that_need_a_package_are_those_that_the_trainer_cannot_make(tmp_path):
    """Of the installed version of transformers, every one; those for a part of the layers need a model here."""
    training_args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for name in OptimizerNames:
        training_args.optim = name
        try:
            Trainer.get_optimizer_cls_and_kwargs(training_args)
            makes = True
        except (ImportError, ValueError) as error:
            makes = "a `model`" in str(error)
        assert bool(optimizer_problems(values(optim=name.value))) != makes, name


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_schedules_are_made_with_their_settings(kind):
    """Those that need a setting are refused without it; so is a misspelt one."""
    needs = {
        "cosine_with_min_lr": {"min_lr": 1e-5},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-5},
        "warmup_stable_decay": {"num_decay_steps": 1},
    }
    assert bool(schedule_problems(values(lr_scheduler_type=kind))) == (kind in needs)
    assert not schedule_problems(values(lr_scheduler_type=kind, lr_scheduler_kwargs=needs.get(kind)))
    problems = schedule_problems(values(lr_scheduler_type=kind, lr_scheduler_kwargs='{"wrong_name": 1}'))
    ignored = kind in ("constant", "constant_with_warmup", "inverse_sqrt")  # by transformers 4.55
    assert [problem.split()[1] for problem in problems] == ([] if ignored else [kind])


def test_json_of_deepspeed_in_base64_is_left_to_transformers():
    assert (
        not json_problems("deepspeed", "eyJhIjogMX0=")
        and json_problems("deepspeed", "{")
        and not json_problems("deepspeed", "{}")
    )


def test_the_nearest_name_begins_with_the_one_given():
    assert unknown_name("optim", "adam", ["adalomo", "adamw_torch", "sgd"]).endswith("use adamw_torch")
