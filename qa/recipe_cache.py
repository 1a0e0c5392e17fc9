"""The folder in which a Gaudi keeps the graphs that it compiles, its recipes, so that later runs and other ranks read them.

Habana's plugin takes the folder from PT_HPU_RECIPE_CACHE_CONFIG, `folder,whether to clear it at the start,most MB`, in every
mode (https://docs.habana.ai/en/latest/PyTorch/Reference/Runtime_Flags.html). The plugin names a recipe by its graph, the driver
and the content of Habana's libraries, and locks its files: all runs and versions share a folder, and nothing is cleared.

- The folder has to be on a local disk: file systems of a network may not have the locks. So each node has one of its own.
- The plugin ends a run with a path that it does not take: one with a blank or another special character, a link, or a folder
  that its owner cannot write to. A run without a cache is only slower, so such a folder is not used.
"""

import contextlib
import logging
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from qa.folders import nearest_existing


VARIABLE = "PT_HPU_RECIPE_CACHE_CONFIG"
OFF = "none"  # value of --recipe_cache
MEGABYTES = 4096  # at most; the plugin then deletes the oldest recipes
REFUSED = re.compile(r"[\s,\"'\\<>|&;$%*?\[\]{}^~`]")  # in a path, by the plugin
MOUNTS = Path("/proc/self/mounts")
OWN = set()  # values that an earlier run of this process has set; the plugin keeps to the first one
NETWORK = re.compile(r"nfs|cifs|smb|lustre|gpfs|beegfs|ceph|afs|panfs|wekafs|fuse\.(?!fuse-overlayfs)")


def set_recipe_cache(named: str | None = None) -> tuple[int, str]:
    """Name Habana's plugin a folder for its recipes, unless its variable is set; return a line about it and its level.

    Call it before the plugin is loaded.

    Args:
        named: the value of --recipe_cache: a folder, "none", or None for the default.
    """
    if VARIABLE in os.environ:
        who = "An earlier run of this process" if os.environ[VARIABLE] in OWN else "The environment"
        ignored = "" if named is None else f"; --recipe_cache {named} is ignored"
        return logging.INFO, f"{who} decides where graphs are kept: {VARIABLE}={os.environ[VARIABLE]}{ignored}"
    if named == OFF:
        return logging.INFO, f"Compiled graphs are not kept for other runs (--recipe_cache {OFF})"
    for folder in default_folders() if named is None else [os.path.expanduser(named)]:
        place = folder and os.path.realpath(folder)
        problem = why_unusable(place, of_this_user=named is None)
        if problem is None:
            os.environ[VARIABLE] = f"{place},false,{MEGABYTES}"
            OWN.add(os.environ[VARIABLE])
            return logging.INFO, f"Compiled graphs are kept for other runs in {place} (--recipe_cache)"
    return (
        logging.WARNING,
        f"Compiled graphs are not kept for other runs: {place!r} {problem}; name another --recipe_cache",
    )


def default_folders() -> list[str]:
    """Return the folders for recipes in the order in which they are tried: where a home is on a network, a temporary one is used."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [
        os.path.join(cache, "gaudi-question-answering", "recipes"),
        os.path.join(tempfile.gettempdir(), f"gaudi-recipes-{os.geteuid()}"),
    ]


def why_unusable(place: str, of_this_user: bool) -> str | None:
    """Return why recipes cannot be kept in a folder, None where they can; make the folder, for its owner alone.

    Args:
        place: without links.
        of_this_user: also return that the folder belongs to somebody else, as one in /tmp may.
    """
    if not place:
        return "is empty"
    if REFUSED.search(place):
        return "has a character that Habana's plugin refuses in this path, such as a blank or a comma"
    try:
        if (kind := file_system(place)) and NETWORK.match(kind):
            return f"is on a network ({kind}), and recipes need a local disk"
        if shutil.disk_usage(nearest_existing(Path(place))).free + bytes_below(place) < MEGABYTES << 20:
            return f"has less than {MEGABYTES:,} MB of free space"
        os.makedirs(place, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            status = os.stat(place)
    except OSError as error:
        return f"cannot be written to ({error.strerror})"
    if not status.st_mode & stat.S_IWUSR:
        return "cannot be written to by its owner"
    if of_this_user and status.st_uid != os.geteuid():
        return "belongs to another user"
    return None


def bytes_below(folder: str) -> int:
    """Return the bytes of all files in a folder, from which other runs delete some meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def file_system(place: str) -> str | None:
    """Return the kind of the file system that a path is on, such as ext4 or nfs4, None where Linux does not list it.

    >>> file_system("/proc/self")
    'proc'
    """
    mounts = [line.split(" ")[1:3] for line in MOUNTS.read_text().splitlines()]
    around = [(mount, kind) for mount, kind in mounts if os.path.commonpath([mount, place]) == mount]
    return max(reversed(around), key=lambda found: len(found[0]), default=(None, None))[1]
