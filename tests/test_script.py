"""Garbage collection of a script's process, and of one that imports a script."""

import gc

import run_qa  # noqa: F401
import run_seq2seq_qa  # noqa: F401
from qa.script import collect_again


def test_a_script_that_is_imported_leaves_garbage_collection_on():
    assert gc.isenabled()


def test_collection_starts_again_and_spares_what_is_there():
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        rows = [[] for _ in range(10_000)]
        collect_again()
        assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(rows)
        frozen = gc.get_freeze_count()
        collect_again()  # where it is on, nothing changes
        assert gc.get_freeze_count() == frozen
    finally:
        gc.enable()
