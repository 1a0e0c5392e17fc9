"""Checkpoints and the finished model: whole or not at all, also after a kill or a loss of power."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qa.files import is_disk_full, remove, replacing, sync, sync_all
from qa.written import is_checkpoint_of_run, write_fingerprints


logger = logging.getLogger(__name__)

# A folder in the output folder of a run that has not come to its end. It holds what is being written or deleted.
UNFINISHED = ".unfinished"
OVERWRITING = "overwriting"  # in it: an earlier run is being removed
SUPERSEDED = "superseded-"  # in it, before the name of a checkpoint: it loses its name to a new one of the same step

CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-[1-9][0-9]*")
WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_config\.json"
)
CONFIGURATIONS = ("config.json", "adapter_config.json")  # without one of them a folder holds no model


class WholeSaves:
    """Mixin for a trainer: a checkpoint or a model has its name only while all of it is on the disk.

    transformers 4.55.4 (and optimum-habana's copy) writes under the final name without a sync, and deletes file by file,
    every folder whose name begins with `checkpoint-`. Here all ranks write into the folder UNFINISHED, and rank 0 renames.
    """

    unfinished: Path | None = None

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self.unfinished is None else str(self.unfinished)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self.writing(folder) as self.unfinished:
            super()._save_checkpoint(model, trial)
            self.note_best_checkpoint(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(self.unfinished / name / "trainer_state.json")
                write_fingerprints(self.unfinished / name)
                publish(self.unfinished / name, folder / name)
                for path in self.surplus_checkpoints(folder):
                    discard(path)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder / name))

    def note_best_checkpoint(self, folder: Path) -> None:
        """Set the state's best checkpoint, if there is one, to the name that it has or gets.

        transformers 4.55.4 lets each rank look for it on the disk; a rank that looks too early would wait forever at the end
        (https://github.com/huggingface/transformers/pull/40923).
        """
        step = self.state.best_global_step
        best = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step is not None and (step == self.state.global_step or best.exists()):
            self.state.best_model_checkpoint = str(best)

    def _push_from_checkpoint(self, checkpoint_folder) -> None:
        """Do nothing where the base class pushes; `_save_checkpoint` does it later, when the folder has its name."""

    def _sorted_checkpoints(self, *args, **kwargs) -> list[str]:
        """Return none to the base class, which would delete them file by file; `surplus_checkpoints` chooses."""
        return []

    def surplus_checkpoints(self, folder: Path) -> list[Path]:
        """Return the checkpoints beyond `--save_total_limit`, never the last one or the best.

        Those of later steps go first: the run resumed before them, so they belong to another course of it.
        """
        limit, step = self.args.save_total_limit, self.state.global_step
        steps = {step: path for step, path in checkpoints_of(folder).items() if is_checkpoint_of_run(path)}
        needed = {path for path in (steps.get(step), steps.get(self.state.best_global_step)) if path is not None}
        others = [steps[number] for number in sorted(steps, key=lambda number: (number <= step, number))]
        others = [path for path in others if path not in needed]
        return others[: max(0, len(steps) - max(limit, len(needed)))] if limit else []

    def train(self, *args, **kwargs):
        """Train; then, with `--save_total_limit 1`, keep the best checkpoint alone if it is known."""
        output = super().train(*args, **kwargs)
        best, folder = self.state.best_model_checkpoint, Path(self.args.output_dir)
        if self.args.save_total_limit == 1 and best is not None:
            with self.writing(folder):
                for path in checkpoints_of(folder).values() if self.args.should_save else ():
                    if path.name != Path(best).name and is_checkpoint_of_run(path):
                        discard(path)
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in the output folder file by file, each one whole, when all are on the disk."""
        if output_dir is not None:
            return super().save_model(output_dir, _internal_call)
        folder = Path(self.args.output_dir)
        with self.writing(folder) as unfinished:
            super().save_model(str(unfinished / "model"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                remove(unfinished / "model" / "README.md")  # peft's card; `qa.card` writes the model's
                remove_weights(folder, kept=unfinished / "model")
                publish_files(unfinished / "model", folder)

    def save_state(self) -> None:
        if self.is_world_process_zero():
            with replacing(Path(self.args.output_dir) / "trainer_state.json") as partial:
                self.state.save_to_json(partial)

    @contextmanager
    def writing(self, folder: Path) -> Iterator[Path]:
        """Yield the folder to write in on all ranks, which leave it together, when everything has its name."""
        try:
            with workplace(folder, tidies=self.args.should_save) as unfinished:
                yield unfinished
        finally:
            self.unfinished = None
        self.accelerator.wait_for_everyone()


@contextmanager
def workplace(folder: Path, tidies: bool = True) -> Iterator[Path]:
    """Yield the folder UNFINISHED; the rank that tidies empties it, and removes it unless a run has begun and not ended.

    Raises:
        OSError: ENOSPC, if an error of the libraries means that.
    """
    unfinished = folder / UNFINISHED
    begun = unfinished.exists()
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        yield unfinished
    except Exception as error:
        if is_disk_full(error, folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    finally:
        if tidies:
            remove_remains(folder)
            if not begun:
                end(folder)


def begin(folder: Path) -> None:
    """Mark an output folder as that of a run that has not come to its end; remove what a killed run left half written."""
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    sync(folder)
    remove_remains(folder)


def end(folder: Path) -> None:
    if not is_being_overwritten(folder):
        remove(folder / UNFINISHED)


def is_being_overwritten(folder: Path) -> bool:
    """Return whether an earlier run in a folder is to be removed, and is not yet gone."""
    return (folder / UNFINISHED / OVERWRITING).exists()


@contextmanager
def overwriting(folder: Path) -> Iterator[None]:
    """Mark a folder until an earlier run in it is gone: after a kill nothing of it is used, and the next run removes it."""
    mark = folder / UNFINISHED / OVERWRITING
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    sync(mark.parent)
    sync(folder)
    yield
    sync(folder)
    mark.unlink()
    sync(mark.parent)


def remove_remains(folder: Path) -> None:
    """Remove what is half written or half deleted; safetensors 0.8.0 writes under the names `.tmp` and six characters.

    A checkpoint that was to be replaced gets its name again if it has no successor.
    """
    for superseded in folder.glob(f"{UNFINISHED}/{SUPERSEDED}*"):
        path = folder / superseded.name.removeprefix(SUPERSEDED)
        if not os.path.lexists(path):
            superseded.rename(path)
            sync(folder)
    left = [path for path in folder.glob(f".tmp{'[0-9A-Za-z]' * 6}") if path.is_file()]
    for path in (*folder.glob(f"{UNFINISHED}/*"), *folder.glob(".*.partial"), *left):
        if path != folder / UNFINISHED / OVERWRITING:
            remove(path)


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """Return what has the name of a checkpoint in a folder, by step.

    >>> [bool(CHECKPOINT.fullmatch(name)) for name in ("checkpoint-12", "checkpoint-precious", "checkpoint-²")]
    [True, False, False]
    """
    return {int(path.name.partition("-")[2]): path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name)}


def publish(partial: Path, path: Path) -> None:
    """Rename a folder to its name when all of it is on the disk.

    A checkpoint that had this name is replaced: after a kill between the two renames, `remove_remains` puts it back. What
    no run wrote is kept under another name.
    """
    sync_all(partial)
    superseded = path.parent / UNFINISHED / f"{SUPERSEDED}{path.name}"
    if os.path.lexists(path):
        path.rename(superseded) if is_checkpoint_of_run(path) else set_aside(path)
    partial.rename(path)
    sync(path.parent)
    remove(superseded)


def publish_files(partial: Path, folder: Path) -> None:
    """Move files into a folder when all of them are on the disk, a model's configuration last."""
    sync_all(partial)
    names = sorted((path.name for path in partial.iterdir()), key=lambda name: (name in CONFIGURATIONS, name))
    for name in names:
        if (folder / name).is_dir():  # of DeepSpeed
            discard(folder / name)
        (partial / name).replace(folder / name)
    sync(folder)


def remove_weights(folder: Path, kept: Path) -> None:
    """Remove the weights of an earlier model from a folder, except those that files of the same name will replace."""
    for path in folder.iterdir():
        if WEIGHTS.fullmatch(path.name) and not (kept / path.name).exists():
            path.unlink()


def set_aside(path: Path) -> None:
    """Rename what somebody else put at the place of a checkpoint."""
    names = (path.with_name(f"{path.name}.kept{number or ''}") for number in count())
    kept = next(name for name in names if not os.path.lexists(name))
    logger.warning(f"{path} holds files that no run wrote; renamed to {kept.name}")
    path.rename(kept)


def discard(path: Path) -> None:
    """Delete a checkpoint: it loses its name at once, and its files then."""
    discarded = path.parent / UNFINISHED / f"discarded-{path.name}"
    path.rename(discarded)
    sync(path.parent)
    remove(discarded)
