"""The files of an earlier run in an output folder: which ones are its own, and when they go."""

import logging
from collections.abc import Iterable
from pathlib import Path

from qa.arguments import STAGES
from qa.files import write_all_results
from qa.identity import RUN_FILE
from qa.saving import CHECKPOINT, WEIGHTS, discard, overwriting
from qa.settings import SETTINGS_FILE
from qa.written import is_checkpoint_of_run


logger = logging.getLogger(__name__)

# Of a stage, with its name and an underscore before them.
REPORT = ("report.html", "report.json")
ANSWERS = ("predictions.json", "nbest_predictions.json", "null_odds.json", "answers.csv", *REPORT)
RESULTS = ["all_results.json", "trainer_state.json", RUN_FILE, SETTINGS_FILE]
RESULTS += [f"{stage}_{name}" for stage in STAGES.values() for name in ("results.json", *ANSWERS)]
# Of transformers 4.55; it asks whoever completes the card to remove this comment.
CARD_MARK = "This model card has been generated automatically"


def remove_answers(folder: Path, stage: str) -> None:
    """Remove the answers of an earlier evaluation or prediction, and its report."""
    remove_files(folder, stage, ANSWERS)


def remove_report(folder: Path, stage: str) -> None:
    """Remove the report of an earlier evaluation."""
    remove_files(folder, stage, REPORT)


def remove_files(folder: Path, stage: str, names: Iterable[str]) -> None:
    for name in names:
        (folder / f"{stage}_{name}").unlink(missing_ok=True)


def forget(folder: Path, stages: Iterable[str]) -> None:
    """Remove the results and answers of stages; the results go first, so that a kill leaves the stages unfinished."""
    for stage in stages:
        (folder / f"{stage}_results.json").unlink(missing_ok=True)
        remove_answers(folder, stage)
    write_all_results(folder)


def remove_earlier_run(folder: Path, named: list[str]) -> None:
    """Remove the checkpoints, results and model of an earlier run, and no file that anybody else put there.

    Args:
        named: paths that this run reads from; the checkpoint or model that one of them names stays.
    """
    needed = [Path(name).resolve() for name in named if Path(name).exists()]
    found = [path for path in sorted(folder.iterdir()) if is_of_run(path) and path.resolve() not in needed]
    if folder.resolve() in needed:
        found = [path for path in found if not is_of_model(path)]
    with overwriting(folder):
        for path in found:
            discard(path) if CHECKPOINT.fullmatch(path.name) else path.unlink()
    if found:
        logger.warning(
            f"--overwrite_output_dir: removed {len(found)} files and checkpoints of an earlier run in {folder}"
        )


def is_of_run(path: Path) -> bool:
    """Return whether a run wrote a file or folder in its output folder."""
    if CHECKPOINT.fullmatch(path.name):
        return is_checkpoint_of_run(path)
    written = is_of_model(path) and (path.parent / "training_args.bin").is_file()
    return written or path.name in RESULTS or (path.name == "README.md" and is_generated(path))


def is_of_model(path: Path) -> bool:
    """Return whether a file holds weights, or the arguments that they were trained with."""
    return path.name == "training_args.bin" or WEIGHTS.fullmatch(path.name) is not None


def is_generated(card: Path) -> bool:
    """Return whether a model card is as transformers wrote it; a person removes its mark."""
    return CARD_MARK in card.read_text(encoding="utf-8", errors="replace")
