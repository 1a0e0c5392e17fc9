"""Which checkpoint a run resumes from, and which files in its output folder are those of a killed run."""

import json
import logging
import re
from pathlib import Path

from qa.checkpoint_files import damage, ranks_of_zero, refusal
from qa.earlier import RESULTS
from qa.errors import UserError
from qa.identity import RUN_FILE
from qa.locks import LOCK_FILE
from qa.saving import CHECKPOINT, UNFINISHED, checkpoints_of


logger = logging.getLogger(__name__)

HALF_WRITTEN = re.compile(r"\..+\.partial|\.tmp[0-9A-Za-z]{6}")


def checkpoint_to_resume(training_args, laid_out_by: str | None) -> str | None:
    """Return the checkpoint to resume from: the one that the flags name, else the last whole one in `output_dir`.

    Raises:
        UserError: `output_dir` holds something else, and --overwrite_output_dir is not given; the checkpoint is not one
            that this run can resume from; or its run had batches of another size, by which a flag lays out features.
    """
    checkpoint = named_or_last_checkpoint(training_args)
    if checkpoint is not None and training_args.deepspeed:
        load_universal(Path(checkpoint), training_args)
    if checkpoint is not None and laid_out_by is not None and training_args.do_train:
        size = json.loads((Path(checkpoint) / "trainer_state.json").read_text()).get("train_batch_size")
        if size not in (None, training_args.train_batch_size):
            raise UserError(
                f"--per_device_train_batch_size {training_args.per_device_train_batch_size}: the run of {checkpoint} has "
                f"{size // max(1, training_args.n_gpu)}, by which --{laid_out_by} is laid out; resume with that"
            )
    return checkpoint


def load_universal(checkpoint: Path, training_args) -> None:
    """Let DeepSpeed load the universal form of a checkpoint that another number of ranks wrote."""
    if ranks_of_zero(checkpoint) not in (None, training_args.world_size):
        logger.warning(f"Resuming from the universal form of {checkpoint}: another number of ranks wrote it")
        training_args.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True


def named_or_last_checkpoint(training_args) -> str | None:
    named = training_args.resume_from_checkpoint
    never = named is not None and named.lower() == "false"
    if named is not None and named.lower() not in ("true", "false"):
        if problem := damage(Path(named), training_args):
            raise UserError(
                f"--resume_from_checkpoint {named} is not a complete checkpoint: {problem}; name another one"
            )
        if problem := refusal(Path(named), training_args):
            raise UserError(f"--resume_from_checkpoint {named}: {problem}")
        return named
    folder = Path(training_args.output_dir)
    if not training_args.do_train or training_args.overwrite_output_dir or not folder.is_dir():
        return None
    last = last_checkpoint(folder, training_args)
    if last is not None and never:
        raise UserError(
            f"--resume_from_checkpoint {named}: --output_dir {folder} holds the checkpoints of an earlier run; name another "
            "folder, or remove them with --overwrite_output_dir"
        )
    if last is not None:
        logger.warning(f"Resuming from {last}; add --overwrite_output_dir to start again")
        return str(last)
    if foreign := foreign_files(folder, Path(training_args.logging_dir)):
        raise UserError(
            f"--output_dir {folder} holds files but no complete checkpoint to resume from ({foreign[0]}); "
            "name another folder, or start again with --overwrite_output_dir"
        )
    return None


def last_checkpoint(folder: Path, training_args) -> Path | None:
    """Return the whole checkpoint with the highest step; warn of each later one, with the reason.

    Raises:
        UserError: the run cannot resume from the last one, although it is no remains of a kill.
    """
    for _, checkpoint in sorted(checkpoints_of(folder).items(), reverse=True):
        if checkpoint.is_dir() and (problem := refusal(checkpoint, training_args)):
            raise UserError(f"--output_dir {folder}: its last checkpoint is {checkpoint.name}; {problem}")
        problem = damage(checkpoint, training_args)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is not complete and is not used: {problem}")
    return None


def foreign_files(folder: Path, logging_dir: Path) -> list[str]:
    """Return the names in an output folder that no run wrote before its first checkpoint, nor an evaluation without a training.

    There are none where a run has not come to its end.
    """
    names = {path.name for path in folder.iterdir()}
    if UNFINISHED in names:
        return []
    own = {LOCK_FILE, RUN_FILE, *RESULTS, "runs"}  # the last one of TensorBoard, by default
    if logging_dir.absolute().is_relative_to(folder.absolute()):
        own.update(logging_dir.absolute().relative_to(folder.absolute()).parts[:1])
    return sorted(name for name in names - own if not HALF_WRITTEN.fullmatch(name) and not CHECKPOINT.fullmatch(name))
