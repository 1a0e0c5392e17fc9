"""Disks without room for the checkpoints of a run, before anything is loaded."""

import argparse
import re

import pytest
import torch

from qa.errors import UserError
from qa.room import check_room, checkpoints_at_once


def training_args(folder="nowhere", **settings) -> argparse.Namespace:
    known = {
        "output_dir": str(folder),
        "do_train": True,
        "save_only_model": False,
        "optim": "adamw_torch",
        "max_steps": -1,
    }
    known |= {"train_batch_size": 4, "world_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": 3.0}
    known |= {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None, "fsdp": []}
    known |= {
        "early_stopping_patience": None,
        "max_train_minutes": None,
        "dataloader_drop_last": False,
        "deepspeed": None,
        "merge_lora": False,
    }
    return argparse.Namespace(**known | settings)


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({}, 15),  # 100 features, 25 steps an epoch, 75 in all
        ({"max_steps": 11}, 3),
        ({"save_steps": 0.3}, 4),
        ({"save_total_limit": 2}, 3),  # the third is written before the first one goes
        ({"save_total_limit": 99}, 15),
        ({"save_strategy": "epoch"}, 3),
        ({"save_strategy": "epoch", "num_train_epochs": 2.5}, 3),
        ({"save_strategy": "no"}, 0),
        ({"early_stopping_patience": 1}, 2),
        ({"max_train_minutes": 5.0}, 1),
        ({"save_strategy": "best"}, 1),
        ({"gradient_accumulation_steps": 5}, 3),
    ],
)
def test_the_number_of_checkpoints_at_the_same_time(settings, kept):
    assert checkpoints_at_once(100, training_args(**settings)) == kept


def test_a_disk_without_room_is_an_error(tmp_path):
    """A model of 13 billion parameters has 156 GB for a checkpoint, and 52 GB without the optimizer; there are a million."""
    with torch.device("meta"):
        model = torch.nn.Linear(13_000_000_000, 1, bias=False)
    features = {"train": range(40)}
    many = {"max_steps": 10**6, "save_steps": 1}
    for settings, one, all_of_them in (
        ({}, "156.0", "156,000,052.0"),
        ({"save_only_model": True}, "52.0", "52,000,052.0"),
        ({"optim": "sgd"}, "52.0", "52,000,052.0"),
    ):
        with pytest.raises(UserError) as caught:
            check_room(model, features, training_args(tmp_path / "new" / "out", **many, **settings))
        (problem,) = caught.value.problems
        assert re.fullmatch(
            rf"--output_dir {tmp_path}/new/out: the model and 1,000,000 checkpoints of {one} GB need {all_of_them} GB, but "
            r"[\d,.]+ GB are free; keep fewer checkpoints \(--save_total_limit\), or name a folder on another disk",
            problem,
        )
    check_room(model, features, training_args(tmp_path, **many, do_train=False))
    check_room(torch.nn.Linear(2, 2), features, training_args(tmp_path))


def test_checkpoints_that_are_there_are_not_needed_again(tmp_path):
    """The free disk is compared with what is still to be written; files of a hole count with their length."""
    (tmp_path / "checkpoint-1").mkdir()
    with (tmp_path / "checkpoint-1" / "optimizer.pt").open("wb") as file:
        file.truncate(2**42)
    with torch.device("meta"):
        model = torch.nn.Linear(10**11, 1, bias=False)
    args = {"save_strategy": "best", "save_only_model": True}  # the model and one checkpoint: 0.8 TB
    check_room(model, {"train": range(40)}, training_args(tmp_path, **args))
    with pytest.raises(UserError):
        check_room(model, {"train": range(40)}, training_args(tmp_path / "other", **args))
