"""Whether a run can write to the folders that its flags name."""

import os
from pathlib import Path

from qa.errors import short
from qa.upstream import IS_RANK_0


FOLDERS = {"output_dir": True, "logging_dir": True, "cache_dir": False}  # flag: whether every run writes to it
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; Linux takes 4096, and files in the folder have names too


def folder_problems(values) -> list[str]:
    """Return why the folders of the flags cannot be written to, as far as it shows without writing.

    Args:
        values: the values of all flags, as a namespace.
    """
    given = {flag: getattr(values, flag, None) for flag in FOLDERS}
    return [
        f"--{flag}{' ' if folder else ''}{short_path(folder)} {problem}"
        for flag, folder in given.items()
        if folder is not None and (problem := why_no_folder(folder, FOLDERS[flag] and IS_RANK_0)) is not None
    ]


def short_path(folder: str) -> str:
    return folder if len(folder) <= 200 and folder.isprintable() else short(folder)


def why_no_folder(folder: str, writes: bool) -> str | None:
    """Return why there is no such folder and can be none, None where there is or can be one.

    Args:
        writes: also return why nothing can be written to it.
    """
    if not folder.strip():
        return "is empty; name a folder"
    if "\0" in folder:
        return "holds a null character; name a folder"
    place = Path(os.path.expanduser(folder)).absolute()
    if max(len(os.fsencode(part)) for part in place.parts) > LONGEST_NAME or len(os.fsencode(place)) > LONGEST_PATH:
        return f"is too long: a name has {LONGEST_NAME} bytes at most, a path {LONGEST_PATH}; shorten it"
    there = nearest_existing(place)
    if not there.is_dir():
        return (
            "is a file; name a folder" if there == place else f"is below {there}, which is a file; name another folder"
        )
    if os.path.islink(place) and not place.exists():
        return "is a link to a folder that does not exist; name a folder"
    if writes and not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return f"cannot be written to: {there} is read-only for this user; name another folder"
    return None


def nearest_existing(place: Path) -> Path:
    """Return a path, or the nearest of the folders that it is in, that exists."""
    return next(path for path in (place, *place.parents) if os.path.exists(path))
