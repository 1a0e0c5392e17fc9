"""Several runs in one process, as in a notebook or a sweep: each finds the process as the first one did.

The libraries keep settings of a run in variables of the environment, and a run that fails holds its output folder.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qa.locks import HELD, MADE, unlock


# The settings that transformers 4.55 makes of flags for accelerate: precision, compiling, DeepSpeed, FSDP. A later run without
# the flag would follow them; and those of the only rank of a run with DeepSpeed.
SETTINGS = ("ACCELERATE_", "FSDP_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")


class Clock:
    """When the run of this process began, in seconds of `time.monotonic`; None between runs."""

    began: float | None = None


CLOCK = Clock()


@contextmanager
def run_of_its_own() -> Iterator[None]:
    """Restore the environment's settings of accelerate and of the rank after a run, and unlock the folders that it has locked.

    The run began now, unless the process began with it (`qa.script`).
    """
    before, locked = settings_of(os.environ), {*HELD, *MADE}
    CLOCK.began = time.monotonic() if CLOCK.began is None else CLOCK.began
    try:
        yield
    finally:
        CLOCK.began = None
        for name in settings_of(os.environ):
            del os.environ[name]
        os.environ.update(before)
        for folder in {*HELD, *MADE} - locked:
            unlock(folder)


def settings_of(environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(SETTINGS)}
