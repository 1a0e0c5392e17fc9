"""A process that runs a script handles signals, and starts in half the time without what it does not use.

A notebook that imports the scripts keeps its settings: only a script's own process calls `begin_script`.
"""

import gc
import time

from qa.errors import run_or_exit
from qa.process import CLOCK
from qa.ranks import place_process
from qa.secret_flags import hide_secrets
from qa.signals import handle_signals


def begin_script() -> None:
    """Handle signals, find the rank, hide secrets, stop garbage collection until `collect_again`, and skip libraries without use here.

    Importing and reading make millions of objects and next to no garbage. Call it before PyTorch is imported.
    """
    CLOCK.began = time.monotonic()
    handle_signals()
    run_or_exit(place_process)
    hide_secrets()
    gc.disable()
    from qa.upstream import skip_unused_libraries

    skip_unused_libraries()


def collect_again() -> None:
    """Start garbage collection, if it is off, without looking at the objects that exist: modules, rows, features, the model."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
