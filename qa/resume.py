"""Which checkpoint a run resumes from."""

import json
import logging
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qa.errors import UserError
from qa.identity import RUN_FILE
from qa.locks import LOCK_FILE


logger = logging.getLogger(__name__)


def checkpoint_to_resume(training_args, buckets: list[str] | None) -> str | None:
    """Return the checkpoint to resume from: the one that the flags name, else the last complete one in `output_dir`.

    Raises:
        UserError: `output_dir` holds something else, and --overwrite_output_dir is not given; or with length `buckets` the
            checkpoint's run had batches of another size, which transformers 4.55 would keep.
    """
    checkpoint = named_or_last_checkpoint(training_args)
    if checkpoint is not None and buckets is not None and training_args.do_train:
        size = json.loads((Path(checkpoint) / "trainer_state.json").read_text()).get("train_batch_size")
        if size not in (None, training_args.train_batch_size):
            raise UserError(
                f"--per_device_train_batch_size {training_args.per_device_train_batch_size}: the run of {checkpoint} has "
                f"{size // max(1, training_args.n_gpu)}, by which --length_buckets is laid out; resume with that"
            )
    return checkpoint


def named_or_last_checkpoint(training_args) -> str | None:
    named = training_args.resume_from_checkpoint
    never = named is not None and named.lower() == "false"
    if named is not None and named.lower() not in ("true", "false"):
        if not is_complete(Path(named)):
            raise UserError(f"--resume_from_checkpoint {named}: there is no complete checkpoint (trainer_state.json)")
        return named
    folder = Path(training_args.output_dir)
    if not training_args.do_train or training_args.overwrite_output_dir or not folder.is_dir():
        return None
    last = last_checkpoint(folder)
    if last is not None and never:
        raise UserError(
            f"--resume_from_checkpoint {named}: --output_dir {folder} holds the checkpoints of an earlier run; name another "
            "folder, or remove them with --overwrite_output_dir"
        )
    if last is not None:
        logger.warning(f"Resuming from {last}; add --overwrite_output_dir to start again")
        return str(last)
    if any(path.name not in (LOCK_FILE, RUN_FILE) for path in folder.iterdir()):
        raise UserError(
            f"--output_dir {folder} holds files but no complete checkpoint to resume from; name another folder, "
            "or start again with --overwrite_output_dir"
        )
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint with the highest step."""
    numbered = {path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path for path in folder.iterdir()}
    complete = [(int(step), path) for step, path in numbered.items() if step.isdigit() and is_complete(path)]
    return max(complete)[1] if complete else None


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end: the trainer's state is its last file."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True
