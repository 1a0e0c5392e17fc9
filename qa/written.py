"""Which files of a checkpoint a run wrote, and with which content: `files.json` in the checkpoint.

It finds what the structure of a file does not show, as zeros in the middle of it; and nothing else is deleted.

Files are read whole. For the 1.3 GB of a BERT base with its optimizer, SHA-256 took 0.9 s of a core (EPYC, November 2026);
writing them took 10 s. The files of a checkpoint are read at the same time.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qa.files import read_object, write_json
from qa.identity import file_sha256


FILES_FILE = "files.json"
THREADS = 8
# Of these a trainer writes at least one in each checkpoint. Weights alone may be a model that somebody keeps there.
MARKS = re.compile(
    r"trainer_state\.json|training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth"
)
# The files that a trainer writes in a checkpoint, for those without `files.json`.
NAMES = re.compile(
    r"(trainer_state|run|qa_settings|files|config|(generation|gaudi|adapter|tokenizer|preprocessor)_config|tokenizer|(\w+_)?vocab"
    r"|special_tokens_map|added_tokens|.+\.index)\.json|(vocab|merges)\.txt|latest|\.metadata|\.tmp[0-9A-Za-z]{6}"
    r"|.+\.(safetensors|bin|pt|pth|distcp|model|spm|codes|jinja|py)"
)


def write_fingerprints(checkpoint: Path) -> None:
    """Write `files.json`: a fingerprint of each file of a checkpoint."""
    names = [name for name in names_in(checkpoint) if name != FILES_FILE]
    write_json(checkpoint / FILES_FILE, [fingerprints(checkpoint, names)])


def fingerprints(folder: Path, names: list[str]) -> dict[str, str]:
    """Return a fingerprint of the content of each file; hashing does not hold Python's lock."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: file_sha256(folder / name), names)))


def changed_file(checkpoint: Path) -> str | None:
    """Return the first file whose content is not the one that was written; None if `files.json` is not there."""
    if not (checkpoint / FILES_FILE).exists():
        return None  # of an earlier version
    written = read_object(checkpoint / FILES_FILE)
    if not written:
        return f"{FILES_FILE} is damaged"
    for name in written:
        if not (checkpoint / name).is_file():
            return f"there is no {name}"
    found = fingerprints(checkpoint, list(written))
    for name in written:
        if found[name] != written[name]:
            return f"{name} was changed after it was written; if that was intended, remove {FILES_FILE}"
    return None


def is_checkpoint_of_run(path: Path) -> bool:
    """Return whether nothing is lost with what has the name of a checkpoint, except what a run wrote; a link is no loss."""
    if path.is_symlink():
        return True
    if not path.is_dir():
        return path.stat().st_size == 0
    names = names_in(path)
    known = read_object(path / FILES_FILE)
    if not all(name in known or NAMES.fullmatch(name.rpartition("/")[2]) for name in names):
        return False
    return not names or any(MARKS.fullmatch(name) for name in names)


def names_in(folder: Path) -> list[str]:
    """Return the files in a folder and its folders, by their names relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
