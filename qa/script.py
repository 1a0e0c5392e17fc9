"""A process that runs a script starts in half the time without garbage collection and libraries that it does not use.

A notebook that imports the scripts keeps its settings: only a script's own process calls `begin_script`.
"""

import gc


def begin_script() -> None:
    """Stop garbage collection until `collect_again`, and keep transformers from importing libraries without use here.

    Importing and reading make millions of objects and next to no garbage. Call it before PyTorch is imported.
    """
    gc.disable()
    from qa.upstream import skip_unused_libraries

    skip_unused_libraries()


def collect_again() -> None:
    """Start garbage collection, if it is off, without looking at the objects that exist: modules, rows, features."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
