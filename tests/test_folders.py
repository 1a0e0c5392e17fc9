"""Folders that a run cannot write to, before anything is loaded."""

import argparse
import os

import qa.folders
from qa.folders import folder_problems


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    """As another user than root; a rank other than 0 does not write, and its node may have other rights."""
    locked = argparse.Namespace(output_dir=str(tmp_path / "locked" / "out"))
    (tmp_path / "locked").mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:
            assert not folder_problems(locked)
            os.seteuid(65534)
        (problem,) = folder_problems(locked)
        monkeypatch.setattr(qa.folders, "IS_RANK_0", False)
        assert not folder_problems(locked)
    finally:
        os.seteuid(user)
    assert problem.startswith(f"--output_dir {locked.output_dir} cannot be written to: ")
    assert problem.endswith(" is read-only for this user; name another folder")
