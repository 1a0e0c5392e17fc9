"""One run at a time in an output folder: a lock that ends with its process, however that ends.

This uses the standard library alone.
"""

import atexit
import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from qa.errors import DISK_FULL, UserError


logger = logging.getLogger(__name__)

LOCK_FILE = "_run.lock"  # transformers 4.55 uploads no file to the hub whose name begins with _
HELD: dict[Path, int] = {}  # the open lock file of each folder that this process has locked
MADE: set[Path] = set()  # the folders that it made for that


def lock(folder: Path) -> None:
    """Make a folder, and keep the runs of other processes out of it.

    A file system without locks is reported in the log.

    Raises:
        UserError: the folder cannot be made, or the run of another process is in it.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(f"--output_dir {folder}: {error.strerror}; name another folder") from error
    place = folder.resolve()
    if is_new:
        MADE.add(place)
    if place not in HELD:
        try:
            HELD[place] = locked_file(place / LOCK_FILE)
        except BlockingIOError as error:
            raise UserError(
                f"--output_dir {folder}: another run is writing there ({holder(place / LOCK_FILE)}); wait for its end, or "
                "name another folder"
            ) from error
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            logger.warning(f"--output_dir {folder} cannot be locked ({error.strerror}); start no other run there")


def locked_file(path: Path) -> int:
    """Return an open, locked file with the name of its process.

    The holder removes the file at its end. So the file that was opened may be gone by the time it is locked.

    Raises:
        OSError: it cannot be locked; a BlockingIOError where another process has locked it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def holder(path: Path) -> str:
    try:
        return path.read_text() or "a process"
    except OSError:
        return "a process"


def unlock(folder: Path) -> None:
    """Let other runs into a folder again; remove it if it was made for a run that wrote nothing."""
    place = folder.resolve()
    if place in HELD:
        (place / LOCK_FILE).unlink(missing_ok=True)
        os.close(HELD.pop(place))
    if place in MADE:
        MADE.discard(place)
        with suppress(OSError):  # It is not empty.
            place.rmdir()


@atexit.register
def unlock_all() -> None:
    for place in {*HELD, *MADE}:
        unlock(place)


def close_all() -> None:
    """Close the lock files in a forked process: a worker that outlives the run by seconds must not hold them."""
    MADE.clear()
    while HELD:
        os.close(HELD.popitem()[1])


os.register_at_fork(after_in_child=close_all)
