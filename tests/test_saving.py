"""Which checkpoints are deleted, and how files get their names; kills at every moment are in runs/test_kills.py."""

import errno
import os
import signal
import sys
from itertools import count
from types import SimpleNamespace

import pytest

from qa.files import is_disk_full, read_object
from qa.saving import (
    UNFINISHED,
    WholeSaves,
    checkpoints_of,
    discard,
    publish,
    publish_files,
    remove_remains,
    remove_weights,
    workplace,
)
from qa.written import is_checkpoint_of_run


@pytest.mark.parametrize(
    ("steps", "step", "best", "limit", "deleted"),
    [
        ([3, 6, 9], 9, None, None, []),
        ([3, 6, 9], 9, None, 2, [3]),
        ([3, 6, 9], 9, None, 1, [3, 6]),
        ([3, 6, 9], 9, 3, 2, [6]),
        ([3, 6, 9], 9, 3, 1, [6]),  # the best and the last one stay
        ([3, 6, 9], 9, 9, 1, [3, 6]),
        ([3, 6, 12], 6, None, 2, [12]),  # the run resumed from 3, as 12 was damaged
        ([100, 9], 100, None, 1, [9]),
    ],
)
def test_which_checkpoints_are_deleted(tmp_path, steps, step, best, limit, deleted):
    """As transformers does, by number and not by time, and none of the user's."""
    for name in [
        *(f"checkpoint-{number}" for number in steps),
        "checkpoint-precious",
        "checkpoint-²",
        "checkpoint-3.old",
    ]:
        (tmp_path / name).mkdir()
    trainer = WholeSaves()
    trainer.args = SimpleNamespace(save_total_limit=limit)
    trainer.state = SimpleNamespace(global_step=step, best_global_step=best)
    assert sorted(trainer.surplus_checkpoints(tmp_path)) == sorted(tmp_path / f"checkpoint-{n}" for n in deleted)


@pytest.mark.parametrize(
    ("names", "own"),
    [
        ([], True),
        (["trainer_state.json", "model.safetensors", "vocab.txt"], True),
        (["config.json", "training_args.bin"], True),  # of an earlier version's run that was killed
        (["trainer_state.json", "global_step3/mp_rank_00_model_states.pt", "latest"], True),
        (["notes.txt"], False),
        (["trainer_state.json", "notes.txt"], False),
        (["config.json", "model.safetensors"], False),  # a model
    ],
)
def test_only_what_a_run_wrote_is_deleted(tmp_path, names, own):
    """Neither beyond the limit nor to make room for a checkpoint of the same step; and it does not count."""
    folder = tmp_path / "checkpoint-3"
    (folder / "global_step3").mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    (tmp_path / "checkpoint-6").mkdir()
    trainer = WholeSaves()
    trainer.args = SimpleNamespace(save_total_limit=1)
    trainer.state = SimpleNamespace(global_step=6, best_global_step=None)
    assert is_checkpoint_of_run(folder) == own
    assert trainer.surplus_checkpoints(tmp_path) == ([folder] if own else [])
    with workplace(tmp_path) as unfinished:
        (unfinished / "checkpoint-3").mkdir()
        publish(unfinished / "checkpoint-3", folder)
    assert not any(folder.iterdir())
    kept = [path.name for path in (tmp_path / "checkpoint-3.kept").glob("*.*")]
    assert sorted(kept) == ([] if own else sorted(names))


def test_a_file_at_the_place_of_a_checkpoint_is_kept_unless_it_is_empty(tmp_path):
    for content in ("", "mine", "also mine"):
        (tmp_path / "checkpoint-3").write_text(content)
        with workplace(tmp_path) as unfinished:
            (unfinished / "checkpoint-3").mkdir()
            publish(unfinished / "checkpoint-3", tmp_path / "checkpoint-3")
        (tmp_path / "checkpoint-3").rmdir()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "checkpoint-3.kept": "mine",
        "checkpoint-3.kept1": "also mine",
    }


def test_a_link_to_a_checkpoint_elsewhere_goes_alone(tmp_path):
    (tmp_path / "disk" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "checkpoint-3").symlink_to(tmp_path / "disk" / "checkpoint-3")
    with workplace(tmp_path):
        discard(checkpoints_of(tmp_path)[3])
    assert [path.name for path in tmp_path.iterdir()] == ["disk"] and (tmp_path / "disk" / "checkpoint-3").is_dir()


def test_weights_of_an_earlier_model_do_not_stay_next_to_new_ones(tmp_path):
    """transformers would load model.safetensors, and not the shards that were saved later."""
    new = tmp_path / "new"
    new.mkdir()
    for name in ("model.safetensors", "pytorch_model.bin", "model_of_mine.bin", "config.json"):
        (tmp_path / name).write_text("old")
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"):
        (new / name).write_text("new")
    remove_weights(tmp_path, kept=new)
    publish_files(new, tmp_path)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert found.pop("model_of_mine.bin") == "old" and set(found.values()) == {"new"} and len(found) == 3


def test_nothing_half_written_stays_when_a_save_fails(tmp_path):
    with pytest.raises(RuntimeError, match="of the library"), workplace(tmp_path) as unfinished:
        (unfinished / "checkpoint-3").mkdir()
        raise RuntimeError("of the library")
    assert not list(tmp_path.iterdir())
    (tmp_path / UNFINISHED).mkdir()  # a run has begun
    with workplace(tmp_path) as unfinished:
        (unfinished / "checkpoint-3").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == [UNFINISHED]


def test_a_full_disk_is_recognized(tmp_path):
    """By the number or the text of the error; a bare `file write failed` means it only where nothing can be written."""
    assert is_disk_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path)
    assert is_disk_full(ValueError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert not is_disk_full(RuntimeError("file write failed"), tmp_path) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", '{"eval_f1": 1', "[1]", "null", "[" * 99999, None])
def test_results_that_were_cut_off_count_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / "all_results.json").write_text(content)
    assert read_object(tmp_path / "all_results.json") == {}


def test_a_checkpoint_that_is_replaced_survives_a_kill(tmp_path):
    """At each change of a name and each removal: the old one or the new one has the name, and is whole."""
    survivors = []
    for number in range(1, 20):
        folder = tmp_path / str(number)
        for checkpoint in (folder / "checkpoint-3", folder / UNFINISHED / "checkpoint-3"):
            checkpoint.mkdir(parents=True)
            for name in ("trainer_state.json", "optimizer.pt"):
                (checkpoint / name).write_text(checkpoint.parent.name)
        killed = killed_at_change(
            number, lambda: publish(folder / UNFINISHED / "checkpoint-3", folder / "checkpoint-3")
        )
        remove_remains(folder)
        (content,) = {path.read_text() for path in (folder / "checkpoint-3").iterdir()}
        assert len(list((folder / "checkpoint-3").iterdir())) == 2 and not any((folder / UNFINISHED).iterdir())
        survivors.append("new" if content == UNFINISHED else "old")
        if not killed:
            break
    assert survivors == ["old"] * 2 + ["new"] * 4


def killed_at_change(number: int, function) -> bool:
    """Call a function in a fork that is killed before its N-th renaming or removal; return whether it was."""
    process = os.fork()
    if process == 0:
        changes = count(1)

        def kill(event: str, args: tuple) -> None:
            if event in ("os.rename", "os.remove", "os.rmdir") and next(changes) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        function()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])
